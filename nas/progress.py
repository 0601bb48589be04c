"""Progress as one line: rewritten in a terminal, now and then elsewhere."""

import sys
import time
from typing import TextIO

__all__ = ["Progress", "clock"]

_WIDTH = 24
_REFRESH_S = 0.1
_QUIET_SHARE = 0.25


def clock(seconds: float) -> str:
    """Return a duration as people read it.

    >>> clock(75), clock(3700)
    ('01:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


class Progress:
    """How far one stage has come, with the time left.

    In a terminal one line is rewritten up to ten times a second; elsewhere a line appears at every quarter.

    Args:
        stage: shown in brackets, e.g. ``fit``.
        total: number of units.
        unit: what is counted, in plural.
        stream: standard error by default.
    """

    def __init__(self, stage: str, total: int, unit: str, *, stream: TextIO | None = None) -> None:
        self.stage = stage
        self.total = max(1, total)
        self.unit = unit
        self.stream = sys.stderr if stream is None else stream
        self._live = self.stream.isatty()
        self._begun = time.monotonic()
        self._first: int | None = None
        self._shown_at = 0.0
        self._shown = -1.0
        self._length = 0

    def update(self, done: int, detail: str = "") -> None:
        """Show that ``done`` units are finished, and ``detail`` beside them.

        What was done before the first update, in an earlier run, does not count for the time left.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = done
        share = min(1.0, done / self.total)
        if self._live:
            if now - self._shown_at < _REFRESH_S and done < self.total:
                return
        elif share < 1.0 and share < self._shown + _QUIET_SHARE:
            return
        if not self._live and share == self._shown:
            return
        self._shown_at, self._shown = now, share
        self._write(self._line(done, share, detail, now - self._begun))

    def close(self) -> None:
        """End the line, so that what follows starts on its own."""
        if self._live and self._length:
            self.stream.write("\n")
            self.stream.flush()
            self._length = 0

    def _line(self, done: int, share: float, detail: str, elapsed: float) -> str:
        advanced = done - (self._first or 0)
        left = clock(elapsed / advanced * (self.total - done)) if advanced > 0 else "--:--"
        when = f"took {clock(elapsed)}" if done >= self.total else f"ETA {left}"
        middle = f", {detail}" if detail else ""
        filled = round(_WIDTH * share)
        bar = f"{'█' * filled}{'░' * (_WIDTH - filled)} " if self._live else ""
        return f"[{self.stage}] {bar}{done}/{self.total} {self.unit}{middle}, {when}"

    def _write(self, line: str) -> None:
        if self._live:
            self.stream.write(f"\r{line}{' ' * max(0, self._length - len(line))}")
            self._length = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()
