"""The weights of a network as the weighted sum of their bitwidths."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from search_spaces import FULL_PRECISION, Architecture, RelaxedArchitecture
from supernets.relaxed_bits import superposed

if TYPE_CHECKING:
    from supernets.quantized import QuantizedWeights

__all__ = ["mixed"]


def mixed(
    source: "QuantizedWeights", architecture: RelaxedArchitecture, base: Architecture, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return ``tensors`` with the weight of every layer mixed over its bitwidths, and what mixes the inputs.

    If somebody listens, metrics of the bitwidths are noted for the weights in use, those of the candidates of the
    largest weight.

    Args:
        source: quantises.
        architecture: weights of all candidates.
        base: the architecture without bits whose tensors they are.
        tensors: of the wrapped source, by name.
    """
    space, relaxation = source.quantized_space, source.relaxation
    used, present = tensors, base
    if relaxation.listener is not None:
        present = _present(source, architecture)
        if present != base:
            with torch.no_grad():
                used = source.wrapped(present)
    made: dict[int, Tensor] = {}
    added: dict[str, Tensor] = {}
    for layer in space.bitwidths(space.architecture({**space.largest(), **base})):
        name = f"{layer}.weight"
        weight = tensors[name]
        (of_weight, of_input), (weight_bits, input_bits) = space.bit_choices(layer), space.options(layer)
        at = functools.partial(source.at, layer, weight, base)
        if of_weight is None:
            made[id(weight)] = at(weight_bits[0])
        else:
            made[id(weight)] = superposed([functools.partial(at, b) for b in weight_bits], architecture[of_weight])
            if relaxation.listener is not None and name in used:
                relaxation.note(of_weight, source.residuals(layer, used[name], present, weight_bits[:-1]))
        prefix = f"{layer}.input_quantizer"
        scales = [source.input_scales(layer, b) if b < FULL_PRECISION else weight.new_ones(()) for b in input_bits]
        if of_input is not None:
            added |= {f"{prefix}.scales": torch.stack(scales), f"{prefix}.shares": architecture[of_input]}
        elif input_bits[0] < FULL_PRECISION:
            added[f"{prefix}.scale"] = scales[0]
    return {name: made.get(id(tensor), tensor) for name, tensor in tensors.items()} | added


def _present(source: "QuantizedWeights", architecture: RelaxedArchitecture) -> Architecture:
    """Return the architecture without bits of the candidates of the largest weight."""
    space = source.quantized_space.space
    return space.architecture({c.name: c.candidates[int(architecture[c.name].argmax())] for c in space.choices})
