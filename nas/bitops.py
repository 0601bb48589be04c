"""Costs of bitwidths: bit operations, and the most bits that any weight has."""

import math
from typing import Literal, final

from torch import nn
from torch.nn.modules.conv import _ConvNd

from nas.costs import Cost, MACs
from search_spaces import FULL_PRECISION, Architecture, SearchSpace
from trials import Direction

__all__ = ["BitOps", "WeightBits", "chosen_layers"]


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


def chosen_layers(space: SearchSpace) -> frozenset[str]:
    """Return the layers whose weights have bits to choose; none where a space has no bitwidths."""
    seen: dict[str, set[int]] = {}
    for architecture in space.probes():
        for layer, (weight, _) in space.bitwidths(architecture).items():
            seen.setdefault(layer, set()).add(weight)
    return frozenset(layer for layer, bits in seen.items() if len(bits) > 1)


@final
class WeightBits(Cost):
    """The most bits that the weights of a layer have, among the layers whose bits can be chosen.

    A first and a last layer of fixed bits do not count: most papers call a network "4-bit" that keeps them at 8.

    Args:
        space: the search space.

    Raises:
        ValueError: the space chooses no bits of weights.
    """

    name = "weight_bits"
    unit = "bit"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._chosen = chosen_layers(space)
        if not self._chosen:
            raise ValueError(
                f"weight_bits needs a space that chooses the bits of weights, got {type(space).__name__}; wrap it: "
                "class_path: search_spaces.QuantizedSpace, init_args: {space: ...}"
            )

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the bits; 0 where an architecture has none of those layers."""
        del model
        bits = self.space.bitwidths(architecture)
        return float(max((bits[layer][0] for layer in self._chosen & bits.keys()), default=0))


def _fan_in(layer: nn.Module | None) -> int:
    """Products that are added up for one output; 1 where that is not one number."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, _ConvNd):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    return 1
