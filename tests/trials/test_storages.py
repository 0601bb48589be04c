import socket
import threading
from pathlib import Path

import filelock
import optuna
import pytest
import sqlalchemy
from studies import arch_id, architectures, begin, complete, outcome, spec

from benchmarks import _postgres
from trials import Proxy, StoreUnavailableError, StudyMismatchError, TrialState, TrialStore, storages
from trials.storages import database_url, open_storage


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]  # bound, and nobody listens


@pytest.fixture
def only(monkeypatch):
    """Return a function that hides every driver but some."""

    def hide(*names):
        find = storages.find_spec
        drivers = ("psycopg", "psycopg2", "pg8000")
        monkeypatch.setattr(
            storages, "find_spec", lambda name: (name in names or None) if name in drivers else find(name)
        )

    return hide


@pytest.mark.parametrize(
    ("driver", "url", "expected"),
    [
        ("pg8000", "postgresql://me:pw@host:1/db", "postgresql+pg8000://me:pw@host:1/db"),
        ("pg8000", "postgres://me@host/db", "postgresql+pg8000://me@host/db"),
        ("pg8000", "postgresql://me@/db?host=/run", "postgresql+pg8000://me@/db?unix_sock=/run/.s.PGSQL.5432"),
        ("pg8000", "postgresql://me@/db?host=/run&port=7", "postgresql+pg8000://me@/db?unix_sock=/run/.s.PGSQL.7"),
        ("psycopg", "postgresql://me@/db?host=/run", "postgresql+psycopg://me@/db?host=/run"),
        ("psycopg2", "postgresql://me@host/db", "postgresql+psycopg2://me@host/db"),
        ("pg8000", "postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("pg8000", "sqlite:///a.db", "sqlite:///a.db"),
    ],
)
def test_an_installed_driver_is_found(only, driver, url, expected):
    only(driver)
    assert database_url(url) == expected


def test_pg8000_gets_the_password_of_the_environment(only, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "a b@c")
    only("pg8000")
    assert database_url("postgresql://me@host/db") == "postgresql+pg8000://me:a%20b%40c@host/db"
    assert database_url("postgresql://me:own@host/db") == "postgresql+pg8000://me:own@host/db"
    only("psycopg", "pg8000")  # reads the variable itself
    assert database_url("postgresql://me@host/db") == "postgresql+psycopg://me@host/db"


def test_a_missing_driver_is_named_with_its_extra(only):
    only()
    with pytest.raises(StoreUnavailableError, match=r"needs a driver; run `pip install 'weightloom\[cluster\]'`"):
        open_storage("postgresql://me:secret@host/db")


def test_an_unreachable_database_is_named_without_its_password(closed_port, monkeypatch):
    monkeypatch.setattr(storages, "_CONNECT_S", 0.3)
    url = f"127.0.0.1:{closed_port}/db"
    with pytest.raises(StoreUnavailableError, match=rf"got postgresql://me:\*\*\*@{url} \(.*onnect") as caught:
        TrialStore(f"postgresql://me:secret@{url}", spec())
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreUnavailableError, match=rf"got grpc://127.0.0.1:{closed_port} \(.*[Tt]ime"):
        TrialStore(f"grpc://127.0.0.1:{closed_port}", spec())
    with pytest.raises(StoreUnavailableError, match="must read grpc://HOST:PORT"):
        open_storage("grpc://me@host:1/x")


def test_what_was_computed_survives_a_database_that_goes_away(database, tmp_path, monkeypatch):
    store = TrialStore(database, spec("away"), runs=tmp_path)
    first, second = (begin(store, architecture) for architecture in architectures()[:2])
    engine = store._ledger._storage._backend.engine

    def refuse(*_):
        raise sqlalchemy.exc.OperationalError("SELECT 1", {}, ConnectionResetError("server closed the connection"))

    sqlalchemy.event.listen(engine, "before_cursor_execute", refuse)
    with pytest.raises(StoreUnavailableError, match=r"does not answer \(ConnectionResetError: .*trial 0 waits in"):
        store.finish(first.with_outcome(outcome(first.architecture)))
    with pytest.raises(StoreUnavailableError, match="must stay reachable"):
        begin(store, architectures()[2])
    store.close()  # does not raise: the error above is what matters
    sqlalchemy.event.remove(engine, "before_cursor_execute", refuse)
    monkeypatch.setattr(TrialStore, "alive", lambda *_: False)
    with TrialStore(database, spec("away"), runs=tmp_path) as later:
        assert [trial.state for trial in later.trials()] == [TrialState.COMPLETE]
        assert [trial.arch_id for trial in later.interrupted()] == [second.arch_id]
        assert later.outcomes.numbers() == []


def test_servers_of_tests_are_begun_one_at_a_time(monkeypatch):
    """The wheel creates a user of the system for root, and asks no lock for it."""
    folders = []

    def begin_server(folder, **_):
        folders.append(Path(folder))
        filelock.FileLock(_postgres._runtime() / "begin.lock", timeout=0).acquire()

    monkeypatch.setattr(_postgres, "_server_of_the_wheel", lambda: begin_server)
    with pytest.raises(filelock.Timeout), _postgres.postgres():
        pass
    assert not folders[0].exists()


def test_workers_that_meet_in_an_empty_database_all_find_the_study(database, tmp_path):
    engine = sqlalchemy.create_engine(database_url(database), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE fresh"))
    engine.dispose()
    url = database.replace("/postgres?", "/fresh?")
    tokens, errors = [], []

    def join():
        try:
            with TrialStore(url, spec(), runs=tmp_path) as store:
                tokens.append(store.outcomes.token)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(tokens) == 4
    assert len(set(tokens)) == 1


def test_a_study_of_the_same_name_and_another_space_is_refused(database, tmp_path):
    TrialStore(database, spec("twice"), runs=tmp_path).close()
    with pytest.raises(StudyMismatchError, match="space digest: stored d1, asked for d2"):
        TrialStore(database, spec("twice", space_digest="d2"), runs=tmp_path)


def test_trials_of_optuna_and_ours_are_numbered_together(database, tmp_path):
    """We write the tables of Optuna by ourselves: both read and write one study."""
    with TrialStore(database, spec("mixed"), runs=tmp_path) as store:
        complete(store, architectures()[0])
        study = optuna.load_study(study_name="mixed", storage=open_storage(database))
        study.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
        running = begin(store, architectures()[1])
        assert running.number == 2
        frozen = study.get_trials()
        assert [trial.number for trial in frozen] == [0, 1, 2]
        assert frozen[0].params == architectures()[0]
        assert frozen[0].values == [
            outcome(architectures()[0]).measurements[name].value for name in ("accuracy", "params")
        ]
        assert frozen[0].datetime_start <= frozen[0].datetime_complete
        assert frozen[2].state.name == "RUNNING"
        assert store.find(arch_id(architectures()[0])).number == 0
        study.tell(2, state=optuna.trial.TrialState.FAIL)
        assert store.get(2).error == "trial was closed by another tool"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_trials_of_many_writers_are_numbered_once(kind, storage_url, tmp_path):
    url = storage_url(kind)
    ours = [architectures()[first::3] for first in range(3)]

    def write(mine):
        with TrialStore(url, spec(), runs=tmp_path) as store:
            for architecture in mine:
                begin(store, architecture)

    threads = [threading.Thread(target=write, args=(mine,)) for mine in ours]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storage = open_storage(url)
    rows = storage.get_all_trials(storage.get_study_id_from_name("study"))
    assert sorted(row.number for row in rows) == list(range(len(architectures())))
    assert [row.number for row in sorted(rows, key=lambda row: row._trial_id)] == list(range(len(rows)))


def test_the_proxy_needs_a_database():
    with pytest.raises(ValueError, match=r"needs a database behind it, .*got studies.journal"):
        Proxy("studies.journal")
