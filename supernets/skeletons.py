"""Per-thread reuse of what is expensive to derive from an architecture."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces import Architecture, SearchSpace, skeleton

__all__ = ["Skeletons", "ThreadCache", "kept"]


def _places(module: nn.Module) -> Iterator[str]:
    """Names of parameters and persistent buffers, a layer registered under several names once."""
    for prefix, layer in module.named_modules():
        for leaf, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None and leaf not in layer._non_persistent_buffers_set:
                yield f"{prefix}.{leaf}" if prefix else leaf


K = TypeVar("K")
V = TypeVar("V")


class ThreadCache(Generic[K, V]):
    """A small least-recently-used cache per thread; copies and pickles of it are empty.

    Args:
        maxsize: entries kept per thread.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self._local = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.maxsize,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ThreadCache[K, V]":
        return type(self)(self.maxsize)

    @property
    def _entries(self) -> OrderedDict[K, V]:
        entries: OrderedDict[K, V] | None = getattr(self._local, "entries", None)
        if entries is None:
            entries = self._local.entries = OrderedDict()
        return entries

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the entry of ``key``, made by ``make`` where absent."""
        entries = self._entries
        if key not in entries:
            entries[key] = make()
            if len(entries) > self.maxsize:
                entries.popitem(last=False)
        entries.move_to_end(key)
        return entries[key]

    def pop(self, key: K) -> V | None:
        """Remove and return the entry of ``key``, ``None`` where absent."""
        return self._entries.pop(key, None)


def kept(space: SearchSpace, name: str, maxsize: int) -> ThreadCache[Any, Any]:
    """Return the cache ``name`` of what follows from ``space`` alone; it lives with the space, for all its sources."""
    cache: ThreadCache[Any, Any] = vars(space).setdefault(name, ThreadCache(maxsize))
    return cache


class Skeletons:
    """Modules of a space without weights, to be called with tensors of a weight source.

    Args:
        space: builds them.
        maxsize: skeletons kept per thread.
    """

    def __init__(self, space: SearchSpace, maxsize: int = 32) -> None:
        self.space = space
        self.maxsize = maxsize
        self._cache: ThreadCache[tuple[Architecture, torch.device], nn.Module] = ThreadCache(maxsize)

    def _build(self, architecture: Architecture, device: torch.device) -> nn.Module:
        if device == torch.get_default_device():
            return skeleton(self.space, architecture)
        with device:
            return skeleton(self.space, architecture)

    def borrow(self, architecture: Architecture, device: torch.device) -> nn.Module:
        """Return this thread's skeleton of ``architecture``; call it functionally, never change it."""
        return self._cache.get((architecture, device), lambda: self._build(architecture, device))

    def call(
        self, architecture: Architecture, device: torch.device, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...]
    ) -> Any:
        """Run this thread's skeleton of ``architecture`` with ``tensors`` in place of its own, in its present mode."""
        module = self.borrow(architecture, device)
        if any(parameter.untyped_storage().size() for parameter in itertools.islice(module.parameters(), 1)):
            for parameter in module.parameters():  # kept for many steps, and its values are never read
                parameter.untyped_storage().resize_(0)
        if len(tensors) > sum(1 for _ in _places(module)):  # a layer under several names is filled once
            tensors = {name: tensors[name] for name in _places(module)}
        return functional_call(module, dict(tensors), inputs, tie_weights=False)

    def take(self, architecture: Architecture, device: torch.device) -> nn.Module:
        """Return a skeleton that the caller owns."""
        return self._cache.pop((architecture, device)) or self._build(architecture, device)
