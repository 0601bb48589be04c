"""Learned positive numbers by layer and bitwidth."""

from collections.abc import KeysView
from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["ScaleBank"]


class _Exponential(torch.autograd.Function):
    """``exp(r)`` with the gradient divided by the value instead of multiplied by it."""

    @staticmethod
    def forward(ctx: Any, logarithm: Tensor) -> Tensor:
        value = logarithm.exp()
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        value: Tensor = ctx.saved_tensors[0]
        return gradients[0] / value


@final
class ScaleBank(nn.Module):
    """Scales of quantisers, one parameter for each (layer, bits), spared by weight decay.

    What is stored is the logarithm ``r`` of a scale, so that no step can make the scale negative and a step of Adam
    changes it by a fraction, however small it is. The gradient of ``r`` is that of the scale divided by the scale: a
    step of SGD then changes the scale, to first order, as it would change a scale that is stored itself.
    """

    def __init__(self) -> None:
        super().__init__()

    @staticmethod
    def _key(layer: str, bits: int) -> str:
        return f"{layer.replace('.', '/')}@{bits}"

    @property
    def undecayed(self) -> KeysView[str]:
        """Names of the parameters without weight decay: all."""
        return self._parameters.keys()

    def add(self, layer: str, bits: int, value: Tensor) -> None:
        """Add a scale; not a number for one that is to be set later."""
        self.register_parameter(self._key(layer, bits), nn.Parameter(value.detach().log()))

    def stored(self, layer: str, bits: int) -> Tensor:
        """Return the parameter that holds the logarithm of a scale."""
        parameter = self._parameters[self._key(layer, bits)]
        assert parameter is not None  # noqa: S101 - added
        return parameter

    def set(self, layer: str, bits: int, value: Tensor) -> Tensor:
        """Set a scale and return the parameter that holds it."""
        parameter = self.stored(layer, bits)
        with torch.no_grad():
            parameter.copy_(value.log())
        return parameter

    def forward(self, layer: str, bits: int) -> Tensor:
        """Return a scale, differentiable."""
        parameter = self.stored(layer, bits)
        if not torch.is_grad_enabled():
            return parameter.exp()
        scale: Tensor = _Exponential.apply(parameter)  # type: ignore[no-untyped-call]
        return scale
