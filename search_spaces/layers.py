"""Static building blocks of the convolutional and dense spaces; nothing here is elastic."""

from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "SqueezeExcite", "activation", "round_channels"]

ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hardswish", "tanh")


def activation(name: str) -> nn.Module:
    """Return a new activation module.

    Raises:
        ValueError: ``name`` is none of ``ACTIVATIONS``.
    """
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "relu6":
            return nn.ReLU6(inplace=True)
        case "silu":
            return nn.SiLU(inplace=True)
        case "gelu":
            return nn.GELU()
        case "hardswish":
            return nn.Hardswish(inplace=True)
        case "tanh":
            return nn.Tanh()
        case _:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {name!r}")


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` nearest to ``channels``, at least ``divisor`` and at least 90 % of it.

    The convention of the MobileNet family (Howard et al. 2019, arXiv 1905.02244, reference code).

    >>> round_channels(18), round_channels(4), round_channels(44)
    (24, 8, 48)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Channel attention: ``x * hardsigmoid(W2 relu(W1 mean_hw(x)))`` (Hu et al. 2018, arXiv 1709.01507, Eq. 2-4).

    Args:
        channels: channels of the input and output, ``(B, channels, H, W)``.
        hidden: channels between the two linear maps.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, ``(B, C, H, W)``, with each channel scaled."""
        gate = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * nn.functional.hardsigmoid(self.expand(gate))
