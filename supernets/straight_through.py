"""Values of one tensor, gradients of another."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["straight_through"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        del ctx, soft
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        del ctx
        return None, gradients[0]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return ``hard`` to the bit, with the gradient going to ``soft`` unchanged (Bengio et al. 2013, arXiv 1308.3432).

    Args:
        hard: what is computed with; gets no gradient.
        soft: of the same shape.
    """
    if not soft.requires_grad or not torch.is_grad_enabled():
        return hard
    passed: Tensor = _StraightThrough.apply(hard, soft)  # type: ignore[no-untyped-call]
    return passed
