"""Rounding to a grid of few values, differentiably, and the static module that does it to the input of a layer."""

import math
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["FULL_PRECISION", "InputQuantizer", "fake_quantize", "grid", "input_range", "quantize_input"]

FULL_PRECISION = 32
"""The bitwidth that means: not quantised."""


def grid(values: Tensor, step: Tensor, low: int, high: int, offset: float = 0.0) -> Tensor:
    """Return the place on the grid of each value, ``clip(round(x / step - offset), low, high)``, in floating point.

    Args:
        values: of any shape.
        step: positive, broadcastable to ``values``.
        low: smallest place.
        high: largest place.
        offset: 0 for grids that contain zero, 0.5 for mid-rise ones.
    """
    return (values / step - offset).round().clamp(low, high)


def input_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Return the smallest and the largest place of the grid of an input.

    >>> input_range(4, signed=True), input_range(4, signed=False)
    ((-8, 7), (0, 15))
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _LearnedStep(torch.autograd.Function):
    """Gradients of Esser et al. (arXiv 1902.08153, Eq. 3 and 5)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: int, high: int, offset: float, factor: float) -> Tensor:
        places = values / step - offset
        codes = places.round().clamp_(low, high)
        ctx.save_for_backward(places, codes, step)
        ctx.bounds = low, high, offset, factor
        return (codes + offset).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        places, codes, step = ctx.saved_tensors
        low, high, offset, factor = ctx.bounds
        inside = (places >= low) & (places <= high)
        of_values = gradient * inside if ctx.needs_input_grad[0] else None
        of_step = None
        if ctx.needs_input_grad[1]:
            slope = torch.where(inside, codes - places, codes + offset)
            of_step = (gradient * slope).sum_to_size(step.shape).to(step.dtype) * factor
        return of_values, of_step, None, None, None, None


def fake_quantize(
    values: Tensor, step: Tensor, low: int, high: int, *, offset: float = 0.0, gradient_factor: float = 1.0
) -> Tensor:
    """Return ``step * (grid(values) + offset)``, with the gradients of learned step size quantisation.

    With ``v = x / step - offset`` the gradient is 1 with respect to ``x`` where ``low <= v <= high`` and 0 elsewhere;
    with respect to the step it is ``round(v) - v`` inside and the clipped place plus the offset outside, summed over
    all values of a step and multiplied by ``gradient_factor`` (LSQ, arXiv 1902.08153, Eq. 2, 3 and 5).

    Args:
        values: of any shape.
        step: positive, broadcastable to ``values``.
        low: smallest place on the grid.
        high: largest place.
        offset: 0 for grids that contain zero, 0.5 for mid-rise ones.
        gradient_factor: factor on the gradient of the step.
    """
    if torch.is_grad_enabled() and (values.requires_grad or step.requires_grad) and not torch.compiler.is_exporting():
        quantized: Tensor = _LearnedStep.apply(values, step, low, high, offset, gradient_factor)  # type: ignore[no-untyped-call]
        return quantized
    codes = grid(values, step, low, high, offset)
    return (codes + offset if offset else codes) * step


@final
class InputQuantizer(nn.Module):
    """Rounds the input of a layer to ``2 ** bits`` evenly spaced values: LSQ (Esser et al. 2020, arXiv 1902.08153).

    ``x^ = s round(clip(x / s, -Q_n, Q_p))`` with ``(Q_n, Q_p)`` being ``(2^(b-1), 2^(b-1) - 1)`` for signed inputs and
    ``(0, 2^b - 1)`` for inputs that are never negative. The gradient of ``s`` is scaled by ``1 / sqrt(N Q_p)``, with
    ``N`` the values of one example.

    The scale is not a number until it is filled or loaded.

    Args:
        bits: at least 1, at least 2 for signed inputs.
        signed: whether inputs may be negative.

    Attributes:
        scale: ``s``, a parameter of shape ``()``.
    """

    def __init__(self, bits: int, *, signed: bool) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.low, self.high = input_range(bits, signed=signed)
        self.scale = nn.Parameter(torch.full((), math.nan))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, ...)`` to the same shape; without arithmetic on the meta device, where shapes are all there is."""
        if x.is_meta:
            return x
        factor = 1 / math.sqrt(math.prod(x.shape[1:]) * self.high)
        return fake_quantize(x, self.scale, self.low, self.high, gradient_factor=factor)

    def extra_repr(self) -> str:
        """Return bits and sign for ``repr``."""
        return f"bits={self.bits}, signed={self.signed}"


def _before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    quantizer = layer.get_submodule("input_quantizer")
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, kwargs | {"input": quantizer(kwargs["input"])}


def quantize_input(layer: nn.Module, quantizer: nn.Module) -> None:
    """Put ``quantizer`` in front of ``layer``, in place, as its submodule ``input_quantizer``.

    The layer stays of its own class and keeps the names of its tensors; copies of it are quantised too.
    """
    layer.add_module("input_quantizer", quantizer)
    layer.register_forward_pre_hook(_before, with_kwargs=True)
