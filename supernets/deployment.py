"""What becomes of each quantised layer when it is deployed: which bits are real, stored only, or simulated."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from search_spaces import FULL_PRECISION, Architecture

__all__ = [
    "DeployClass",
    "Deployed",
    "QuantizedLayer",
    "deployment_summary",
    "is_product",
    "max_abs_layers",
    "quantized_layers",
]

DeployClass = Literal["real", "storage", "simulated"]


@dataclass(frozen=True)
class QuantizedLayer:
    """The integers of one quantised weight: its values are ``scale * (codes + offset)``.

    Attributes:
        weight_bits: how many bits the codes need.
        input_bits: of the input; 32 for full precision.
        codes: integers in the shape of the weight, from ``-2 ** (weight_bits - 1)`` to ``2 ** (weight_bits - 1) - 1``.
        scale: a number, or one for each output channel, broadcastable to the weight.
        offset: 0 for grids that contain zero, 0.5 for mid-rise ones.
    """

    weight_bits: int
    input_bits: int
    codes: Tensor
    scale: Tensor
    offset: float = 0.0


@dataclass(frozen=True)
class Deployed:
    """What a runtime does with one quantised layer.

    Attributes:
        bits: of the weights, as searched.
        input_bits: of the input, as searched; 32 for full precision.
        stored_bits: that each weight takes in the file.
        deploy: ``"real"``: the file holds these bits and the runtime multiplies these integers; ``"storage"``: the file
            holds them and the runtime widens them; ``"simulated"``: the file holds more bits than were searched.
        computes: ``"int8"`` where the runtime multiplies integers, of 8 bits whatever the input's, else ``"float32"``.
        operator: of the runtime that multiplies.
        reason: why the bits are not real; empty where they are.
    """

    bits: int
    input_bits: int
    stored_bits: int
    deploy: DeployClass
    computes: str
    operator: str
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """Return the JSON object that a manifest keeps."""
        return {name: value for name, value in asdict(self).items() if value != ""}


def quantized_layers(source: Any, architecture: Architecture) -> dict[str, QuantizedLayer]:
    """Return module name -> integers of every weight below full precision; empty where the source quantises nothing.

    Args:
        source: of weights; one that quantises has ``codes(architecture)``.
        architecture: of the source's space.
    """
    codes_of = getattr(source, "codes", None)
    if codes_of is None:
        return {}
    codes = codes_of(architecture)
    layers = {}
    for name, (weight_bits, input_bits) in source.space.bitwidths(architecture).items():
        if weight_bits < FULL_PRECISION:
            own = codes[f"{name}.weight"]
            layers[name] = QuantizedLayer(
                weight_bits, input_bits, own.codes.detach(), own.scale.detach(), float(own.offset)
            )
    return layers


def max_abs_layers(module: nn.Module, bitwidths: Mapping[str, tuple[int, int]]) -> dict[str, QuantizedLayer]:
    """Quantise the weights of ``module`` in place, by the largest absolute value of each output channel.

    For networks whose values do not matter, such as those that are only timed.

    Args:
        module: with the layers that ``bitwidths`` names.
        bitwidths: module name -> (weight bits, input bits).
    """
    layers = {}
    for name, (weight_bits, input_bits) in bitwidths.items():
        if weight_bits == FULL_PRECISION:
            continue
        weight = module.get_submodule(name).get_parameter("weight")
        high = max(1, 2 ** (weight_bits - 1) - 1)
        with torch.no_grad():
            largest = weight.flatten(1).abs().amax(1).clamp(min=1e-8)
            scale = (largest / high).reshape(-1, *[1] * (weight.ndim - 1))
            codes = (weight / scale).round().clamp(-(2 ** (weight_bits - 1)), 2 ** (weight_bits - 1) - 1)
            weight.copy_(codes * scale)
        layers[name] = QuantizedLayer(weight_bits, input_bits, codes.to(torch.int32), scale)
    return layers


def is_product(layer: nn.Module) -> bool:
    """Return whether a layer is a matrix product: linear, or a convolution of one pixel."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return isinstance(layer, nn.Linear)
    plain = layer.padding == "valid" or not any(layer.padding)
    return plain and layer.groups == 1 and all(size == 1 for size in layer.kernel_size)


def deployment_summary(layers: Sequence[Deployed]) -> str:
    """Return how many layers there are of each class, with their bits.

    >>> layers = Deployed(4, 8, 4, "real", "int8", "MatMulNBits"), Deployed(2, 8, 2, "storage", "int8", "QLinearConv")
    >>> deployment_summary(layers)
    '1 real (4 bits), 1 storage only (2 bits)'
    """
    names = {"real": "real", "storage": "storage only", "simulated": "simulated"}
    parts = []
    for kind, label in names.items():
        bits = [layer.bits for layer in layers if layer.deploy == kind]
        if bits:
            spelt = ", ".join(str(b) for b in sorted(set(bits)))
            parts.append(f"{len(bits)} {label} ({spelt} bit{'s' if spelt != '1' else ''})")
    return ", ".join(parts)
