"""The description that travels with a supernet's weights."""

import hashlib
from typing import Any

import torch

from search_spaces import SearchSpace, describe
from supernets.rules import SamplingRule
from supernets.weights import WeightSource

__all__ = ["FORMAT_VERSION", "card", "weights_version"]

FORMAT_VERSION = 1


def weights_version(source: WeightSource) -> str:
    """Return 16 hexadecimal digits over all parameters of a source: equal weights, equal version."""
    digest = hashlib.sha256()
    for name, parameter in sorted(source.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def card(
    tree: dict[str, Any],
    space: SearchSpace,
    source: WeightSource,
    *,
    rule: SamplingRule | None = None,
    data: Any = None,
) -> dict[str, Any]:
    """Return the JSON description that travels with the weights.

    Args:
        tree: what builds the supernet again, see ``Supernet.tree``.
        space: its space.
        source: its weights.
        rule: its sampling rule, kept with what it has learned.
        data: the data module it was trained on, kept so that subnetworks can be calibrated later; a module that
            cannot be described is left out.
    """
    try:
        data_tree = None if data is None else describe(data)
    except ValueError:
        data_tree = None
    selected = None if rule is None else rule.selected()
    return {
        "format_version": FORMAT_VERSION,
        "model": tree,
        "data": data_tree,
        "space_digest": space.digest,
        "weights_version": weights_version(source),
        "learned": {} if rule is None else dict(rule.learned()),
        "selected": None if selected is None else dict(selected),
    }
