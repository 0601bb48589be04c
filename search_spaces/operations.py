"""Candidate operations of cells, and their weighted sum."""

from collections import OrderedDict
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.bare import layer

__all__ = ["OPERATIONS", "FactorizedReduce", "MixedOp", "normal_convolution", "operation"]

OPERATIONS = (
    "none",
    "skip_connect",
    "avg_pool_3x3",
    "max_pool_3x3",
    "nor_conv_1x1",
    "nor_conv_3x3",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "sep_conv_3x3",
    "sep_conv_5x5",
)
"""Names of DARTS (Liu et al. 2019, arXiv 1806.09055) and NAS-Bench-201 (Dong & Yang 2020, arXiv 2001.00326)."""


@final
class FactorizedReduce(nn.Module):
    """Halve the resolution without dropping pixels: two 1x1 convolutions of stride 2, the second a pixel further on.

    Maps ``(B, in_channels, H, W)`` to ``(B, out_channels, ceil(H / 2), ceil(W / 2))``: ReLU, the two convolutions side
    by side, batch norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, even.
        affine: whether the norm has scales and biases.
    """

    def __init__(self, in_channels: int, out_channels: int, *, affine: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.even = layer(nn.Conv2d, in_channels, half, 1, 2, bias=False)
        self.odd = layer(nn.Conv2d, in_channels, out_channels - half, 1, 2, bias=False)
        self.norm = layer(nn.BatchNorm2d, out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reduced features."""
        x = functional.relu(x)
        shifted = functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        reduced: Tensor = self.norm(torch.cat([self.even(x), self.odd(shifted)], 1))
        return reduced


def normal_convolution(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, affine: bool = True
) -> nn.Sequential:
    """Return ReLU, a ``kernel`` x ``kernel`` convolution and batch norm, which keep the side of the image / stride."""
    convolution = layer(nn.Conv2d, in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    norm = layer(nn.BatchNorm2d, out_channels, affine=affine)
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=convolution, norm=norm))


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> OrderedDict[str, nn.Module]:
    padding = dilation * (kernel // 2)
    options = {"dilation": dilation, "groups": channels, "bias": False}
    return OrderedDict(
        relu=nn.ReLU(),
        depthwise=layer(nn.Conv2d, channels, channels, kernel, stride, padding, **options),
        pointwise=layer(nn.Conv2d, channels, channels, 1, bias=False),
        norm=layer(nn.BatchNorm2d, channels, affine=affine),
    )


def operation(name: str, channels: int, *, stride: int = 1, affine: bool = True) -> nn.Module:
    """Return a new operation from ``(B, channels, H, W)`` to ``(B, channels, ceil(H / stride), ceil(W / stride))``.

    ``nor_conv_*`` are ReLU, convolution, batch norm; ``dil_conv_*`` ReLU, depthwise convolution of dilation 2, 1x1
    convolution, batch norm; ``sep_conv_*`` twice ReLU, depthwise, 1x1, batch norm; ``skip_connect`` is the identity,
    or :class:`FactorizedReduce` where the resolution is halved. Average pooling leaves the padding out of its mean.

    Args:
        name: one of ``OPERATIONS`` but ``"none"``, which is built by building nothing.
        channels: of input and output.
        stride: 1 or 2.
        affine: whether batch norms have scales and biases.

    Raises:
        ValueError: ``name`` is not among them.
    """
    kind, _, size = name.rpartition("_")
    kernel = int(size[0]) if size[:1].isdigit() else 0
    match name if name not in OPERATIONS or not kernel else kind:
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)
        case "avg_pool":
            return nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)
        case "max_pool":
            return nn.MaxPool2d(kernel, stride, kernel // 2)
        case "nor_conv":
            return normal_convolution(channels, channels, kernel, stride=stride, affine=affine)
        case "dil_conv":
            return nn.Sequential(_depthwise(channels, kernel, stride, 2, affine))
        case "sep_conv":
            first, second = _depthwise(channels, kernel, stride, 1, affine), _depthwise(channels, kernel, 1, 1, affine)
            return nn.Sequential(OrderedDict(first=nn.Sequential(first), second=nn.Sequential(second)))
    raise ValueError(f"operation must be one of {OPERATIONS[1:]}, got {name!r}; 'none' is an edge that is not built")


@final
class MixedOp(nn.Module):
    """The weighted sum of operations that share no weights (Liu et al. 2019, arXiv 1806.09055, Eq. 2).

    ``y = sum_k w_k op_k(x)``, a member called ``"none"`` adding nothing. Members keep the names that they have where
    one of them is built alone, so that a subnetwork finds its tensors here.

    Differs from the paper: a normalised operation is scale-free in its input and answers zero with its bias, so its
    term is also multiplied by the probability that there is an input at all; at one-hot weights the sum is then
    exactly the network in which edges without input are absent.

    Args:
        names: of the operations, in the order of the weights.
        channels: of input and output.
        stride: 1 or 2.
        affine: whether batch norms have scales and biases.
    """

    def __init__(self, names: tuple[str, ...], channels: int, *, stride: int = 1, affine: bool = True) -> None:
        super().__init__()
        self.names = names
        self.stride = stride
        for name in names:
            if name != "none":
                self.add_module(name, operation(name, channels, stride=stride, affine=affine))

    def forward(self, x: Tensor, weights: Tensor, presence: Tensor) -> Tensor:
        """Return the sum.

        Args:
            x: ``(B, channels, H, W)``.
            weights: ``(operations,)``; an operation whose weight is zero and needs no gradient is not run.
            presence: ``()``, the probability that the input exists.
        """
        total: Tensor | None = None
        for name, weight in zip(self.names, weights.unbind(), strict=True):
            if name == "none" or (not weight.requires_grad and weight == 0):
                continue
            member = self.get_submodule(name)
            keeps_zero = isinstance(member, nn.Identity | nn.AvgPool2d | nn.MaxPool2d)
            term = member(x) * (weight if keeps_zero else weight * presence)
            total = term if total is None else total + term
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride]) if total is None else total
