"""Costs of bits and widths, for rules that search them while they train."""

import functools
import inspect
from collections.abc import Callable
from typing import final

from nas.costs import Cost, measure
from search_spaces import Architecture, SearchSpace
from supernets import BitCosts

__all__ = ["BitCost"]


@final
class BitCost(BitCosts):
    """Any cost of architectures, bit operations or bytes say, as what gates have to pay.

    Args:
        cost: makes the cost from the space, ``nas.BitOps`` say.
    """

    def __init__(self, cost: Callable[[SearchSpace], Cost]) -> None:
        self.cost = cost

    def __call__(self, space: SearchSpace) -> Callable[[Architecture], float]:
        """Return the function for ``space``; see :class:`supernets.BitCosts`."""
        cost = self.cost(space)
        given = inspect.signature(type(cost)).parameters
        settings = {name: getattr(cost, name) for name in given if name != "space"}
        self.cost = functools.partial(type(cost), **settings)  # what describes and rebuilds it
        return functools.partial(_value, cost, space)


def _value(cost: Cost, space: SearchSpace, architecture: Architecture) -> float:
    return measure([cost], space, architecture)[cost.name]
