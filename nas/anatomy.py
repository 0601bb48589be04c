"""What a network is made of, layer by layer, for pictures and cost tables."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from nas.costs import MACs
from nas.reporting.portrait import Anatomy, Layer
from search_spaces import Architecture, SearchSpace, skeleton
from trials import Trial

__all__ = ["anatomy", "layers"]

_CONVOLUTION = nn.modules.conv._ConvNd


def layers(space: SearchSpace, architecture: Architecture, macs: MACs) -> dict[str, Layer]:
    """Return the layers of a build by module name, in order: every module that has a weight matrix or multiplies.

    Norms and biases of other modules are no layers, so parameters may add up to a little less than those of the build.
    What is multiplied outside of any layer comes last, under a name in parentheses.

    Args:
        space: of the architecture.
        architecture: what is built, on the meta device.
        macs: the cost of that space.
    """
    with torch.device("meta"):
        model = skeleton(space, architecture)
    counts = macs.layers(architecture, model)
    found = {}
    for name, module in model.named_modules():
        weights = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() >= 2]
        if not weights and not counts.get(name):
            continue
        params = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if isinstance(module, nn.MultiheadAttention):
            params = sum(parameter.numel() for parameter in module.parameters())
        found[name or "(network)"] = Layer(
            _kind(module), _width(module, weights), _shape(module), params, counts.get(name, 0)
        )
    known = dict(model.named_modules())
    found |= {name: Layer("other", 1, "", 0, count) for name, count in counts.items() if count and name not in known}
    inside = [f"{name}." for name, layer in found.items() if layer.kind == "attention"]
    return {name: layer for name, layer in found.items() if not name.startswith(tuple(inside))}


def _kind(module: nn.Module) -> str:
    if isinstance(module, _CONVOLUTION):
        return "depthwise" if 1 < module.groups == module.in_channels else "conv"
    names = ((nn.Linear, "linear"), (nn.MultiheadAttention, "attention"), (nn.Embedding, "embedding"))
    return next((word for kind, word in names if isinstance(module, kind)), type(module).__name__)


def _width(module: nn.Module, weights: Sequence[nn.Parameter]) -> int:
    if isinstance(module, _CONVOLUTION):
        return module.out_channels
    if isinstance(module, nn.MultiheadAttention | nn.Embedding):
        return module.embed_dim if isinstance(module, nn.MultiheadAttention) else module.embedding_dim
    return max((int(weight.shape[0]) for weight in weights), default=1)


def _shape(module: nn.Module) -> str:
    if not isinstance(module, _CONVOLUTION) or math.prod(module.kernel_size) == 1:
        return ""
    return "x".join(map(str, module.kernel_size))


def anatomy(space: SearchSpace, trials: Iterable[Trial]) -> Anatomy:
    """Return the layers of the largest architecture and of those of ``trials``, every name in one order."""
    macs = MACs(space)
    largest = layers(space, space.largest(), macs)
    found = {trial.number: layers(space, space.architecture(trial.architecture), macs) for trial in trials}
    return Anatomy(_merged([largest, *found.values()]), largest, found)


def _merged(sequences: Iterable[Mapping[str, Layer]]) -> tuple[str, ...]:
    """Return all names; one that the largest does not have comes after the one before it."""
    order: list[str] = []
    for names in sequences:
        position = 0
        for name in names:
            if name not in order:
                order.insert(position, name)
            position = order.index(name) + 1
    return tuple(order)
