"""Addresses of stores and trackers that are safe to show."""

from __future__ import annotations

import re

__all__ = ["redact"]

_PASSWORD = re.compile(r"(?<=://)([^/@:]*):[^/@]*@")


def redact(url: str) -> str:
    """Return the URL without its password.

    Example:
        >>> redact("postgresql://me:secret@host/db")
        'postgresql://me:***@host/db'
    """
    return _PASSWORD.sub(r"\1:***@", url)
