"""Costs of bits layer by layer, for rules that search bits while they train."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor

from nas.allocation.measured import RateDistortion, sites_of
from nas.costs import Cost
from search_spaces import Architecture, SearchSpace
from supernets import BitCosts

__all__ = ["BitCost"]


@final
class BitCost(BitCosts):
    """Any cost that is a sum over layers, as bit operations and bytes are, as a function of the bits of each layer.

    Measured once for every pair of bits of every layer, one layer at a time.

    Args:
        cost: makes the cost from the space, ``nas.BitOps`` say.
    """

    def __init__(self, cost: Callable[[SearchSpace], Cost]) -> None:
        self.cost = cost

    def __call__(
        self, space: SearchSpace, architecture: Architecture
    ) -> tuple[float, Mapping[tuple[str, ...], Tensor]]:
        """Return what is fixed, and choices -> cost of their candidates; see :class:`supernets.BitCosts`."""
        cost = self.cost(space)
        given = inspect.signature(type(cost)).parameters
        settings = {name: getattr(cost, name) for name in given if name != "space"}
        self.cost = functools.partial(type(cost), **settings)  # what describes and rebuilds it
        measured = RateDistortion(space, architecture, lambda _: torch.zeros(1, 1), [cost])
        table = measured.table()
        shapes = [[space.choice(name).size for name in site] for site in sites_of(space, architecture)]
        rows = zip(measured.sites, table.costs[cost.name], shapes, strict=True)
        return table.fixed[cost.name], {site: torch.from_numpy(np.reshape(row, shape)) for site, row, shape in rows}
