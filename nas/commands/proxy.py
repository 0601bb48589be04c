"""``nas proxy``: Optuna's gRPC proxy in front of a database."""

import sys

from nas.commands.silence import silenced
from trials import Proxy, redact

__all__ = ["proxy"]


def proxy(storage: str, *, host: str = "localhost", port: int = 13000, threads: int = 10) -> None:
    """Let many workers reach one database through Optuna's gRPC proxy, until Ctrl-C.

    Workers say --search.storage grpc://HOST:PORT. The proxy asks for no password and does not encrypt: run it where
    only your own machines can reach it.

    Args:
        storage: the database, such as postgresql://USER@HOST/NAME; the password may come in PGPASSWORD.
        host: address to listen on; 0.0.0.0 for every address of this machine.
        port: port to listen on.
        threads: requests that are answered at the same time.

    Raises:
        ValueError: the storage is no database.
        StoreUnavailableError: the database cannot be reached, or the port is taken.
    """
    with silenced(), Proxy(storage, host=host, port=port, threads=threads) as running:
        print(f"[proxy] grpc://{host}:{port} in front of {redact(storage)}", file=sys.stderr, flush=True)
        running.wait()
