"""Numbers that an architecture has before anything is trained."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from search_spaces.architecture import Architecture
from search_spaces.skeleton import skeleton
from search_spaces.space import SearchSpace

__all__ = ["ArchitectureCost", "cost_of"]


class ArchitectureCost(ABC):
    """A cost of the architectures of one space, which is the first constructor argument of its subclasses.

    What rules that weigh costs are told (``cost: nas.BitOps``); whatever else is needed to name and record a cost is
    up to subclasses. Costs hold no state of an evaluation, so one instance serves any number of calls.
    """

    @abstractmethod
    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the cost of ``architecture``.

        Args:
            architecture: the candidate.
            model: the build of ``architecture``, on the meta device or with real tensors; it is left as it was.
        """


def cost_of(space: SearchSpace, make: Callable[[SearchSpace], ArchitectureCost]) -> Callable[[Architecture], float]:
    """Return the function that builds an architecture on the meta device and returns its cost.

    Args:
        space: the space.
        make: makes the cost of it, e.g. the class.
    """
    cost = make(space)

    def price(architecture: Architecture) -> float:
        with torch.device("meta"):
            model = skeleton(space, architecture)
        return cost(architecture, model)

    return price
