"""Bit operations: multiply-accumulates weighted by the bitwidths of what is multiplied."""

import math
from typing import Literal, final

from torch import nn
from torch.nn.modules.conv import _ConvNd

from nas.costs import Cost, MACs
from search_spaces import FULL_PRECISION, Architecture, SearchSpace
from trials import Direction

__all__ = ["BitOps"]


@final
class BitOps(Cost):
    """Bit operations of one example, summed over layers, ``b_w`` and ``b_a`` being the bits of weights and inputs.

    ``"bops_product"``: ``MACs b_w b_a``, of most tables. ``"bops_uniq"``: ``MACs (b_w b_a + b_w + b_a + log2 n)`` with
    the fan-in ``n = kernel area * input channels / groups``, which counts the accumulator too (Baskin et al. 2018,
    arXiv 1804.10969, Sec. 4.2). Numbers of different formulas do not compare, so the measurement is called by its
    formula. Layers without bits, and products outside layers such as those of an attention, count 32 bits on both
    sides; the latter have no fan-in.

    Args:
        space: the search space.
        formula: one of the two.

    Raises:
        ValueError: the formula is neither, or a network cannot run on the space's own example inputs.
    """

    unit = "bit operation"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace, formula: Literal["bops_product", "bops_uniq"] = "bops_product") -> None:
        if formula not in ("bops_product", "bops_uniq"):
            raise ValueError(f"BitOps.formula must be 'bops_product' or 'bops_uniq', got {formula!r}")
        self.space = space
        self.formula = formula
        self.name = formula
        self._macs = MACs(space)

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the bit operations of one example."""
        return float(sum(self.layers(architecture, model).values()))

    def layers(self, architecture: Architecture, model: nn.Module) -> dict[str, float]:
        """Return the bit operations by module name; see :meth:`MACs.layers`."""
        bits = self.space.bitwidths(architecture)
        modules = dict(model.named_modules())
        found = {}
        for name, macs in self._macs.layers(architecture, model).items():
            weight, given = bits.get(name, (FULL_PRECISION, FULL_PRECISION))
            each: float = weight * given
            if self.formula == "bops_uniq":
                each += weight + given + math.log2(_fan_in(modules.get(name)))
            found[name] = macs * each
        return found


def _fan_in(layer: nn.Module | None) -> int:
    """Products that are added up for one output; 1 where that is not one number."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, _ConvNd):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return 1
