"""Static building blocks of the convolutional and dense spaces; nothing here is elastic."""

from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.bare import layer

__all__ = [
    "ACTIVATIONS",
    "BasicBlock",
    "InvertedResidual",
    "Resize",
    "activation",
    "activation_function",
    "round_channels",
]

ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "tanh")


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """Return the element-wise function called ``name``.

    Raises:
        ValueError: ``name`` is none of ``ACTIVATIONS``.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {name!r}")
    function: Callable[[Tensor], Tensor] = torch.tanh if name == "tanh" else getattr(functional, name)
    return function


def activation(name: str) -> nn.Module:
    """Return a new activation module.

    Raises:
        ValueError: ``name`` is none of ``ACTIVATIONS``.
    """
    activation_function(name)
    modules: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "silu": nn.SiLU,
        "gelu": nn.GELU,
        "hardswish": nn.Hardswish,
        "tanh": nn.Tanh,
    }
    return modules[name]()


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` nearest to ``channels``, at least ``divisor`` and at least 90 % of it.

    The convention of the MobileNet family (Howard et al. 2019, arXiv 1905.02244, reference code).

    >>> round_channels(17), round_channels(18), round_channels(4), round_channels(44)
    (16, 24, 8, 48)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@final
class Resize(nn.Module):
    """Bilinear resize of ``(B, C, H, W)`` to ``(B, C, resolution, resolution)``; images of that size pass unchanged."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized images."""
        size = (self.resolution, self.resolution)
        if x.shape[-2:] == size:
            return x
        return functional.interpolate(x, size, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        """Return the target size for ``repr``."""
        return f"resolution={self.resolution}"


@final
class InvertedResidual(nn.Module):
    """Inverted residual block of MobileNetV2/V3 (Sandler et al. 2018, arXiv 1801.04381; Howard et al. 2019).

    ``y = P(se(D(E(x)))) + S(x)``: expansion E (1x1), depthwise D (kxk), projection P (1x1), each batch-normalised,
    activated but for the last. Squeeze-excite scales channels by ``hardsigmoid(W2 relu(W1 mean_hw(h)))`` (Hu et al.
    2018, arXiv 1709.01507, Eq. 2-4). The shortcut S is zero, the identity, or average pooling by the stride followed
    by a 1x1 convolution.

    Args:
        in_channels: channels of the input ``(B, in_channels, H, W)``.
        hidden: channels between E and P.
        out_channels: channels of the output ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.
        kernel: odd side of the depthwise kernel, in pixels.
        stride: stride of the depthwise convolution.
        expand: whether there is an expansion E; without it ``hidden`` equals ``in_channels``.
        squeeze: channels inside squeeze-excite; 0 for none.
        activation: one of ``ACTIVATIONS``.
        shortcut: what S is; the identity needs equal channels and stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        expand: bool,
        squeeze: int,
        activation: str,
        shortcut: Literal["none", "identity", "project"],
    ) -> None:
        super().__init__()
        self.activation = activation_function(activation)
        self.has_expand = expand
        self.has_squeeze = squeeze > 0
        self.has_shortcut = shortcut != "none"
        self.has_projection = shortcut == "project"
        self.stride = stride
        if expand:
            self.expand = layer(nn.Conv2d, in_channels, hidden, 1, bias=False)
            self.expand_norm = layer(nn.BatchNorm2d, hidden)
        self.depthwise = layer(nn.Conv2d, hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.depthwise_norm = layer(nn.BatchNorm2d, hidden)
        if squeeze:
            self.squeeze = layer(nn.Conv2d, hidden, squeeze, 1)
            self.excite = layer(nn.Conv2d, squeeze, hidden, 1)
        self.project = layer(nn.Conv2d, hidden, out_channels, 1, bias=False)
        self.project_norm = layer(nn.BatchNorm2d, out_channels)
        if self.has_projection:
            self.shortcut = layer(nn.Conv2d, in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
        h: Tensor = x
        if self.has_expand:
            h = self.activation(self.expand_norm(self.expand(h)))
        h = self.activation(self.depthwise_norm(self.depthwise(h)))
        if self.has_squeeze:
            gate = functional.relu(self.squeeze(h.mean((2, 3), keepdim=True)))
            h = h * functional.hardsigmoid(self.excite(gate))
        h = self.project_norm(self.project(h))
        if self.has_projection:
            x = functional.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
            x = self.shortcut(x)
        if self.has_shortcut:
            h = x + h
        return h


@final
class BasicBlock(nn.Module):
    """Residual block of two convolutions (He et al. 2016, arXiv 1512.03385, Fig. 2 and Eq. 2).

    ``y = act(F(x) + S(x))`` with ``F`` two batch-normalised ``kxk`` convolutions, and ``S`` the identity or a
    batch-normalised 1x1 projection.

    Args:
        in_channels: channels of the input ``(B, in_channels, H, W)``.
        hidden: channels between the convolutions.
        out_channels: channels of the output ``(B, out_channels, ceil(H / stride), ceil(W / stride))``.
        kernel: odd side of both kernels, in pixels.
        stride: stride of the first convolution.
        activation: one of ``ACTIVATIONS``.
        project: whether S is a projection; without it channels must be equal and the stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        activation: str,
        project: bool,
    ) -> None:
        super().__init__()
        self.activation = activation_function(activation)
        self.has_projection = project
        self.conv1 = layer(nn.Conv2d, in_channels, hidden, kernel, stride, kernel // 2, bias=False)
        self.norm1 = layer(nn.BatchNorm2d, hidden)
        self.conv2 = layer(nn.Conv2d, hidden, out_channels, kernel, 1, kernel // 2, bias=False)
        self.norm2 = layer(nn.BatchNorm2d, out_channels)
        if project:
            self.shortcut = layer(nn.Conv2d, in_channels, out_channels, 1, stride, bias=False)
            self.shortcut_norm = layer(nn.BatchNorm2d, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / stride), ceil(W / stride))``."""
        h = self.activation(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        x = self.shortcut_norm(self.shortcut(x)) if self.has_projection else x
        return self.activation(h + x)
