"""Architectures as vectors that say how alike two of them are, for regressors."""

from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from search_spaces import Architecture, SearchSpace

__all__ = ["Features"]

Floats = NDArray[np.float64]


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
        self._known: dict[Architecture, tuple[Floats, dict[str, float]]] = {}

    def choices(self, architectures: Sequence[Architecture]) -> Floats:
        """Return the vectors of the choices, ``(N, D)``."""
        return np.stack([self._features(architecture)[0] for architecture in architectures])

    def motifs(self, architectures: Sequence[Architecture]) -> Floats:
        """Return the counts of the motifs, ``(N, M)``; columns that come up later are appended, ``M`` may be 0."""
        found = [self._features(architecture)[1] for architecture in architectures]
        for counts in found:
            for name in counts:
                self._motifs.setdefault(name, len(self._motifs))
        table = np.zeros((len(found), len(self._motifs)))
        for row, counts in zip(table, found, strict=True):
            for name, count in counts.items():
                row[self._motifs[name]] = count
        return table

    def _features(self, architecture: Architecture) -> tuple[Floats, dict[str, float]]:
        known = self._known.get(architecture)
        if known is None:
            known = self._known[architecture] = self._vector(architecture), dict(self.space.motifs(architecture))
        return known

    def _vector(self, architecture: Architecture) -> Floats:
        vector = np.zeros(self._width)
        for name, value in architecture.items():
            choice = self.space.choice(name)
            start, size = self._columns[name]
            position = choice.index(value)
            if choice.kind == "categorical":
                vector[start + position] = 0.5**0.5
            elif choice.size > 1:
                vector[start] = position / (choice.size - 1)
            if choice.requires is not None:
                vector[start + size] = 1.0
        return vector
