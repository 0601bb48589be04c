"""Channels in order of importance, so that a prefix is the best subset of that many."""

from collections.abc import Mapping

import torch
from torch import Tensor

from search_spaces import Coupling, Couplings, couplings, permuted
from supernets.weights import SharedWeights, WeightSource

__all__ = ["importance", "sort_channels"]


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


def sort_channels(source: WeightSource, optimizer: torch.optim.Optimizer | None = None) -> Couplings:
    """Put the elastic channels of shared weights in falling order of :func:`importance`, in place.

    The largest build computes what it computed before; smaller ones get the most important channels. Equal importance
    keeps its order. Whatever the optimiser remembers for each element (momentum, moments) moves with it.

    Args:
        source: plain shared weights.
        optimizer: of the parameters of ``source``.

    Returns:
        What was sorted (``verified``) and what could not be (``left_out``).

    Raises:
        TypeError: the source is no :class:`SharedWeights`.
    """
    if not isinstance(source, SharedWeights):
        raise TypeError(f"channels of {type(source).__name__} cannot be sorted; use SharedWeights")
    found = couplings(source.space)
    stored = source.stored()
    tensors = dict(source.largest.named_buffers()) | stored
    with torch.no_grad():
        for coupling in found.verified:
            order = torch.argsort(importance(stored, coupling), descending=True, stable=True)
            for site in coupling.sites:
                tensor = tensors[site.tensor]
                tensor.copy_(permuted(tensor, site, order))
                state = {} if optimizer is None else optimizer.state.get(tensor, {})
                for key, value in state.items():
                    like = isinstance(value, Tensor) and value.ndim == tensor.ndim
                    if like and value.shape[site.dim] == tensor.shape[site.dim]:
                        state[key] = permuted(value, site, order)
    return found
