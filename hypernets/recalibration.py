"""Batch-norm statistics for generated weights."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hypernets.applying import apply, fits

__all__ = ["recalibrate"]


@torch.no_grad()
def recalibrate(module: nn.Module, tensors: Mapping[str, Tensor], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the buffers of each of K weight sets, batch-norm statistics being plain means over some batches.

    Only batch norms run in training mode; other buffers are those of the module. The module stays as it is.

    Args:
        module: whose weights were generated.
        tensors: name -> ``(K, *shape)``.
        batches: of inputs; some ten are enough.

    Returns:
        name -> ``(K, *shape)``: give the k-th entries to ``apply(..., buffers=...)``.

    Raises:
        ValueError: tensors do not fit the module, or there is no batch.
    """
    sets = len(next(iter(tensors.values()), ()))
    fits(module, tensors, sets=sets)
    given = list(batches)
    if not given:
        raise ValueError("batch-norm statistics need at least one batch of inputs, got none")
    copied = copy.deepcopy(module).eval()
    for layer in copied.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean
    kept: list[dict[str, Tensor]] = []
    for k in range(sets):
        buffers = {name: value.clone() for name, value in copied.named_buffers()}
        for batch in given:
            apply(copied, {name: value[k] for name, value in tensors.items()}, batch, buffers=buffers)
        kept.append(buffers)
    return {name: torch.stack([each[name] for each in kept]) for name, _ in copied.named_buffers()}
