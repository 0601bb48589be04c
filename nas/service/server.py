"""Running the service: one process or several, within safe bounds."""

import asyncio
import ipaddress
import os
import tempfile
from pathlib import Path
from typing import Any, final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nas.service.app import SETTINGS, create_app
from nas.service.observe import MULTIPROCESS, log_to_stderr
from nas.service.settings import TOKEN, ServiceSettings

__all__ = ["PatientProtocol", "configure", "is_loopback", "serve_forever"]

_HEAD_SECONDS = 10.0
_GRACE = 20


@final
class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose next request head does not arrive in ten seconds.

    uvicorn itself waits for ever for the first request, and for the rest of a head that has begun, so that clients
    could hold connections at no cost.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in a piece; stop waiting once a head is complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._rest()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def configure(app: Any, *, host: str, port: int, workers: int = 1) -> uvicorn.Config:
    """Return uvicorn's configuration for an application, or for the import path of a factory."""
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        host=host,
        port=port,
        workers=workers,
        http=PatientProtocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=512,
        limit_concurrency=1000,
        timeout_keep_alive=15,
        timeout_worker_healthcheck=60,
        timeout_graceful_shutdown=_GRACE,
    )


def serve_forever(settings: ServiceSettings, *, host: str, port: int, workers: int) -> None:
    """Serve until a signal comes; what has begun is ended first."""
    log_to_stderr()
    if workers == 1:
        uvicorn.Server(configure(create_app(settings), host=host, port=port)).run()
        return
    os.environ[SETTINGS] = settings.to_json()
    if settings.token is not None:
        os.environ[TOKEN] = settings.token
    Path(settings.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nas-metrics-") as counters:
        os.environ[MULTIPROCESS] = counters
        config = configure("nas.service.app:from_environment", host=host, port=port, workers=workers)
        from uvicorn.supervisors import Multiprocess

        Multiprocess(config, sockets=[config.bind_socket()]).run()
