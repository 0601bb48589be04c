"""Layers that stand for ONNX operators on packed integers while a network is exported; they compute nothing."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces import InputQuantizer

__all__ = ["BLOCKS", "InputCodes", "IntegerConv", "NBitsLinear", "block_size", "pack"]

BLOCKS = (32, 64, 128)
"""Weights along the input that share a scale inside ``MatMulNBits``; larger ones fall off its fast path at 2 bits."""


def _emit(operator: str, inputs: tuple[Tensor, ...], shape: Any, dtype: torch.dtype, **attributes: Any) -> Tensor:
    """Return the symbolic result of an ONNX operator."""
    made: Tensor = torch.onnx.ops.symbolic(operator, inputs, attributes, dtype=dtype, shape=tuple(shape))
    return made


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers of ``(..., K)`` into ``(..., K * bits / 8)`` bytes, the first in the lowest bits.

    >>> pack(torch.tensor([1, 2, 3, 0, 3, 3, 3, 3]), 2).tolist(), pack(torch.tensor([1, 15]), 4).tolist()
    ([57, 255], [241])
    """
    each = 8 // bits
    shifts = torch.arange(each) * bits
    grouped = codes.to(torch.int64).reshape(*codes.shape[:-1], -1, each)
    return torch.bitwise_left_shift(grouped, shifts).sum(-1).to(torch.uint8)


def block_size(features: int) -> int:
    """Return the largest block that pads a row of ``features`` weights least.

    >>> [block_size(features) for features in (1024, 96, 27, 200)]
    [128, 32, 32, 32]
    """
    return min(BLOCKS, key=lambda block: (-features % block, -block))


@final
class InputCodes(nn.Module):
    """A learned quantiser of inputs as ``QuantizeLinear`` and ``DequantizeLinear``, with a clip below 8 bits.

    Args:
        quantizer: at most 8 bits, one scale.
        again: end with another pair after the clip, which a convolution needs to run on integers.
    """

    def __init__(self, quantizer: InputQuantizer, *, again: bool) -> None:
        super().__init__()
        self.again = again
        self.register_buffer("scale", quantizer.scale.detach().clone().reshape(()))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int8 if quantizer.signed else torch.uint8))
        self.bounds: tuple[float, float] | None = None
        if quantizer.bits < 8:
            scale = float(quantizer.scale.detach())
            self.bounds = quantizer.low * scale, quantizer.high * scale

    def _pair(self, x: Tensor) -> Tensor:
        scale, zero = self.get_buffer("scale"), self.get_buffer("zero")
        codes = _emit("QuantizeLinear", (x, scale, zero), x.shape, zero.dtype)
        return _emit("DequantizeLinear", (codes, scale, zero), x.shape, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, ...)`` to the same shape."""
        x = self._pair(x)
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
            x = self._pair(x) if self.again else x
        return x


@final
class NBitsLinear(nn.Module):
    """A linear layer or a 1x1 convolution as ``MatMulNBits`` over packed weights.

    The operator's grid is ``scale * (code - 2 ** (bits - 1))``. Half a step is missing from that of a mid-rise
    quantiser, so ``scale / 2`` times the sum of the inputs is added (the half-step correction).

    Args:
        codes: integers of ``(out, in)``.
        scale: ``(out,)``.
        offset: 0 or 0.5.
        bias: ``(out,)``, if any.
        bits: 2, 4 or 8.
        accuracy_level: of the operator: 0 multiplies in float32, 4 quantises each block of inputs to 8 bits.
        quantizer: of the inputs.
        stride: of a convolution; ``None`` for a linear layer.
    """

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        *,
        offset: float,
        bias: Tensor | None,
        bits: int,
        accuracy_level: int,
        quantizer: nn.Module,
        stride: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        self.outputs, self.features = codes.shape
        self.bits, self.accuracy_level, self.stride = bits, accuracy_level, stride
        self.block = block_size(self.features)
        self.blocks = -(-self.features // self.block)
        self.quantizer = quantizer
        padded = F.pad(codes + 2 ** (bits - 1), (0, self.blocks * self.block - self.features), value=2 ** (bits - 1))
        self.register_buffer("codes", pack(padded.reshape(self.outputs, self.blocks, self.block), bits))
        self.register_buffer("scale", scale.reshape(-1, 1))
        self.register_buffer("bias", bias)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``, or images ``(B, in, ...)`` to ``(B, out, ...)``."""
        x = self.quantizer(x)
        if self.stride is None:
            return self._product(x)
        if any(step > 1 for step in self.stride):
            x = x[(slice(None), slice(None), *(slice(None, None, step) for step in self.stride))]
        return self._product(x.movedim(1, -1)).movedim(-1, 1)

    def _product(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("scale").expand(self.outputs, self.blocks)  # folded by the runtime when it loads
        y = _emit(
            "com.microsoft::MatMulNBits",
            (x, self.get_buffer("codes"), scale),
            (*x.shape[:-1], self.outputs),
            torch.float32,
            K=self.features,
            N=self.outputs,
            bits=self.bits,
            block_size=self.block,
            accuracy_level=self.accuracy_level,
        )
        if self.offset:
            y = y + x.sum(-1, keepdim=True) * (self.offset * self.get_buffer("scale").squeeze(-1))
        return y + self.bias if isinstance(self.bias, Tensor) else y


@final
class IntegerConv(nn.Module):
    """A convolution over ``DequantizeLinear`` of its weights and, where its inputs are quantised, of those too.

    A runtime fuses such a pattern into an integer convolution where the output is quantised as well. Weights of 2 and
    4 bits are stored packed and unpacked by the runtime when it loads.

    Args:
        convolution: whose stride, padding, dilation and groups are kept.
        codes: integers in the shape of the weight.
        scale: ``(out,)``.
        offset: 0 or 0.5.
        bits: 2, 4 or 8, in which the codes are stored.
        quantizer: of the inputs.
    """

    def __init__(
        self,
        convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        codes: Tensor,
        scale: Tensor,
        *,
        offset: float,
        bits: int,
        quantizer: nn.Module,
    ) -> None:
        super().__init__()
        self.geometry = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
        self.function: Callable[..., Tensor] = _function(convolution)
        self.bits, self.shape = bits, tuple(codes.shape)
        self.quantizer = quantizer
        if bits == 8:
            self.register_buffer("codes", codes.to(torch.int8))
        else:
            flat = (codes + 2 ** (bits - 1)).flatten()
            self.register_buffer("codes", pack(F.pad(flat, (0, -flat.numel() % (8 // bits))), bits))
            self.register_buffer("shifts", torch.arange(0, 8, bits, dtype=torch.uint8))
            self.register_buffer("mask", torch.tensor(2**bits - 1, dtype=torch.uint8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", _bias(convolution, codes))
        self.offset = offset

    def _unpacked(self) -> Tensor:
        codes = self.get_buffer("codes")
        if self.bits == 8:
            return codes
        columns = codes.unsqueeze(-1)
        shape = (len(codes), 8 // self.bits)
        shifted = _emit("BitShift", (columns, self.get_buffer("shifts")), shape, torch.uint8, direction="RIGHT")
        kept = _emit("BitwiseAnd", (shifted, self.get_buffer("mask")), shape, torch.uint8)
        flat = kept.reshape(-1).to(torch.int32).sub(2 ** (self.bits - 1))
        count = torch.Size(self.shape).numel()
        return flat[:count].reshape(self.shape).to(torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in, ...)`` to ``(B, out, ...)``."""
        x = self.quantizer(x)
        inputs = self._unpacked(), self.get_buffer("scale")
        weight = _emit("DequantizeLinear", inputs, self.shape, torch.float32, axis=0)
        if self.offset:
            weight = weight + (self.offset * self.get_buffer("scale")).reshape(-1, *[1] * (len(self.shape) - 1))
        return self.function(x, weight, self.get_buffer("bias"), *self.geometry)


def _bias(convolution: nn.Module, codes: Tensor) -> Tensor:
    """Return the bias, zeros where there is none: exporters write a missing one as a computation."""
    given = convolution.bias
    return given.detach().clone() if isinstance(given, Tensor) else torch.zeros(len(codes))


def _function(convolution: nn.Module) -> Callable[..., Tensor]:
    functions: tuple[tuple[type[nn.Module], Callable[..., Tensor]], ...] = (
        (nn.Conv1d, F.conv1d),
        (nn.Conv2d, F.conv2d),
        (nn.Conv3d, F.conv3d),
    )
    return next(function for kind, function in functions if isinstance(convolution, kind))
