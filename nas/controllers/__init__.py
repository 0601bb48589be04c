"""Controllers: ask for architectures, tell what became of them."""

from nas.controllers.base import Controller, Problem

__all__ = ["Controller", "Problem"]
