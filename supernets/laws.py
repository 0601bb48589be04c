"""How the sizes of a build follow from the choices, found by building candidates on the meta device."""

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from search_spaces import Architecture, SearchSpace

__all__ = ["Branch", "Laws", "Presence", "RelaxationError", "joint"]

K = TypeVar("K", bound=Hashable)
_MOST = 4096


class RelaxationError(ValueError):
    """A space has no relaxed execution that equals its subnetworks."""


@dataclass(frozen=True)
class Branch:
    """The size of something where some choices have given values.

    Attributes:
        given: (choice, position of its candidate) for which this branch holds; empty: always.
        choices: what the size depends on then.
        sizes: ``(candidates of the first choice, ...)``, int64.
    """

    given: tuple[tuple[str, int], ...]
    choices: tuple[str, ...]
    sizes: Tensor


@dataclass(frozen=True)
class Presence:
    """Where something exists: the positions of one choice's candidates."""

    choice: str
    positions: tuple[int, ...]

    def __call__(self, relaxed: Mapping[str, Tensor]) -> Tensor:
        """Return the probability ``()``."""
        return relaxed[self.choice][list(self.positions)].sum()


def joint(weights: Sequence[Tensor]) -> Tensor:
    """Return the weights of all combinations of independent choices, flat, the last choice fastest."""
    flat = weights[0]
    for other in weights[1:]:
        flat = (flat[:, None] * other).flatten()
    return flat


class Laws(Generic[K]):
    """Size of each thing of a build as a function of the few choices that it depends on.

    The largest build is compared with builds in which one choice is smaller; where a size depends on several choices,
    all their combinations are built. A size that depends on a conditional choice, and exists without it too, is told
    apart by the choice that the condition is on.

    Args:
        space: builds.
        measure: architecture -> size of each thing it has.
        skip: choices that are left at their largest.

    Raises:
        RelaxationError: a size depends on more combinations than can be built.
    """

    def __init__(
        self, space: SearchSpace, measure: Callable[[Architecture], Mapping[K, int]], *, skip: Sequence[str] = ()
    ) -> None:
        self.space = space
        self._measure = measure
        self._choices = [choice for choice in space.choices if choice.name not in skip]
        self._architectures: dict[Architecture, Mapping[K, int]] = {}
        self._positions: dict[frozenset[tuple[str, int]], Mapping[K, int]] = {}
        self.largest = self._at({})
        self._absent: dict[K, dict[str, set[int]]] = {}
        self._elastic: set[K] = set()
        for choice in self._choices:
            for position in range(choice.size - 1):
                sizes = self._at({choice.name: position})
                for key, size in self.largest.items():
                    if key not in sizes:
                        self._absent.setdefault(key, {}).setdefault(choice.name, set()).add(position)
                    elif sizes[key] != size:
                        self._elastic.add(key)

    def _at(self, positions: Mapping[str, int]) -> Mapping[K, int]:
        """Measure the largest architecture but for some positions."""
        key = frozenset(positions.items())
        if key not in self._positions:
            values = {c.name: c.candidates[positions.get(c.name, c.size - 1)] for c in self.space.choices}
            architecture = self.space.architecture(values)
            if architecture not in self._architectures:
                self._architectures[architecture] = self._measure(architecture)
            self._positions[key] = self._architectures[architecture]
        return self._positions[key]

    def elastic(self, key: K) -> bool:
        """Return whether the size of ``key`` depends on a choice."""
        return key in self._elastic

    def presences(self, key: K) -> tuple[Presence, ...]:
        """Return where ``key`` exists: in all of these, and everywhere if there are none."""
        return tuple(
            Presence(name, tuple(p for p in range(self.space.choice(name).size) if p not in gone))
            for name, gone in self._absent.get(key, {}).items()
        )

    def of(self, key: K) -> tuple[Branch, ...]:
        """Return the size of ``key``, a thing of the largest build, where it exists."""
        if not self.elastic(key):
            return (Branch((), (), torch.tensor(self.largest[key])),)
        return tuple(self._branches(key, {}))

    def _branches(self, key: K, given: dict[str, int]) -> Iterator[Branch]:
        reference = self._at(given)[key]
        support = [
            choice
            for choice in self._choices
            if choice.name not in given
            and any(self._at(given | {choice.name: p}).get(key, reference) != reference for p in range(choice.size - 1))
        ]
        for parent, minimum in (choice.requires for choice in support if choice.requires is not None):
            lower = self.space.choice(parent)
            exists = [p for p in range(lower.size) if key in self._at(given | {parent: p})]
            if parent not in given and any(float(lower.candidates[p]) < minimum for p in exists):
                for position in exists:
                    yield from self._branches(key, given | {parent: position})
                return
        shape = [choice.size for choice in support]
        if math.prod(shape) > _MOST:
            raise RelaxationError(
                f"{key} depends on {[choice.name for choice in support]} together, {math.prod(shape)} combinations; "
                f"differentiable search takes at most {_MOST}, give these choices fewer candidates"
            )
        names = [choice.name for choice in support]
        sizes = [
            self._at(given | dict(zip(names, positions, strict=True))).get(key, 0)
            for positions in itertools.product(*map(range, shape))
        ]
        yield Branch(tuple(given.items()), tuple(names), torch.tensor(sizes).view(shape))
