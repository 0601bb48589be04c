"""What every request passes: identity, token, rate, size, time; then the log and the counters."""

import asyncio
import hashlib
import json
import logging
import re
import secrets
import time
import uuid
from collections import OrderedDict
from typing import Any, final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nas.service.observe import Meters
from nas.service.problems import RefusedError
from nas.service.settings import ServiceSettings

__all__ = ["Guard", "problem_body"]

_logger = logging.getLogger("nas.service")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_OPEN = frozenset({"/livez", "/readyz", "/docs", "/openapi.json"})
_CLIENTS = 10_000


def problem_body(error: str, message: str, request_id: str) -> bytes:
    """Return the JSON body of a refusal."""
    return json.dumps({"error": error, "message": message, "request_id": request_id}).encode()


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


@final
class _Rates:
    """A bucket of one second's requests for each client address; the addresses unseen for longest are forgotten."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Take one request; return the seconds after which one is free where there is none."""
        now, full = time.monotonic(), max(1.0, self.rate)
        left, seen = self._buckets.pop(client, (full, now))
        left = min(full, left + (now - seen) * self.rate)
        granted = left >= 1.0
        self._buckets[client] = (left - 1.0 if granted else left, now)
        if len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if granted else (1.0 - left) / self.rate


@final
class Guard:
    """ASGI middleware round the whole service.

    Args:
        app: what is guarded.
        settings: token and limits.
        meters: count the answers.
    """

    def __init__(self, app: ASGIApp, *, settings: ServiceSettings, meters: Meters) -> None:
        self.app = app
        self.settings = settings
        self.meters = meters
        self._token = None if settings.token is None else _digest(settings.token.encode())
        self._rates = None if settings.rate is None else _Rates(settings.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()

    def check(self, path: str, headers: dict[bytes, bytes], client: str) -> None:
        """Let a request pass by what its head says.

        Raises:
            RefusedError: it may not.
        """
        if path in _OPEN:
            return
        if self._token is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            fits = secrets.compare_digest(_digest(given.strip()), self._token)
            if scheme.lower() != b"bearer" or not fits:
                raise RefusedError(
                    401,
                    "token_needed",
                    "this service needs the header `Authorization: Bearer TOKEN` with its token",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        wait = 0.0 if self._rates is None else self._rates.wait(client)
        if wait > 0:
            raise RefusedError(
                429,
                "rate",
                f"this service takes {self.settings.rate:g} requests per second of one client; wait {wait:.2f} s",
                headers={"Retry-After": str(max(1, round(wait + 0.5)))},
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.settings.max_body:
            raise self.too_large()

    def too_large(self) -> RefusedError:
        """Return the refusal of a body that is too large."""
        return RefusedError(
            413,
            "body_too_large",
            f"a request may have {self.settings.max_body:,} bytes",
            headers={"Connection": "close"},
        )


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard = guard
        self.scope = scope
        self._receive = receive
        self._send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        self.client = str((scope.get("client") or ("unknown",))[0])
        self.received = 0
        self.complete = False
        self.status = 0
        self.refusal: RefusedError | None = None
        self._refused = False
        self._deadline: float | None = None

    async def run(self) -> None:
        """Serve, refuse what must be refused, log and count."""
        started = time.perf_counter()
        try:
            try:
                self.guard.check(self.scope["path"], self.headers, self.client)
                await self.guard.app(self.scope, self.receive, self.send)
            except RefusedError as refusal:
                await self._refuse(refusal)
        except _StalledError:
            _logger.info("stalled", extra={"fields": {"event": "client_stalled", "request_id": self.request_id}})
        except Exception:
            _logger.exception("failed", extra={"fields": {"event": "failed", "request_id": self.request_id}})
            if not self.status:
                await self._refuse(RefusedError(500, "internal", "an error of the service; its log has the request id"))
        finally:
            self._note(started)

    async def receive(self) -> Message:
        """Pass a piece of the request on, as long as size and time allow."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.guard.settings.stall
        if self.complete or self.status:  # all that can come is that the client leaves
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            self.refusal = RefusedError(
                408,
                "too_slow",
                f"a request must arrive within {self.guard.settings.stall:g} s",
                headers={"Connection": "close"},
            )
            raise self.refusal from None
        self.complete = not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        if self.received > self.guard.settings.max_body:
            self.refusal = self.guard.too_large()
            raise self.refusal
        return message

    async def send(self, message: Message) -> None:
        """Pass a piece of the answer on, as long as the client takes it."""
        if self._refused:
            return
        if self.refusal is not None:  # the framework has made an answer of its own from what receive raised
            await self._refuse(self.refusal)
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", []),
                (b"x-request-id", self.request_id.encode()),
                (b"x-content-type-options", b"nosniff"),
            ]
        try:
            async with asyncio.timeout(self.guard.settings.stall):
                await self._send(message)
        except TimeoutError:
            raise _StalledError from None

    async def _refuse(self, refusal: RefusedError) -> None:
        if self.status:
            return
        self.refusal = None
        self.status = refusal.status
        body = problem_body(refusal.error, refusal.message, self.request_id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        encoded = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})
        self._refused = True

    def _note(self, started: float) -> None:
        found: Any = self.scope.get("route")
        route = getattr(found, "path", "none")
        self.guard.meters.answered(route, self.status, started)
        fields = {
            "event": "request",
            "request_id": self.request_id,
            "client": self.client,
            "method": self.scope["method"],
            "path": self.scope["path"],
            "status": self.status,
            "ms": round(1000 * (time.perf_counter() - started), 2),
        }
        _logger.info("request", extra={"fields": fields})


class _StalledError(Exception):
    """A client takes nothing in any more."""
