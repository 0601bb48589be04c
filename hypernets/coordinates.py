"""Coordinates of weights: where a channel stands along its axis, and features of that position."""

import math

import torch
from torch import Tensor

__all__ = ["bounded_frequencies", "fourier", "positions"]


def positions(size: int, *, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Return relative positions ``(size,)`` of the channels of one axis, ``(j + 1/2 + u_j) / size`` in [0, 1].

    ``u_j`` is uniform in ``[-noise / 2, noise / 2]``, one draw for each channel: with ``noise <= 1`` a channel stays
    within its own cell. Without a generator there is no noise.
    """
    places = torch.arange(size, dtype=torch.float32) + 0.5
    if noise and generator is not None:
        places = places + noise * (torch.rand(size, generator=generator) - 0.5)
    return places / max(size, 1)


def fourier(places: Tensor, frequencies: int) -> Tensor:
    """Return Fourier features ``(..., 2 frequencies)`` of positions: ``sin(2^k pi v), cos(2^k pi v)``, of norm 1.

    NeuMeta (arXiv 2410.11878), without the position itself beside them, so that the norm is constant.
    """
    angles = places[..., None] * (math.pi * 2.0 ** torch.arange(frequencies, device=places.device, dtype=places.dtype))
    return torch.cat([angles.sin(), angles.cos()], dim=-1) / math.sqrt(frequencies)


def bounded_frequencies(largest: int) -> int:
    """Return ``ceil(log2(largest)) + 1``: what it takes to tell all channels of an axis apart.

    Higher frequencies oscillate between neighbouring channels, and so say nothing about widths in between; far above
    they are rounding noise.
    """
    return math.ceil(math.log2(max(largest, 1))) + 1
