"""Which parameters weight decay spares."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["parameter_groups"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(module: nn.Module, *, decay_norms: bool) -> list[dict[str, Any]]:
    """Return the parameters of ``module`` as groups for an optimiser.

    Unless ``decay_norms``, a second group without weight decay holds biases, everything that belongs to a norm, and
    what a layer names in an attribute ``undecayed``, which stored versions of such tensors do.
    """
    exempt = set()
    if not decay_norms:
        for layer in module.modules():
            for leaf, parameter in layer._parameters.items():
                spared = leaf == "bias" or isinstance(layer, _NORMS) or leaf in getattr(layer, "undecayed", ())
                if spared and parameter is not None:
                    exempt.add(parameter)
    groups: list[dict[str, Any]] = [{"params": [p for p in module.parameters() if p not in exempt]}]
    if exempt:
        groups.append({"params": [p for p in module.parameters() if p in exempt], "weight_decay": 0.0})
    return groups
