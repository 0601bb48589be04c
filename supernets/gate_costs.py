"""What gates are told about the cost of a network: its value, and what one place up or down would change."""

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from search_spaces import Architecture, SearchSpace
from supernets.skeletons import ThreadCache

__all__ = ["GatedCost"]

_REMEMBERED = 4096


@final
class GatedCost:
    """The cost of a network at hard gates, with the gradient that it has as a function of the weights of candidates.

    ``R(p) = sum_k p_k R(a_k)`` over the candidates of a choice, the other choices being at one candidate each: at
    one-hot weights its derivatives are the costs of the architectures that differ from the present one in one choice.
    So no formula is needed, whatever the cost is made of.

    Args:
        space: the space.
        cost: of an architecture.
    """

    def __init__(self, space: SearchSpace, cost: Callable[[Architecture], float]) -> None:
        self.space = space
        self.cost = cost
        self._known: ThreadCache[Architecture, float] = ThreadCache(maxsize=_REMEMBERED)

    def of(self, architecture: Architecture) -> float:
        """Return the cost of one architecture."""
        return self._known.get(architecture, lambda: self.cost(architecture))

    def __call__(self, present: Architecture, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the cost of ``present``, ``()`` in float64.

        Args:
            present: the architecture at which ``weights`` are one-hot.
            weights: choice -> weights of its candidates ``(K,)``. Those with a gradient get one for the present
                candidate and the ones beside it; further ones must not depend on a gate.
        """
        total = torch.full((), self.of(present), dtype=torch.float64)
        for name, given in weights.items():
            if not given.requires_grad:
                continue
            choice = self.space.choice(name)
            here = choice.index(present[name])
            places = range(max(here - 1, 0), min(here + 2, choice.size))
            costs = [self.of(self.space.architecture({**present, name: choice.candidates[k]})) for k in places]
            near = given[places.start : places.stop].double().cpu()
            total = total + (near - near.detach()) @ torch.tensor(costs, dtype=torch.float64)
        return total
