"""Optuna's gRPC proxy: many workers reach one database through one process that keeps its connections."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from optuna.storages._grpc.server import make_server

from trials.storages import StoreUnavailableError, open_storage
from trials.urls import redact

__all__ = ["Proxy"]

_GRACE_S = 2.0


class Proxy:
    """A running proxy; workers use ``grpc://HOST:PORT`` as their storage.

    There is neither a password nor encryption: run it where only your own machines can reach it.

    Args:
        url: The database behind it. A journal file cannot be shared in this way.
        host: Address to listen on.
        port: Port to listen on.
        threads: How many requests are answered at the same time.

    Raises:
        ValueError: If the storage is no database.
        StoreUnavailableError: If the storage cannot be opened, or the port is taken.
    """

    def __init__(self, url: str, *, host: str = "localhost", port: int = 13000, threads: int = 10) -> None:
        if "://" not in url or url.startswith("grpc://"):
            raise ValueError(
                f"the proxy needs a database behind it, such as postgresql://..., got {redact(url)}; "
                "Optuna's proxy cannot serve a journal file"
            )
        self.url = url
        self.host = host
        self.port = port
        self.threads = threads
        storage = open_storage(url)
        try:
            self._server = make_server(storage, host, port, ThreadPoolExecutor(threads))
        except RuntimeError as error:
            raise StoreUnavailableError(f"port {port} of {host} must be free for the proxy ({error})") from error
        self._server.start()

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        self._server.wait_for_termination()

    def close(self) -> None:
        """Finish the requests under way and stop."""
        self._server.stop(_GRACE_S).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
