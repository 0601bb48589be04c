"""Channels in an order that smaller architectures gain from."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from search_spaces import Coupling, Couplings, SearchSpace, Site, couplings, permuted

if TYPE_CHECKING:
    from supernets.weights import WeightSource

__all__ = ["by_importance", "importance", "permute", "reorder", "sort_channels"]


def importance(tensors: Mapping[str, Tensor], coupling: Coupling) -> Tensor:
    """Return the importance ``(size,)`` of coupled channels: L1 norm of all weights that read each of them.

    Once-for-All (arXiv 1908.09791, section 3.2) sorts by the norm of the channel's weights; as there, the weights of
    the layers that follow are taken, and where none is known those of all matrices that hold the channels.

    Args:
        tensors: of the largest build by name.
        coupling: channels of the same space.
    """
    matrices = [site for site in coupling.sites if site.role != "keeps"]
    readers = [site for site in matrices if site.role == "reads"]
    total = torch.zeros(coupling.size)
    for site in readers or matrices:
        tensor = tensors[site.tensor].detach()
        norms = tensor.abs().transpose(0, site.dim).flatten(1).sum(1)
        total += norms.view(site.blocks, -1).sum(0).float().cpu()
    return total


def by_importance(tensors: Mapping[str, Tensor], coupling: Coupling) -> Tensor:
    """Return the channels in falling order of :func:`importance`; equal importance keeps its order."""
    return torch.argsort(importance(tensors, coupling), descending=True, stable=True)


def sort_channels(source: "WeightSource", optimizer: torch.optim.Optimizer | None = None) -> Couplings:
    """Put the elastic channels of a source in the order that smaller architectures gain from, in place.

    The largest build computes what it computed before. Shared weights: most important first (:func:`importance`), so
    that a prefix is the best subset. Implicit weights: neighbours alike. Whatever the optimiser remembers for each
    element (momentum, moments) moves along.

    Args:
        source: of which ``sortable`` is true.
        optimizer: of the parameters of ``source``.

    Returns:
        What was sorted (``verified``) and what could not be (``left_out``).

    Raises:
        TypeError: channels of the source cannot be sorted.
    """
    return source.sort(optimizer)


def reorder(
    space: SearchSpace,
    stored: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    order: Callable[[Mapping[str, Tensor], Coupling], Tensor],
    optimizer: torch.optim.Optimizer | None,
) -> Couplings:
    """Permute coupled channels of tensors of the largest build in place; see ``SharedWeights.reorder``."""
    found = couplings(space)
    tensors = {**buffers, **stored}
    for coupling in found.verified:
        places = order(stored, coupling)
        for site in coupling.sites:
            permute(tensors[site.tensor], site, places, optimizer)
    return found


@torch.no_grad()
def permute(tensor: Tensor, site: Site, places: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Permute one dimension of a tensor in place, with what an optimiser remembers for each of its elements."""
    tensor.copy_(permuted(tensor, site, places))
    state = {} if optimizer is None else optimizer.state.get(tensor, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.ndim == tensor.ndim and value.shape[site.dim] == tensor.shape[site.dim]:
            state[key] = permuted(value, site, places)
