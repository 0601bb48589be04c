"""The log of NNI, which tells more than a user of ours wants to know."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]


@contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Keep messages of NNI below ``level`` to themselves, such as which seeds its tuners use."""
    log = logging.getLogger("nni")
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
