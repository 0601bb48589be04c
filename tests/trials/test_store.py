import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import studies
from filelock import FileLock
from processes import until
from studies import CHOICES, STEPS, arch_id, architectures, begin, complete, outcome, spec

from trials import (
    Limit,
    Measurement,
    Metric,
    Outcome,
    OutcomeFolder,
    StoreUnavailableError,
    StudyMismatchError,
    StudyNotFoundError,
    StudySpec,
    TrialState,
    TrialStore,
    redact,
    write_atomically,
)
from trials.files import JournalLock
from trials.storages import open_storage
from trials.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def kind(request):
    return getattr(request, "param", "journal")


@pytest.fixture
def url(kind, storage_url):
    return storage_url(kind)


SERVERS = [pytest.param(kind, marks=pytest.mark.cluster) for kind in ("postgresql", "grpc")]
every_storage = pytest.mark.parametrize("kind", ["journal", "sqlite", *SERVERS], indirect=True)


@pytest.fixture
def store(url, tmp_path):
    with TrialStore(url, spec(), runs=tmp_path) as opened:
        yield opened


def reopen(store):
    return TrialStore(store.url, spec(), runs=store.runs)


def run_search(root, here, **arguments):
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{here}"}
    return subprocess.Popen([sys.executable, str(here / "studies.py"), json.dumps(arguments)], env=environment)


def load_with_optuna(url, name="study"):
    return optuna.load_study(study_name=name, storage=open_storage(url))


@every_storage
def test_a_trial_is_begun_finished_and_read_back_by_anyone(store):
    architecture = architectures()[3]
    begun = begin(store, architecture, seed=2**62, provenance={"weights": "w0", "space": "d1"})
    assert begun.state is TrialState.RUNNING
    assert begun.architecture == architecture
    assert reopen(store).get(begun.number) == begun
    done = store.finish(begun.with_outcome(outcome(architecture)))
    assert done.state is TrialState.COMPLETE
    assert done.provenance == {"weights": "w1", "space": "d1"}
    assert (done.seed, done.worker, done.attempt) == (2**62, str(Worker.current()), 0)
    assert begun.started <= done.finished <= time.time()
    assert reopen(store).trials() == store.trials() == [done]
    assert store.find(arch_id(architecture)) == reopen(store).get(done.number) == done
    assert TrialStore.load(store.url, "study").trials() == [done]


@every_storage
def test_candidates_keep_their_type(store):
    some = architectures()[5:9]
    for architecture in some:
        complete(store, architecture)
    for trial, architecture in zip(reopen(store).trials(), some, strict=True):
        assert list(trial.architecture.items()) == list(architecture.items())
        assert [type(value) for value in trial.architecture.values()] == [type(v) for v in architecture.values()]


def test_an_inactive_choice_is_absent(store):
    architecture = {"width": 8, "depth": 1}
    complete(store, architecture)
    assert reopen(store).trials()[0].architecture == architecture


def test_an_architecture_has_one_trial(store):
    architecture = architectures()[0]
    begun = begin(store, architecture)
    other = reopen(store)
    assert begin(other, architecture) is None
    assert begin(store, architecture) is None
    store.finish(begun.with_outcome(outcome(architecture)))
    assert begin(other, architecture) is None
    assert other.record(architecture, arch_id(architecture), outcome(architecture)) is None
    assert len(other.trials()) == 1


@every_storage
def test_the_loser_of_a_race_retires_its_row(store):
    """The other process appends its row between our look and our append."""
    architecture = architectures()[0]
    rival = reopen(store)
    append = store._ledger.append

    def late(trial):
        begin(rival, architecture)
        return append(trial)

    store._ledger.append = late
    assert begin(store, architecture) is None
    assert [trial.number for trial in store.trials()] == [0]
    assert store.get(0).worker == rival.get(0).worker
    with pytest.raises(KeyError, match="study 'study' has no trial 1"):
        store.get(1)
    assert [trial.state.name for trial in load_with_optuna(store.url).trials] == ["RUNNING", "FAIL"]
    rival.close()
    assert store.interrupted()[0].number == 0


@every_storage
def test_a_trial_that_breaks_a_limit_is_infeasible_with_its_violation(store):
    architecture = {**architectures()[-1], "width": 32, "depth": 2}
    trial = complete(store, architecture)
    assert trial.state is TrialState.INFEASIBLE
    assert trial.value("params") == 128
    row = load_with_optuna(store.url).trials[0]
    assert row.state.name == "PRUNED"
    assert row.values is None
    assert row.constraints == {"max_params": 28.0}


def test_a_failure_is_data_and_final(store):
    architecture = architectures()[0]
    failed = Outcome(state=TrialState.FAILED, error="Traceback: no such width")
    begun = begin(store, architecture)
    assert store.finish(begun.with_outcome(failed)).error == "Traceback: no such width"
    assert begin(reopen(store), architecture) is None
    assert load_with_optuna(store.url).trials[0].state.name == "FAIL"
    assert store.interrupted() == []


@every_storage
def test_an_outcome_without_evaluation_needs_one_write(store):
    architecture = architectures()[0]
    measured = {"params": Measurement(500.0, "1", "minimize")}
    trial = store.record(architecture, arch_id(architecture), Outcome(state=TrialState.COMPLETE, measurements=measured))
    assert trial.state is TrialState.INFEASIBLE
    assert reopen(store).get(trial.number) == trial
    assert load_with_optuna(store.url).trials[0].constraints == {"max_params": 400.0}


def test_optuna_opens_a_study_as_its_own(store):
    for architecture in architectures()[:3]:
        complete(store, architecture)
    study = load_with_optuna(store.url)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "params"]
    assert [trial.params for trial in study.trials] == architectures()[:3]
    assert study.trials[0].values == [1 - 1 / 16, 16]
    assert len(study.best_trials) == 3  # the larger, the more accurate
    assert study.trials[0].distributions["operation"].choices == ("conv", "pool")


def test_rows_of_other_tools_are_not_trials(store):
    study = load_with_optuna(store.url)
    study.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    complete(store, architectures()[0])
    assert [trial.number for trial in store.trials()] == [1]


def test_a_running_trial_closed_by_another_tool_has_failed(store):
    begin(store, architectures()[0])
    load_with_optuna(store.url).tell(0, state=optuna.trial.TrialState.FAIL)
    assert store.get(0).state is TrialState.FAILED
    assert store.get(0).error == "trial was closed by another tool"


@every_storage
def test_finished_trials_never_change(store):
    architecture = architectures()[0]
    begun = begin(store, architecture)
    done = store.finish(begun.with_outcome(outcome(architecture)))
    assert store.finish(begun.with_outcome(outcome(architecture))) == done
    with pytest.raises(ValueError, match="trial 0 is finished already with another outcome"):
        store.finish(begun.with_outcome(Outcome(state=TrialState.FAILED, error="late")))
    assert reopen(store).trials() == [done]


def test_what_cannot_be_recorded_is_refused_before_anything_is_written(store):
    architecture = architectures()[0]
    with pytest.raises(ValueError, match=r"architecture\['width'\] must be one of \(8, 16, 32\), got 9"):
        begin(store, {**architecture, "width": 9})
    with pytest.raises(ValueError, match=r"architecture\['colour'\] is no choice of study 'study'"):
        begin(store, {"colour": 1})
    begun = begin(store, architecture)
    with pytest.raises(ValueError, match=r"must measure every objective, got none for \['accuracy', 'params'\]"):
        store.finish(begun.with_outcome(Outcome(state=TrialState.COMPLETE)))
    with pytest.raises(ValueError, match="trial 0 must be finished to have an outcome, it is RUNNING"):
        store.finish(begun)
    with pytest.raises(ValueError, match="must have been begun in study 'study'; it is not there"):
        store.finish(
            begun.with_outcome(outcome(architecture)).__class__.from_dict(
                {**begun.with_outcome(outcome(architecture)).to_dict(), "number": 7}
            )
        )
    assert store.trials() == [begun]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objectives": (Metric("accuracy", "1", "maximize"),)},
            "objectives: stored maximize accuracy .* minimize params",
        ),
        ({"limits": (Limit("params", 50.0, "max"),)}, "limits: stored max_params=100, asked for max_params=50"),
        ({"choices": {**CHOICES, "width": (8, 16)}}, r"choice width: stored \(8, 16, 32\), asked for \(8, 16\)"),
        ({"choices": {**CHOICES, "kernel": (3,)}}, r"choice kernel: stored None, asked for \(3,\)"),
        ({"space_digest": "d2"}, "space digest: stored d1, asked for d2"),
    ],
)
def test_another_question_is_refused_naming_the_difference(store, changes, message):
    with pytest.raises(StudyMismatchError, match=f"{message}.*use another study name"):
        TrialStore(store.url, spec(**changes), runs=store.runs)


def test_the_study_keeps_its_first_metadata_and_a_note(store):
    other = TrialStore(store.url, spec(metadata={"continue": "another"}), runs=store.runs)
    assert other.spec == spec()
    assert other.note("mirror") is None
    store.set_note("mirror", "here")
    assert other.note("mirror") == "here"


def test_who_was_stopped_while_creating_a_study_joins_that_of_another(url, tmp_path, monkeypatch):
    kind, others = optuna.storages.JournalStorage, []
    write = kind.set_study_system_attr

    def stopped(*given):
        monkeypatch.setattr(kind, "set_study_system_attr", write)
        others.append(TrialStore(url, spec(), runs=tmp_path))
        write(*given)

    monkeypatch.setattr("trials.ledger._CREATION_PATIENCE_S", 0.0)
    monkeypatch.setattr(kind, "set_study_system_attr", stopped)
    mine = TrialStore(url, spec(), runs=tmp_path)
    tokens = {store.outcomes.token for store in (mine, *others, TrialStore.load(url, "study"))}
    assert (len(others), len(tokens)) == (1, 1)


def test_a_study_of_another_tool_is_refused(url, tmp_path):
    storage = url
    if "://" not in url:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(url))
    study = optuna.create_study(study_name="study", storage=storage, directions=["maximize", "minimize"])
    study.add_trial(optuna.trial.create_trial(values=[1.0, 2.0]))
    with pytest.raises(StudyMismatchError, match="was made by another tool; use another study name"):
        TrialStore(url, spec(), runs=tmp_path)


def test_missing_studies_and_stores_are_named(store, tmp_path):
    assert TrialStore.studies(store.url) == ("study",)
    with pytest.raises(StudyNotFoundError, match="must hold a study 'other', it holds: study"):
        TrialStore.load(store.url, "other")
    with pytest.raises(StoreUnavailableError, match=r"got .*none.journal \(FileNotFoundError: .* does not exist\)"):
        TrialStore.load(str(tmp_path / "none.journal"), "study")
    assert not (tmp_path / "none.journal").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="check the path, the permissions and the URL"):
        TrialStore(str(tmp_path / "file" / "s.journal"), spec())
    with pytest.raises(StoreUnavailableError, match=r"got nosuchdb://me:\*\*\*@host/db"):
        TrialStore("nosuchdb://me:secret@host/db", spec())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "a study name must be letters, digits, .* got 'a/b'"),
        ({"name": "study", "objectives": ()}, r"must be one or more distinct metrics, got \[\]"),
        ({"name": "study", "choices": {"width": ()}}, r"must have candidates, got none for \['width'\]"),
        ({"name": "study", "reference": (1.0,)}, r"one value per objective \['accuracy', 'params'\], got \(1.0,\)"),
    ],
)
def test_bad_studies_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)


def test_a_specification_survives_json():
    original = spec(reference=(0.0, 200.0))
    assert StudySpec.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    with pytest.raises(ValueError, match="format_version of a study must be 1, got 2"):
        StudySpec.from_dict({**original.to_dict(), "format_version": 2})


def test_the_heartbeat_must_fit_into_the_lease(tmp_path):
    with pytest.raises(ValueError, match="heartbeat_s must be positive and below lease_s, got 10 and 5"):
        TrialStore(str(tmp_path / "s.journal"), spec(), heartbeat_s=10, lease_s=5)


def test_running_trials_show_signs_of_life(url, tmp_path):
    with TrialStore(url, spec(), runs=tmp_path, heartbeat_s=0.05, lease_s=1) as store:
        begun = begin(store, architectures()[0])
        until(lambda: load_with_optuna(url).trials[0].user_attrs.get("nas.heartbeat", 0.0) > begun.started)
        store.finish(begun.with_outcome(outcome(architectures()[0])))
        time.sleep(0.1)
        assert store.get(0).state is TrialState.COMPLETE


def elsewhere(store, monkeypatch):
    """Make the store look like one of another machine."""
    monkeypatch.setattr(store, "worker", Worker("elsewhere", 1, 0.0))


def test_a_silent_process_on_another_host_loses_its_trial_after_the_lease(url, tmp_path, monkeypatch):
    architecture = architectures()[0]
    zombie = TrialStore(url, spec(), runs=tmp_path)
    elsewhere(zombie, monkeypatch)
    begun = begin(zombie, architecture)
    patient = TrialStore(url, spec(), runs=tmp_path)
    assert patient.reconcile() == 0
    assert patient.alive(begun)
    time.sleep(0.15)
    hasty = TrialStore(url, spec(), runs=tmp_path, heartbeat_s=0.05, lease_s=0.1)
    assert [trial.number for trial in hasty.interrupted()] == [0]
    retried = begin(hasty, architecture)
    assert (retried.number, retried.attempt) == (1, 1)
    assert zombie.finish(begun.with_outcome(outcome(architecture))) is None
    assert [trial.number for trial in hasty.trials()] == [1]
    for opened in (zombie, patient, hasty):
        opened.close()


@every_storage
def test_the_result_of_a_process_taken_for_dead_is_kept_if_nobody_else_tried(url, tmp_path, monkeypatch):
    architecture = architectures()[0]
    zombie = TrialStore(url, spec(), runs=tmp_path)
    elsewhere(zombie, monkeypatch)
    begun = begin(zombie, architecture)
    time.sleep(0.15)
    hasty = TrialStore(url, spec(), runs=tmp_path, heartbeat_s=0.05, lease_s=0.1)
    stored = zombie.finish(begun.with_outcome(outcome(architecture)))
    assert stored.state is TrialState.COMPLETE
    assert (stored.number, stored.attempt) == (1, 1)
    assert hasty.trials() == [stored]
    zombie.close()


def test_an_architecture_whose_process_keeps_dying_fails_for_good(url, tmp_path, monkeypatch):
    architecture = architectures()[0]
    for attempt in range(3):
        store = TrialStore(url, spec(), runs=tmp_path, heartbeat_s=0.01, lease_s=0.02)
        elsewhere(store, monkeypatch)
        assert begin(store, architecture).attempt == attempt
        store._heartbeat.stop()
        time.sleep(0.05)
    store = TrialStore(url, spec(), runs=tmp_path, heartbeat_s=0.01, lease_s=0.02)
    assert store.interrupted() == []
    assert store.trials()[0].error == "its process died 3 times"
    assert begin(store, architecture) is None


@every_storage
def test_closing_gives_running_trials_back_without_counting_an_attempt(store):
    begun = begin(store, architectures()[0])
    kept = begin(store, architectures()[1])
    store.outcomes.write(kept.number, outcome(architectures()[1]))
    store.close()
    other = reopen(store)
    assert [trial.state for trial in other.trials()] == [TrialState.COMPLETE]
    assert [trial.arch_id for trial in other.interrupted()] == [begun.arch_id]
    again = begin(other, begun.architecture)
    assert (again.number, again.attempt) == (2, 0)
    assert other.interrupted() == []
    other.close()


def test_reconciling_twice_changes_nothing(store, tmp_path, here, root):
    run_search(root, here, url=store.url, runs=str(tmp_path), dies_at="recorded").wait()
    other = reopen(store)
    before = other.trials()
    assert other.reconcile() == 0
    assert reopen(store).trials() == before
    assert len(before) == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_search_killed_at_any_step_loses_and_repeats_nothing(step, tmp_path, here, root):
    url, log = str(tmp_path / "s.journal"), tmp_path / "evaluations"
    killed = run_search(root, here, url=url, runs=str(tmp_path), dies_at=step, at_trial=1, log=str(log))
    assert killed.wait() == -9
    studies.search(url, str(tmp_path), log=str(log), most=4)
    with TrialStore(url, spec(), runs=tmp_path) as store:
        trials = store.trials()
        assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.INFEASIBLE}
        assert store.interrupted() == []
        assert list(store.outcomes.folder.glob("*")) == []
    assert [trial.architecture for trial in trials] == architectures()[: len(trials)] or step in ("begun", "evaluated")
    evaluated = log.read_text().split()
    assert set(evaluated) == {trial.arch_id for trial in trials}
    repeated = 1 if step == "evaluated" else 0  # computed, but killed before the result reached its file
    assert len(evaluated) == len(set(evaluated)) + repeated
    assert not [row for row in load_with_optuna(url).trials if row.state.name == "RUNNING"]


@pytest.mark.parametrize("kind", ["journal", "sqlite", SERVERS[0]], indirect=True)
def test_two_processes_share_a_study(kind, url, tmp_path, here, root, request):
    """One of the two reaches PostgreSQL through the proxy."""
    logs = [tmp_path / "a", tmp_path / "b"]
    urls = [url, request.getfixturevalue("proxy") if kind == "postgresql" else url]
    TrialStore(url, spec(), runs=tmp_path).close()
    most = None if kind == "journal" else 5
    workers = [
        run_search(
            root, here, url=each, runs=str(tmp_path), log=str(log), ready=str(tmp_path / f"ready{log.name}"), most=most
        )
        for each, log in zip(urls, logs, strict=True)
    ]
    until(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    (tmp_path / "go").touch()
    assert [worker.wait() for worker in workers] == [0, 0]
    evaluated = [log.read_text().split() if log.exists() else [] for log in logs]
    trials = TrialStore.load(url, "study").trials()
    assert sorted(evaluated[0] + evaluated[1]) == sorted(trial.arch_id for trial in trials)
    assert len({trial.arch_id for trial in trials}) == len(trials) == (10 if most else len(architectures()))


def test_a_reader_settles_nothing(store, tmp_path, here, root):
    run_search(root, here, url=store.url, runs=str(tmp_path), dies_at="begun").wait()
    reader = TrialStore.load(store.url, "study")
    assert [trial.state for trial in reader.trials()] == [TrialState.RUNNING]
    assert not reader.alive(reader.get(0))
    assert reader.interrupted() == []


def test_a_journal_cut_short_is_mended(tmp_path):
    url = str(tmp_path / "s.journal")
    with TrialStore(url, spec(), runs=tmp_path) as store:
        first = complete(store, architectures()[0])
        begin(store, architectures()[1])
    whole = Path(url).read_bytes()
    Path(url).write_bytes(whole + b'{"op_code":4,"study_id":0,"par')
    with TrialStore(url, spec(), runs=tmp_path) as store:
        second = complete(store, architectures()[2])
        assert store.trials() == [first, second]
    assert TrialStore.load(url, "study").trials() == [first, second]


def test_the_journal_lock_dies_with_its_process(tmp_path, root):
    journal = tmp_path / "s.journal"
    journal.touch()
    code = (
        f"import sys, os, signal; sys.path.insert(0, {str(root)!r})\n"
        f"from trials.files import JournalLock\nJournalLock({str(journal)!r}).acquire()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with FileLock(f"{journal}.flock", timeout=0):  # raises where it is held
        pass
    lock = JournalLock(str(journal))
    assert lock.acquire()
    lock.release()


def test_outcomes_of_an_earlier_study_of_the_same_name_are_ignored(tmp_path):
    old = OutcomeFolder(tmp_path, "old")
    old.write(0, outcome(architectures()[0]))
    assert old.read(0) == outcome(architectures()[0])
    assert OutcomeFolder(tmp_path, "new").read(0) is None
    (tmp_path / "0.json").write_text("{")
    assert old.read(0) is None
    old.discard(0)
    old.discard(0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "file.txt"
    write_atomically(target, "one")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(target, "two")
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
    assert target.read_text() == "one"


def test_a_worker_identity_is_read_back_and_checked():
    worker = Worker.current()
    assert Worker.parse(str(worker)).pid == os.getpid()
    assert worker.alive(heartbeat_age=1e9, lease_s=1)
    assert not Worker(worker.host, worker.pid, worker.created - 100).alive(heartbeat_age=0, lease_s=1)
    assert Worker("elsewhere", 1, 0.0).alive(heartbeat_age=0.5, lease_s=1)
    assert not Worker("elsewhere", 1, 0.0).alive(heartbeat_age=2, lease_s=1)
    with pytest.raises(ValueError, match="must read host:pid:created, got 'nobody'"):
        Worker.parse("nobody")


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch):
    worker, boot = Worker.current(), psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600)
    assert psutil.Process().create_time() > boot + 3600
    assert worker.alive(heartbeat_age=1e9, lease_s=1)


def test_another_boot_is_another_host_unless_it_was_before_this_one():
    worker, up = Worker.current(), time.time() - psutil.boot_time()
    other = Worker(f"{worker.host.rpartition('/')[0]}/01234567", worker.pid, worker.created)
    assert other.alive(heartbeat_age=up / 2, lease_s=up)
    assert not other.alive(heartbeat_age=up / 2, lease_s=up / 4)
    assert not other.alive(heartbeat_age=up + 10, lease_s=2 * up)


def test_a_namesake_of_a_machine_just_booted_lives_on(monkeypatch):
    worker, now = Worker.current(), time.time()
    monkeypatch.setattr("psutil.boot_time", lambda: now - 20)
    other = Worker(f"{worker.host.rpartition('/')[0]}/01234567", worker.pid, worker.created)
    assert other.alive(heartbeat_age=59, lease_s=300)


def test_passwords_are_not_shown():
    assert redact("postgresql://me:secret@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert redact("sqlite:///a@b:c") == "sqlite:///a@b:c"


def test_reading_stays_cheap_as_a_study_grows(tmp_path):
    """Finished trials are parsed once and handed out as they are."""
    with TrialStore(str(tmp_path / "s.journal"), spec(), runs=tmp_path) as store:
        for architecture in architectures():
            complete(store, architecture)
        first, second = store.trials(), store.trials()
    assert first is not second
    assert all(one is other for one, other in zip(first, second, strict=True))


def test_the_golden_journal_of_format_1_still_loads(tmp_path, here):
    """Made by ``golden/make.py``; a new format gets a new file beside it."""
    journal = tmp_path / "v1.journal"
    shutil.copy(here / "golden" / "v1.journal", journal)
    expected = json.loads((here / "golden" / "v1.json").read_text())
    with TrialStore(str(journal), spec("golden", reference=(0.0, 200.0)), runs=tmp_path) as store:
        assert [trial.to_dict() for trial in store.trials()] == expected["trials"]
        assert [trial.number for trial in store.interrupted()] == expected["interrupted"]
        assert begin(store, dict(store.interrupted()[0].architecture)).attempt == expected["next_attempt"]
