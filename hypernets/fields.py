"""The base of condition fields: shapes, checks and a place in the unit interval."""

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

__all__ = ["Field", "Kind", "NumberField", "Value", "in_range", "sized"]

Value = float | int | Tensor
Kind = Literal["task", "data", "noise"]


@dataclass(frozen=True)
class Field(ABC):
    """One part of a condition.

    A value is a tensor ``(K, *shape)``: one entry per weight set. A number stands for K = 1 where ``shape`` is empty.

    Attributes:
        kind: what the review of Chauhan et al. (arXiv 2306.06955) would call a hypernetwork with this input.
        static: all values are known beforehand, so that the generated weights are a finite set.
    """

    kind: ClassVar[Kind] = "task"
    static: ClassVar[bool] = False

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one value."""

    @abstractmethod
    def check(self, values: Tensor, name: str) -> Tensor:
        """Return the values, clamped where the field asks for it.

        Raises:
            ValueError: one is out of range or not a number.
        """

    def read(self, value: Value, name: str, *, like: Tensor) -> Tensor:
        """Return a checked value as a tensor ``(K, *shape)`` with the device and dtype of ``like``.

        Args:
            value: a tensor, whose gradient is kept, or a number.
            name: of the field, for messages.
            like: a parameter of the hypernetwork.

        Raises:
            ValueError: its shape or range is wrong.
        """
        values = torch.as_tensor(value, dtype=self.dtype(like), device=like.device)
        if not self.shape and values.dim() == 0:
            values = values[None]
        if values.dim() != 1 + len(self.shape) or not self.fits(tuple(values.shape[1:])):
            shape = ", ".join("n" if size < 0 else str(size) for size in self.shape)
            raise ValueError(
                f"condition {name!r} must have shape ({f'K, {shape}' if shape else 'K'}), K weight sets at once, "
                f"got {tuple(torch.as_tensor(value).shape)}"
            )
        return self.check(values, name)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether one value may have this shape."""
        return shape == self.shape

    def dtype(self, like: Tensor) -> torch.dtype:
        """Type that values are kept in."""
        return like.dtype

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` random values: uniform over the range, normal for noise."""

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`field_from_json` needs."""
        return {"field": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class NumberField(Field):
    """A field of numbers that have a place in [0, 1]."""

    @property
    def width(self) -> int:
        """Numbers in one value."""
        return math.prod(self.shape)

    @abstractmethod
    def unit(self, values: Tensor) -> Tensor:
        """Map checked values to [0, 1], elementwise."""

    def raw(self, values: Tensor) -> Tensor:
        """Return the values as an ordinary hypernetwork, without encoding, would see them."""
        return self.unit(values)


def in_range(values: Tensor, low: float, high: float, name: str, *, clamp: bool) -> Tensor:
    """Return the values, clamped to [low, high] if asked for.

    Raises:
        ValueError: one is outside and that is not asked for, or it is no number.
    """
    seen = values.detach()
    if not bool(((seen >= low) & (seen <= high)).all()):
        if not clamp or bool(seen.isnan().any()):
            raise ValueError(
                f"condition {name!r} must lie in [{low:g}, {high:g}], got values from {seen.min():g} to "
                f"{seen.max():g}; widen the range, or pass clamp=True to its field"
            )
        return values.clamp(low, high)
    return values


def sized(size: int | None) -> None:
    """Raise if a size or count, where there is one, is below 1."""
    if size is not None and size < 1:
        raise ValueError(f"sizes and counts must be >= 1, got {size}")
