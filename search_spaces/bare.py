"""Constructing single layers without running their initialisers."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import nn

__all__ = ["bare_layers", "layer"]

Layer = TypeVar("Layer", bound=nn.Module)
_BARE: ContextVar[bool] = ContextVar("bare_layers", default=False)


@contextmanager
def bare_layers() -> Iterator[None]:
    """Inside, in this thread, :func:`layer` leaves the parameters of new layers uninitialised."""
    token = _BARE.set(True)
    try:
        yield
    finally:
        _BARE.reset(token)


def _nothing() -> None:
    """Stand in for ``reset_parameters``."""


def layer(kind: type[Layer], *args: Any, **kwargs: Any) -> Layer:
    """Return ``kind(*args, **kwargs)``; inside :func:`bare_layers` without calling its ``reset_parameters``.

    Half the time of building a convolution or a norm is spent in ``reset_parameters``, even when every single
    initialiser in it is skipped. For layers whose ``reset_parameters`` does no more than fill parameters and put
    buffers back to the values their constructor gave them, as all of ``torch.nn`` do.
    """
    if not _BARE.get():
        return kind(*args, **kwargs)
    made = kind.__new__(kind)
    made.__dict__["reset_parameters"] = _nothing  # the instance's own attribute hides the method of its class
    kind.__init__(made, *args, **kwargs)
    del made.__dict__["reset_parameters"]
    return made
