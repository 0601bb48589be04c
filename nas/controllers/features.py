"""Architectures as vectors that say how alike two of them are, for regressors."""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from search_spaces import Architecture, Candidate, SearchSpace

__all__ = ["Features"]

Floats = NDArray[np.float64]
_REMEMBERED = 2048


@final
class Features:
    """Vectors whose squared Euclidean distance is the unlikeness of two architectures.

    *Choices*: for each ordinal choice the position of its candidate in [0, 1], for each categorical one a one-hot
    vector over the square root of two, so that the largest distance is one for both; for a conditional choice another
    number that is 1 where it is present, and zeros where it is absent.

    *Motifs*: the counts of :meth:`search_spaces.SearchSpace.motifs`, where the space has any. They are equal for equal
    networks, however these are written, and alike for networks that compute alike.

    Args:
        space: where the architectures come from.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._columns: dict[str, tuple[int, int]] = {}
        width = 0
        for choice in space.choices:
            size = choice.size if choice.kind == "categorical" else 1
            self._columns[choice.name] = (width, size)
            width += size + (choice.requires is not None)
        self._width = width
        self._motifs: dict[str, int] = {}
        self._entries: dict[tuple[str, type, Candidate], tuple[tuple[int, float], ...]] = {}
        self._known: dict[Architecture, tuple[list[float], Mapping[str, int]]] = {}

    def __call__(self, architectures: Sequence[Architecture]) -> tuple[Floats, Floats]:
        """Return the vectors of the choices, ``(N, D)``, and the counts of the motifs, ``(N, M)``.

        Columns of motifs that come up later are appended; ``M`` may be 0.
        """
        found = [self._features(architecture) for architecture in architectures]
        for _, counts in found:
            for name in counts:
                self._motifs.setdefault(name, len(self._motifs))
        motifs = np.zeros((len(found), len(self._motifs)))
        for row, (_, counts) in zip(motifs, found, strict=True):
            for name, count in counts.items():
                row[self._motifs[name]] = count
        return np.array([vector for vector, _ in found]), motifs

    def _features(self, architecture: Architecture) -> tuple[list[float], Mapping[str, int]]:
        """Return vector and motifs; those of some thousand architectures are remembered."""
        known = self._known.get(architecture)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            known = self._known[architecture] = self._vector(architecture), self.space.motifs(architecture)
        return known

    def _vector(self, architecture: Architecture) -> list[float]:
        vector = [0.0] * self._width
        for name, value in architecture.items():
            for column, number in self._entry(name, value):
                vector[column] = number
        return vector

    def _entry(self, name: str, value: Candidate) -> tuple[tuple[int, float], ...]:
        """Return columns and numbers of one value of one choice."""
        key = name, type(value), value
        known = self._entries.get(key)
        if known is None:
            choice = self.space.choice(name)
            start, size = self._columns[name]
            position = choice.index(value)
            entries = [(start + size, 1.0)] if choice.requires is not None else []
            if choice.kind == "categorical":
                entries.append((start + position, 0.5**0.5))
            elif choice.size > 1:
                entries.append((start, position / (choice.size - 1)))
            known = self._entries[key] = tuple(entries)
        return known
