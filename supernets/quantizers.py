"""Weight quantisers: weights and bits in, weights of few values out, differentiably."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from search_spaces.quantizer import fake_quantize, grid
from supernets.straight_through import straight_through

__all__ = ["LSQ", "SBS", "Binary", "Codes", "FixedPoint", "StatsQ", "Ternary", "WeightQuantizer"]

Granularity = Literal["tensor", "channel"]


@dataclass(frozen=True)
class Codes:
    """Quantised weights as integers: ``value = scale * (codes + offset)``.

    Attributes:
        codes: int8 (int16 above 8 bits), in the shape of the weight.
        scale: broadcastable to it: ``()``, or one number for each output channel.
        offset: 0 for grids that contain zero, 0.5 for mid-rise ones.
        bits: of a code.
    """

    codes: Tensor
    scale: Tensor
    offset: float
    bits: int

    def value(self) -> Tensor:
        """Return the weights, exactly those of the fake-quantised subnetwork."""
        codes = self.codes.to(self.scale.dtype)
        return (codes + self.offset if self.offset else codes) * self.scale


class WeightQuantizer(ABC):
    """Rounds weights to ``2 ** bits`` values or fewer; holds no tensors, so that one object serves every layer.

    Attributes:
        learned: whether scales are parameters; else they follow from the weights, and the argument is not used.
        shared: whether one learned scale of a layer serves all its bitwidths.
        offset: see :class:`Codes`.
    """

    learned: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    offset: ClassVar[float] = 0.0

    @abstractmethod
    def check(self, bits: Sequence[int]) -> None:
        """Refuse bitwidths that the quantiser does not have.

        Raises:
            ValueError: naming those it has.
        """

    def initial(self, weight: Tensor, bits: int) -> Tensor:
        """Return the learned scale to start from, broadcastable to ``weight``.

        Raises:
            TypeError: nothing is learned.
        """
        del weight, bits
        raise TypeError(f"scales of {type(self).__name__} follow from the weights")

    @abstractmethod
    def step(self, weight: Tensor, bits: int, scale: Tensor | None) -> Tensor:
        """Return the distance of neighbouring values, broadcastable to ``weight``.

        Args:
            weight: ``(outputs, ...)``.
            bits: fewer than 32.
            scale: the learned scale, if any.
        """

    def bounds(self, bits: int) -> tuple[int, int]:
        """Return the smallest and the largest code."""
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def places(self, weight: Tensor, step: Tensor, bits: int) -> Tensor:
        """Return the codes in floating point."""
        return grid(weight, step, *self.bounds(bits), self.offset)

    def codes(self, weight: Tensor, bits: int, scale: Tensor | None = None) -> Codes:
        """Return the weights as integers; without gradients."""
        with torch.no_grad():
            step = self.step(weight, bits, scale)
            places = self.places(weight, step, bits)
        return Codes(places.to(torch.int8 if bits <= 8 else torch.int16), step.detach(), self.offset, bits)

    def __call__(self, weight: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
        """Return the fake-quantised weights in the shape of ``weight``, differentiable by straight-through estimates.

        Here the gradient passes unchanged (Bengio et al. 2013, arXiv 1308.3432).
        """
        return straight_through(self.codes(weight, bits, scale).value(), weight)


def _per_channel(weight: Tensor) -> tuple[int, ...]:
    return tuple(range(1, weight.ndim))


def _mean_magnitude(weight: Tensor, granularity: Granularity) -> Tensor:
    """Mean of ``|w|``, ``()`` or ``(outputs, 1, ...)``."""
    if granularity == "tensor":
        return weight.abs().mean()
    return weight.abs().mean(_per_channel(weight), keepdim=True)


def _check_granularity(owner: object, granularity: str) -> None:
    if granularity not in ("tensor", "channel"):
        raise ValueError(f"{type(owner).__name__}.granularity must be 'tensor' or 'channel', got {granularity!r}")


def _refuse(owner: object, bits: Sequence[int], wanted: str) -> None:
    raise ValueError(
        f"{type(owner).__name__} quantises to {wanted}, got weight bits {tuple(bits)}; change weight_bits or ends of "
        "the space, or use another quantizer"
    )


@final
class LSQ(WeightQuantizer):
    """Learned step size (Esser et al. 2020, arXiv 1902.08153): ``w^ = s round(clip(w / s, -Q_n, Q_p))``.

    ``Q_n = 2^(b-1)``, ``Q_p = 2^(b-1) - 1``, gradients of Eq. 3 and 5, that of ``s`` times ``1 / sqrt(N Q_p)`` with
    ``N`` the weights of a scale; ``s`` starts at ``2 E|w| / sqrt(Q_p)``.

    Args:
        granularity: a scale for each ``"tensor"``, as in the paper, or for each output ``"channel"``.

    Raises:
        ValueError: the granularity is neither.
    """

    learned = True

    def __init__(self, granularity: Granularity = "channel") -> None:
        _check_granularity(self, granularity)
        self.granularity = granularity

    def check(self, bits: Sequence[int]) -> None:
        """Accept 2 bits and more; see :class:`WeightQuantizer`."""
        if min(bits) < 2:
            _refuse(self, bits, "2 bits or more")

    def initial(self, weight: Tensor, bits: int) -> Tensor:
        """Return ``2 E|w| / sqrt(Q_p)``; see :class:`WeightQuantizer`."""
        return 2 * _mean_magnitude(weight, self.granularity) / math.sqrt(self.bounds(bits)[1])

    def step(self, weight: Tensor, bits: int, scale: Tensor | None) -> Tensor:
        """Return the scale."""
        assert scale is not None  # noqa: S101 - learned
        return scale

    def __call__(self, weight: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
        """Return the fake-quantised weights; see :class:`WeightQuantizer`."""
        step = self.step(weight, bits, scale)
        low, high = self.bounds(bits)
        factor = 1 / math.sqrt(weight.numel() / step.numel() * high)
        return fake_quantize(weight, step, low, high, gradient_factor=factor)


@final
class SBS(WeightQuantizer):
    """Shared bits (Liu et al., arXiv 2101.04935): grids of 2, 4 and 8 bits inside one another, over one learned range.

    ``Q(w) = v (2 D(z, s_b) - 1)`` with ``z = (clip(w / v, -1, 1) + 1) / 2``, ``D(z, s) = s round(z / s)`` and
    ``s_b = 1 / (2^b - 1)``: mid-rise, without a zero. Because ``2^(2b) - 1 = (2^b - 1)(2^b + 1)``, every value of one
    grid is a value of the next, and ``D(z, s_2b) = D(z, s_b) + D(z - D(z, s_b), s_2b)``. The range ``v`` is shared by
    all bitwidths of a layer; gradients pass as in the paper, through the rounding as if it were not there.

    Differs from the authors' code: weights are not normalised, so that their mean is kept and a trained network can be
    quantised as it is; ``v`` starts at ``3 E|w|``; its gradient is scaled like that of LSQ.

    Args:
        granularity: a range for each ``"tensor"``, as in the paper, or for each output ``"channel"``.

    Raises:
        ValueError: the granularity is neither.
    """

    learned = True
    shared = True
    offset = 0.5

    def __init__(self, granularity: Granularity = "channel") -> None:
        _check_granularity(self, granularity)
        self.granularity = granularity

    def check(self, bits: Sequence[int]) -> None:
        """Accept powers of two up to 16; see :class:`WeightQuantizer`."""
        if not set(bits) <= {1, 2, 4, 8, 16}:
            _refuse(self, bits, "1, 2, 4, 8 or 16 bits, whose grids lie inside one another")

    def initial(self, weight: Tensor, bits: int) -> Tensor:
        """Return ``3 E|w|``; see :class:`WeightQuantizer`."""
        del bits
        return 3 * _mean_magnitude(weight, self.granularity)

    def step(self, weight: Tensor, bits: int, scale: Tensor | None) -> Tensor:
        """Return ``2 v / (2^b - 1)``."""
        assert scale is not None  # noqa: S101 - learned
        return scale * (2 / ((1 << bits) - 1))

    def __call__(self, weight: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
        """Return the fake-quantised weights; see :class:`WeightQuantizer`."""
        step = self.step(weight, bits, scale)
        low, high = self.bounds(bits)
        factor = 1 / math.sqrt(weight.numel() / step.numel() * max(high, 1))
        return fake_quantize(weight, step, low, high, offset=self.offset, gradient_factor=factor)


@final
class StatsQ(WeightQuantizer):
    """Scales from statistics, never learned (OFQ, Liu et al. 2023, arXiv 2302.02210): nothing that can oscillate.

    ``w^ = s (round(n clip(w / s, -1, 1 - 1e-6) - 1/2) + 1/2) / n`` with ``n = 2^(b-1)`` and ``s = 2 E|w|`` of each
    output channel, without gradient. Mid-rise, without a zero. The scale follows whatever part of a shared weight is in
    use.
    """

    offset = 0.5

    def check(self, bits: Sequence[int]) -> None:
        """Accept any; see :class:`WeightQuantizer`."""

    def step(self, weight: Tensor, bits: int, scale: Tensor | None) -> Tensor:
        """Return ``s / n``."""
        del scale
        return 2 * _mean_magnitude(weight, "channel").clamp(min=1e-8) / (1 << (bits - 1))


@final
class FixedPoint(WeightQuantizer):
    """Fixed-point numbers: ``w^ = clip(round(w 2^f), -2^(b-1), 2^(b-1) - 1) 2^-f``.

    Args:
        fraction: ``f``, bits behind the point; ``None``: as many as the largest weight of the tensor leaves room for.
    """

    def __init__(self, fraction: int | None = None) -> None:
        self.fraction = fraction

    def check(self, bits: Sequence[int]) -> None:
        """Accept 2 bits and more; see :class:`WeightQuantizer`."""
        if min(bits) < 2:
            _refuse(self, bits, "2 bits or more")

    def step(self, weight: Tensor, bits: int, scale: Tensor | None) -> Tensor:
        """Return ``2^-f``."""
        del scale
        if self.fraction is not None:
            return weight.new_tensor(2.0**-self.fraction)
        largest = weight.abs().max().clamp(min=1e-8)
        return torch.exp2((largest / self.bounds(bits)[1]).log2().ceil())

    def __call__(self, weight: Tensor, bits: int, scale: Tensor | None = None) -> Tensor:
        """Return the fake-quantised weights; no gradient where they are clipped."""
        step = self.step(weight.detach(), bits, scale)
        return fake_quantize(weight, step, *self.bounds(bits))


@final
class Ternary(WeightQuantizer):
    """Three values (TWN, Li et al. 2016, arXiv 1605.04711): ``a sign(w)`` where ``|w| > 0.7 E|w|``, else 0.

    ``a`` is the mean of ``|w|`` over these, for each output channel. Two bits.
    """

    def check(self, bits: Sequence[int]) -> None:
        """Accept 2 bits; see :class:`WeightQuantizer`."""
        if set(bits) != {2}:
            _refuse(self, bits, "2 bits, three values")

    def bounds(self, bits: int) -> tuple[int, int]:
        """Return -1 and 1."""
        del bits
        return -1, 1

    def _kept(self, weight: Tensor) -> Tensor:
        return weight.abs() > 0.7 * _mean_magnitude(weight, "channel")

    def step(self, weight: Tensor, bits: int, scale: Tensor | None) -> Tensor:
        """Return ``a``."""
        del bits, scale
        kept, dims = self._kept(weight), _per_channel(weight)
        return (weight.abs() * kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True).clamp(min=1)

    def places(self, weight: Tensor, step: Tensor, bits: int) -> Tensor:
        """Return -1, 0 and 1."""
        del step, bits
        return weight.sign() * self._kept(weight)


@final
class Binary(WeightQuantizer):
    """Two values (BWN, Rastegari et al. 2016, arXiv 1603.05279): ``sign(w) E|w|`` of each output channel. One bit."""

    offset = 0.5

    def check(self, bits: Sequence[int]) -> None:
        """Accept 1 bit; see :class:`WeightQuantizer`."""
        if set(bits) != {1}:
            _refuse(self, bits, "1 bit")

    def step(self, weight: Tensor, bits: int, scale: Tensor | None) -> Tensor:
        """Return the distance of the two values, ``2 E|w|``."""
        del bits, scale
        return 2 * _mean_magnitude(weight, "channel").clamp(min=1e-8)
