"""Opening the storage of a study by its address: a journal file, a database, or Optuna's gRPC proxy."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from trials.files import JournalLock
from trials.urls import redact

__all__ = ["StoreUnavailableError", "database_url", "open_storage", "reaching"]

_CONNECT_S = 30
_SQLITE_S = 60
_LAST_TABLE = "alembic_version"  # of those that Optuna creates
_ADVISORY_LOCK = 0x6E6173  # any number, the same in every process
_GRPC_PORT = 13000
_POSTGRES_PORT = 5432
_DRIVERS = ("psycopg", "psycopg2", "pg8000")
_LIBRARIES = frozenset({"sqlalchemy", "grpc", *_DRIVERS})


class StoreUnavailableError(RuntimeError):
    """The storage of a study cannot be reached."""


def open_storage(url: str, *, must_exist: bool = False) -> BaseStorage:
    """Return the storage at an address.

    Args:
        url: Path of a journal file; ``sqlite:///FILE``, ``postgresql://USER@HOST/DATABASE`` or another database that
            SQLAlchemy has a driver for; ``grpc://HOST:PORT`` for Optuna's proxy in front of a database.
        must_exist: Whether to refuse a journal file that does not exist.

    Raises:
        StoreUnavailableError: If the storage cannot be opened.
    """
    try:
        if url.startswith("grpc://"):
            return _proxy(url)
        if "://" in url:
            return _database(database_url(url))
        path = Path(url).absolute()
        if must_exist and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(str(path))))  # type: ignore[arg-type]
    except Exception as error:
        raise StoreUnavailableError(
            f"the store of a study must be a journal file or a reachable database, got {redact(url)} "
            f"({_reason(error)}); check the path, the permissions and the URL"
        ) from error


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn the errors of a storage that has gone away into :class:`StoreUnavailableError`; others pass."""
    try:
        yield
    except Exception as error:
        libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if isinstance(error, StorageInternalError | OSError) or libraries & _LIBRARIES:
            raise StoreUnavailableError(
                f"the store {redact(url)} must stay reachable, it does not answer ({_reason(error)}); nothing that was "
                "recorded is lost: repeat the command when it is back"
            ) from error
        raise


def database_url(url: str) -> str:
    """Return the address with an installed driver for PostgreSQL, others as they are.

    A plain ``postgresql://`` leaves the driver to us: psycopg where it is installed, else pg8000 of the extra
    ``cluster``, which is given the socket folder of ``?host=/FOLDER`` and the password in ``PGPASSWORD`` in its way.

    Raises:
        ValueError: If no driver is installed.
    """
    scheme, separator, rest = url.partition("://")
    if scheme not in ("postgres", "postgresql"):
        return url
    driver = next((name for name in _DRIVERS if find_spec(name) is not None), None)
    if driver is None:
        raise ValueError("PostgreSQL needs a driver; run `pip install 'weightloom[cluster]'`")
    translated = f"postgresql+{driver}{separator}{rest}"
    return _for_pg8000(urlsplit(translated)) if driver == "pg8000" else translated


def _for_pg8000(parts: SplitResult) -> str:
    query = dict(parse_qsl(parts.query))
    folder = query.pop("host", None)
    if folder is not None:
        query["unix_sock"] = f"{folder}/.s.PGSQL.{query.pop('port', parts.port or _POSTGRES_PORT)}"
    place = parts.netloc
    password = os.environ.get("PGPASSWORD")
    if parts.username and not parts.password and password:
        _, _, host = place.rpartition("@")
        place = f"{parts.username}:{quote(password, safe='')}@{host}"
    # written by hand: urlunsplit drops the two slashes of an empty host
    return f"{parts.scheme}://{place}{parts.path}" + (f"?{urlencode(query, safe='/')}" if query else "")


def _database(url: str) -> BaseStorage:
    """Open a database; of several processes that find it empty at once, one creates the tables and the others wait."""
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        options = {"connect_args": {"timeout": _SQLITE_S}}
    elif url.startswith("postgresql"):
        limit = "timeout" if "+pg8000" in url else "connect_timeout"
        options = {"connect_args": {limit: _CONNECT_S}, "pool_pre_ping": True}
    with _creating(url, options) as there:
        backend = RDBStorage(url, engine_kwargs=options, skip_table_creation=there)
    storage = get_storage(backend)
    _when_gone(storage, backend.engine.dispose)
    return storage


@contextmanager
def _creating(url: str, options: Mapping[str, Any]) -> Iterator[bool]:
    """Yield whether the tables are there; if not, with the right to create them.

    That right is a lock of PostgreSQL, or a lock file beside a database file; other databases have neither.
    """
    from sqlalchemy import NullPool, create_engine, func, inspect, make_url, select

    place = make_url(url)
    file = place.get_backend_name() == "sqlite" and place.database not in (None, "", ":memory:")
    engine = create_engine(url, connect_args=options.get("connect_args", {}), poolclass=NullPool)
    with FileLock(f"{place.database}.lock") if file else nullcontext(), engine.connect() as connection:
        there = inspect(connection).has_table(_LAST_TABLE)
        if not there and place.get_backend_name() == "postgresql":
            connection.execute(select(func.pg_advisory_lock(_ADVISORY_LOCK)))
        yield there


def _when_gone(storage: BaseStorage, close: Callable[[], object]) -> None:
    """Close the connections of a storage that nobody holds any more."""
    weakref.finalize(storage, close).atexit = False


def _proxy(url: str) -> BaseStorage:
    if find_spec("grpc") is None or find_spec("google.protobuf") is None:
        raise ValueError("the gRPC proxy needs `pip install 'weightloom[cluster]'`")
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.path.strip("/"):
        raise ValueError("an address of the proxy must read grpc://HOST:PORT")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = GrpcStorageProxy(host=parts.hostname, port=parts.port or _GRPC_PORT)
    try:
        storage.wait_server_ready(timeout=_CONNECT_S / 3)
    finally:
        _when_gone(storage, storage._channel.close)
    return storage


def _reason(error: BaseException) -> str:
    """Return kind and first line of the error at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    lines = str(getattr(original, "details", lambda: original)()).strip().splitlines()
    return f"{type(original).__name__}: {lines[0] if lines else 'no message'}"
