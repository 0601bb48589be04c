"""What a client is told when a request is refused."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["Problem", "RefusedError", "refusals"]


class Problem(BaseModel):
    """Why a request was refused.

    Attributes:
        error: a word for programs.
        message: what is required, what was given and what to do, for people.
        request_id: to find the request in the log.
    """

    error: str
    message: str
    request_id: str = ""


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        error: a word for programs.
        message: for people.
        headers: of the answer.
    """

    def __init__(self, status: int, error: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.headers = dict(headers or {})


_MEANINGS = {
    400: "the request is no valid HTTP or no valid JSON",
    401: "a token is needed: `Authorization: Bearer TOKEN`",
    404: "there is no such thing",
    405: "the path exists, with other methods",
    408: "the client was too slow in sending the request",
    413: "the body is larger than this service takes",
    416: "the range lies outside the file",
    422: "the request cannot be met; the message says why and what can",
    429: "too much is waiting already; see `Retry-After`",
    503: "not ready, or the computation took too long; see `Retry-After`",
}


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of refusals for the OpenAPI document."""
    return {code: {"model": Problem, "description": _MEANINGS[code]} for code in sorted({400, 405, 408, 413, *codes})}
