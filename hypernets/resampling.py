"""Tensors at other widths: the same function of relative position, read at more or fewer points."""

import math

import torch
from torch import Tensor

__all__ = ["interpolation", "resample"]


def interpolation(
    size: int, full: int, *, reads: bool = False, blocks: int = 1, jitter: Tensor | None = None
) -> Tensor:
    """Return the matrix ``(size, full)`` that reads an axis of ``full`` channels at ``size`` points.

    Channel ``j`` of ``n`` stands at the relative position ``(j + 1/2) / n``; its value is interpolated linearly between
    the two channels beside that position, ``(j + 1/2) W / n - 1/2`` of ``W``, those at the ends being held. Along an
    axis that a layer reads, values are multiplied by ``W / n``, so that its sums over channels keep their size.

    Args:
        size: number of points.
        full: number of channels given.
        reads: whether a layer sums over this axis.
        blocks: equal blocks that the axis packs, each read by itself.
        jitter: added to the ``j`` of each point of a block, ``(size / blocks,)``, e.g. noise within its cell.

    Raises:
        ValueError: a size is below 1, or does not divide into the blocks.
    """
    if min(size, full, blocks) < 1 or size % blocks or full % blocks:
        raise ValueError(f"sizes must be multiples of the number of blocks, got {size=}, {full=}, {blocks=}")
    points, channels = size // blocks, full // blocks
    cells = torch.arange(points, dtype=torch.float64) + 0.5
    place = ((cells if jitter is None else cells + jitter) / points * channels - 0.5).clamp(0, channels - 1)
    low = place.floor().long()
    weight = place - low
    matrix = torch.zeros(points, channels, dtype=torch.float64)
    rows = torch.arange(points)
    matrix[rows, low] = 1 - weight
    matrix[rows, (low + 1).clamp(max=channels - 1)] += weight
    if reads:
        matrix *= channels / points
    return torch.kron(torch.eye(blocks, dtype=matrix.dtype), matrix).float()


def resample(tensor: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """Apply ``matrix`` ``(n, W)`` along dimension ``dim`` of ``tensor``; linear and differentiable in it.

    >>> resample(torch.tensor([0.0, 1.0]), 0, interpolation(4, 2))
    tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    matrix = matrix.to(tensor)
    if dim == 0:
        return (matrix @ tensor.reshape(len(tensor), -1)).reshape(len(matrix), *tensor.shape[1:])
    head, tail = tensor.shape[:dim], tensor.shape[dim + 1 :]
    flat = tensor.reshape(math.prod(head), tensor.shape[dim], -1)
    return (matrix @ flat).reshape(*head, len(matrix), *tail)
