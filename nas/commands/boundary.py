"""Where mistakes of the user become one line: what is required, what was given, how to fix it."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

from nas.commands.messages import shorten

__all__ = ["INTERRUPTED", "USAGE", "UsageError", "guarded", "one_line"]

USAGE = 2
INTERRUPTED = 130
_PACKAGES = frozenset({"search_spaces", "hypernets", "supernets", "trials", "nas", "lightning"})


class UsageError(ValueError):
    """The command line or the configuration asks for something that cannot be done."""


def guarded(work: Callable[[], int | None]) -> int:
    """Run ``work`` and return the exit code, reporting what the user can fix as one line on stderr.

    A mistake gives exit code 2 and no traceback unless ``NAS_TRACEBACK=1``; Ctrl-C gives 130. Anything else is a defect
    of ours and keeps its traceback.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if not _expected(error):
            raise
        if os.environ.get("NAS_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return USAGE


def _expected(error: Exception) -> bool:
    """Whether the error names something outside the program; ours do, and those of files, values and imports."""
    home = type(error).__module__.partition(".")[0]
    return home in _PACKAGES or isinstance(error, ValueError | OSError | ImportError)


def one_line(error: BaseException) -> str:
    """Return the message of ``error`` on one line, files and system errors by name."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"{where}{error.strerror} ({os.getcwd()}, {tempfile.gettempdir()}); free some and repeat the command"
        return f"{where}{error.strerror}; check the path and its permissions"
    text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
    if text.startswith("Does not validate against any"):  # what the parser makes of a constructor's own message
        text = shorten(text)
    return " ".join(text.split()) or type(error).__name__
