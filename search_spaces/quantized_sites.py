"""Where the layers of a space are that can be quantised, and which choice decides whether each is there."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.choice import Candidate
from search_spaces.skeleton import skeleton
from search_spaces.space import SearchSpace

__all__ = ["QuantizedSite", "find_sites", "quantizable", "representatives"]

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EXAMPLES = 8


@dataclass(frozen=True)
class QuantizedSite:
    """One linear or convolutional layer.

    Attributes:
        name: of the module.
        signed: whether its input may be negative.
        requires: ``(choice, minimum)`` of the ordinal choice that decides whether it exists; ``None``: it always does.
        varies: the choices that decide whether it exists where that is no such rule; empty otherwise.
    """

    name: str
    signed: bool
    requires: tuple[str, float] | None
    varies: tuple[str, ...] = ()


def quantizable(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the linear and convolutional layers that are called with one input and whose weight is theirs alone."""
    owners: dict[int, int] = {}
    for layer in module.modules():
        for parameter in layer._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, layer in module.named_modules():
        if isinstance(layer, _KINDS) and owners[id(layer.weight)] == 1:
            yield name, layer


def find_sites(space: SearchSpace) -> list[QuantizedSite]:
    """Return the layers that run in some architecture, in the order in which the largest one runs them.

    Architectures are built on meta to see what is there, and a few are run with random weights and inputs to see what
    is called and whether its input is ever negative.

    Raises:
        ValueError: where layers are is no function of single choices, and the message says which.
    """
    present = {architecture: _names(space, architecture) for architecture in space.probes()}
    if any("" in names for names in present.values()):
        raise ValueError(
            f"QuantizedSpace needs layers inside a network, but that of {type(space).__name__} is a layer itself and "
            "has no name; put it into nn.Sequential"
        )
    signs = _signs(space, present)
    conditions = _Conditions(space, signs.keys())
    return [QuantizedSite(name, signed, *conditions(name)) for name, signed in signs.items()]


def _names(space: SearchSpace, architecture: Architecture) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(name for name, _ in quantizable(skeleton(space, architecture)))


def _signs(space: SearchSpace, present: Mapping[Architecture, frozenset[str]]) -> dict[str, bool]:
    """Layer -> whether an input of it was negative, for the layers that were called."""
    found: dict[str, bool] = {}
    for architecture in representatives(space):
        _run(space, architecture, found)
    tried = set(found)
    for architecture, names in present.items():
        if names - tried:
            _run(space, architecture, found)
            tried |= names
    return found


def representatives(space: SearchSpace) -> list[Architecture]:
    """Largest, smallest, and architectures that between them have every candidate of every categorical choice."""
    categorical = [choice for choice in space.choices if choice.kind == "categorical"]
    top = space.largest()
    found = {top: None, space.smallest(): None}
    for index in range(max((choice.size for choice in categorical), default=0)):
        values: dict[str, Candidate] = {c.name: c.candidates[min(index, c.size - 1)] for c in categorical}
        found[space.architecture({**top, **values})] = None
    return list(found)


def _run(space: SearchSpace, architecture: Architecture, found: dict[str, bool]) -> None:
    """Run one architecture with random weights, and note which layers are called with what."""

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given: Tensor = args[0] if args else kwargs["input"]
            found[name] = found.get(name, False) or bool((given < 0).any())

        return hook

    with torch.random.fork_rng(devices=[]), torch.device("cpu"), contextlib.ExitStack() as stack:
        torch.manual_seed(0)
        module = space.build(architecture).eval()
        for name, layer in quantizable(module):
            stack.callback(layer.register_forward_pre_hook(watch(name), with_kwargs=True).remove)
        stack.enter_context(torch.enable_grad())  # fused attention, which calls no layers, is for inference alone
        inputs = [
            torch.randn(x.shape, dtype=x.dtype) if x.is_floating_point() else torch.randint(2, x.shape, dtype=x.dtype)
            for x in space.inputs(architecture, _EXAMPLES)
        ]
        module(*inputs)


class _Conditions:
    """Which single ordinal choice decides whether a layer exists.

    Args:
        space: the space.
        names: the layers.
    """

    def __init__(self, space: SearchSpace, names: Any) -> None:
        self._space = space
        top = space.largest()
        self._absent: dict[str, dict[str, list[Candidate]]] = {name: {} for name in names}
        for choice in space.choices:
            if choice.name not in top:
                continue
            for candidate in choice.candidates:
                there = _names(space, space.architecture({**top, choice.name: candidate}))
                for name in self._absent.keys() - there:
                    self._absent[name].setdefault(choice.name, []).append(candidate)

    def __call__(self, name: str) -> tuple[tuple[str, float] | None, tuple[str, ...]]:
        """Return ``requires`` and ``varies`` of a layer."""
        absent = self._absent[name]
        deciding = [choice for choice in absent if not any(choice in self._ancestors(other) for other in absent)]
        if not deciding:
            return None, ()
        choice = self._space.choice(deciding[0])
        kept = [candidate for candidate in choice.candidates if candidate not in absent[choice.name]]
        ordered = choice.kind == "ordinal" and kept and kept == list(choice.candidates[-len(kept) :])
        if len(deciding) > 1 or not ordered or isinstance(kept[0], str):
            return None, tuple(deciding)
        return (choice.name, kept[0]), ()

    def _ancestors(self, name: str) -> set[str]:
        """Return the choices without which a choice does not exist."""
        found: set[str] = set()
        requires = self._space.choice(name).requires
        while requires is not None:
            found.add(requires[0])
            requires = self._space.choice(requires[0]).requires
        return found
