"""Files that are either whole or absent, and a lock that dies with its process."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from trials.trial import Outcome

__all__ = ["JournalLock", "OutcomeFolder", "write_atomically"]

_POLL_S = 0.001


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, or a machine that loses power, sees all of it or nothing.

    Args:
        path: The file; its folder is created when missing.
        text: The content, stored as UTF-8.

    Raises:
        OSError: If the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class OutcomeFolder:
    """Where evaluating processes leave their results before the study's store has them.

    A result is worth more than the process that asked for it: it is written by the process that computed it, and
    removed once the store has recorded it. The object is picklable, so ``OutcomeFolder.write`` can be the ``record``
    of a process executor.

    Args:
        folder: The folder; created by the first write.
        token: Identity of the study. Files left by an earlier study of the same name are not mistaken for this one's.
    """

    folder: Path
    token: str

    def path(self, number: int) -> Path:
        """Return the file of trial ``number``."""
        return self.folder / f"{number}.json"

    def write(self, number: int, outcome: Outcome) -> None:
        """Keep the outcome of trial ``number`` durably.

        Raises:
            OSError: If the folder cannot be written.
        """
        text = json.dumps({"token": self.token, "outcome": outcome.to_dict()}, allow_nan=False)
        write_atomically(self.path(number), text)

    def read(self, number: int) -> Outcome | None:
        """Return the outcome kept for trial ``number``, or ``None`` when there is none of this study."""
        try:
            data: Mapping[str, Any] = json.loads(self.path(number).read_text(encoding="utf-8"))
            return Outcome.from_dict(data["outcome"]) if data["token"] == self.token else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def numbers(self) -> list[int]:
        """Return the trials for which there is a file, of whatever study."""
        return sorted(int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdigit())

    def discard(self, number: int) -> None:
        """Forget the outcome of trial ``number``; nothing happens when there is none."""
        self.path(number).unlink(missing_ok=True)


class JournalLock:
    """Exclusive right to append to a journal file.

    The operating system releases it when the holder dies, so a killed process never blocks the next one. On acquiring,
    a last line that was cut short (a full disk, a power loss) is removed, because it would corrupt the line after it.

    Args:
        path: The journal file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.flock")

    def acquire(self) -> bool:
        """Wait for the right to append, mend the end of the file, and return ``True``."""
        self._lock.acquire(poll_interval=_POLL_S)
        self._mend()
        return True

    def release(self) -> None:
        """Give the right back."""
        self._lock.release()

    def _mend(self) -> None:
        with open(self.path, "ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end == 0:
                return
            file.seek(end - 1)
            if file.read(1) == b"\n":
                return
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
