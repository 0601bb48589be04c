"""A distribution over the architectures of a space, for differentiable search."""

from collections.abc import Iterator, Mapping
from typing import final

from torch import Tensor

__all__ = ["RelaxedArchitecture"]


@final
class RelaxedArchitecture(Mapping[str, Tensor]):
    """Choice -> weights ``(candidates,)`` that sum to one, for *every* choice of a space, conditional ones too.

    Made by :meth:`SearchSpace.relax` and by samplers of differentiable search. Weights may carry gradients, so a
    relaxed architecture is compared by identity and is never the key of a cache.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = {name: [round(w, 3) for w in weights.tolist()] for name, weights in self._weights.items()}
        return f"RelaxedArchitecture({shown})"
