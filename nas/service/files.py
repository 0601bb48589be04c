"""Answers that carry a file of the cache: validators, ranges, and no more memory than a piece."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response, StreamingResponse

from nas.service.cache import Opened
from nas.service.problems import RefusedError

__all__ = ["file_answer"]

_PIECE = 1 << 20
_YEAR = 365 * 24 * 3600
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def file_answer(opened: Opened, headers: Mapping[str, str], *, name: str, public: bool, head: bool = False) -> Response:
    """Answer with a file, with a part of it, or with the news that the client has it already.

    The entity tag is the digest of the content, so it is the same in every process and after every restart. A request
    for several ranges is answered with the whole file, as RFC 9110 (Sec. 14.2) allows.

    Args:
        opened: the file; it is closed once it is sent.
        headers: of the request, in lower case.
        name: of the subnetwork.
        public: whether shared caches may keep the file.
        head: leave the content out.

    Raises:
        RefusedError: the range lies outside the file (416).
    """
    tag = f'"{opened.digest}"'
    common = {
        "ETag": tag,
        "Cache-Control": f"{'public' if public else 'private'}, max-age={_YEAR}, immutable",
        "Accept-Ranges": "bytes",
    }
    if _matches(headers.get("if-none-match", ""), tag):
        opened.file.close()
        return Response(status_code=304, headers=common)
    try:
        part = None if head else _part(headers, tag, opened.size)
    except RefusedError:
        opened.file.close()
        raise
    start, stop = part or (0, opened.size)
    common["Content-Length"] = str(stop - start)
    common["Content-Disposition"] = f'attachment; filename="{name}.{opened.filename.partition(".")[2]}"'
    if part is not None:
        common["Content-Range"] = f"bytes {start}-{stop - 1}/{opened.size}"
    status = 200 if part is None else 206
    media = "application/octet-stream"
    if head:
        opened.file.close()
        return Response(status_code=status, headers=common, media_type=media)
    if opened.in_memory:
        opened.file.seek(start)
        return Response(opened.file.read(stop - start), status_code=status, headers=common, media_type=media)
    return StreamingResponse(_pieces(opened, start, stop), status_code=status, headers=common, media_type=media)


def _matches(given: str, tag: str) -> bool:
    tags = [item.strip().removeprefix("W/") for item in given.split(",")]
    return "*" in tags or tag in tags


def _part(headers: Mapping[str, str], tag: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last, or ``None`` for the whole file."""
    found = _RANGE.fullmatch(headers.get("range", "").strip())
    if found is None or headers.get("if-range", tag) != tag:
        return None
    first, last = found.groups()
    if not first and not last:
        return None
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if first and last and int(last) < start:
        return None
    if start >= size or (not first and int(last) == 0):
        raise RefusedError(
            416,
            "range",
            f"the range must lie within the {size} bytes of the file, got {headers['range']}",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop


async def _pieces(opened: Opened, start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        await asyncio.to_thread(opened.file.seek, start)
        while start < stop:
            piece = await asyncio.to_thread(opened.file.read, min(_PIECE, stop - start))
            if not piece:
                return
            start += len(piece)
            yield piece
    finally:
        opened.file.close()
