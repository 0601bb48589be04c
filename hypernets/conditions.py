"""What a hypernetwork can be asked with: one class per kind of condition."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from hypernets.fields import Field, Kind, NumberField, Value, in_range, sized
from hypernets.labelled import LabelledExamples

__all__ = [
    "ArchitectureCode",
    "Bits",
    "Bounded",
    "Categorical",
    "Examples",
    "Gaussian",
    "Real",
    "Size",
    "Unit",
    "field_from_json",
]


@final
@dataclass(frozen=True)
class Bounded(NumberField):
    """Numbers in [low, high], mapped linearly to [0, 1].

    Attributes:
        low: smallest.
        high: largest.
        size: ``None`` for one number per weight set, or the length of a vector.
        clamp: move values outside to the nearest end instead of refusing them.
    """

    low: float
    high: float
    size: int | None = None
    clamp: bool = False

    def __post_init__(self) -> None:
        sized(self.size)
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low < high must hold and both be finite, got low={self.low}, high={self.high}")

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return () if self.size is None else (self.size,)

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        return in_range(values, self.low, self.high, name, clamp=self.clamp)

    def unit(self, values: Tensor) -> Tensor:  # noqa: D102
        return (values - self.low) / (self.high - self.low)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        drawn = self.low + (self.high - self.low) * torch.rand((count, *self.shape), generator=generator)
        return drawn.clamp(self.low, self.high)


@final
@dataclass(frozen=True)
class Unit(NumberField):
    """Numbers in [0, 1]; see :class:`Bounded` for the attributes."""

    size: int | None = None
    clamp: bool = False

    def __post_init__(self) -> None:
        sized(self.size)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return () if self.size is None else (self.size,)

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        return in_range(values, 0, 1, name, clamp=self.clamp)

    def unit(self, values: Tensor) -> Tensor:  # noqa: D102
        return values

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        return torch.rand((count, *self.shape), generator=generator)


@final
@dataclass(frozen=True)
class ArchitectureCode(NumberField):
    """An architecture as a vector in [0, 1], e.g. ``space.encode(architecture)``.

    Attributes:
        size: length of the vector.
    """

    size: int

    def __post_init__(self) -> None:
        sized(self.size)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return (self.size,)

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        return in_range(values, 0, 1, name, clamp=False)

    def unit(self, values: Tensor) -> Tensor:  # noqa: D102
        return values

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        return torch.rand((count, self.size), generator=generator)


@final
@dataclass(frozen=True)
class Gaussian(NumberField):
    """Standard normal noise, mapped to [0, 1] by its distribution function.

    Attributes:
        size: length of the vector.
    """

    kind: ClassVar[Kind] = "noise"
    size: int

    def __post_init__(self) -> None:
        sized(self.size)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return (self.size,)

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        return in_range(values, -torch.finfo(values.dtype).max, torch.finfo(values.dtype).max, name, clamp=False)

    def unit(self, values: Tensor) -> Tensor:  # noqa: D102
        mapped: Tensor = torch.special.ndtr(values)
        return mapped

    def raw(self, values: Tensor) -> Tensor:  # noqa: D102
        return values

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        return torch.randn((count, self.size), generator=generator)


@final
@dataclass(frozen=True)
class Real(NumberField):
    """Numbers without bounds, such as hyperparameters before a transform; mapped to [0, 1] by the logistic function.

    Attributes:
        size: length of the vector.
    """

    size: int

    def __post_init__(self) -> None:
        sized(self.size)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return (self.size,)

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        return in_range(values, -torch.finfo(values.dtype).max, torch.finfo(values.dtype).max, name, clamp=False)

    def unit(self, values: Tensor) -> Tensor:  # noqa: D102
        return values.sigmoid()

    def raw(self, values: Tensor) -> Tensor:  # noqa: D102
        return values

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        return torch.randn((count, self.size), generator=generator)


@final
@dataclass(frozen=True)
class Size(NumberField):
    """A positive size such as a width, mapped to [0, 1] on a logarithmic scale.

    Attributes:
        low: smallest.
        high: largest.
        clamp: see :class:`Bounded`.
    """

    low: float
    high: float
    clamp: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"0 < low < high must hold, got low={self.low}, high={self.high}")

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return ()

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        return in_range(values, self.low, self.high, name, clamp=self.clamp)

    def unit(self, values: Tensor) -> Tensor:  # noqa: D102
        return (values / self.low).log2() / math.log2(self.high / self.low)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        drawn = self.low * (self.high / self.low) ** torch.rand(count, generator=generator)
        return drawn.clamp(self.low, self.high)


@final
@dataclass(frozen=True)
class Bits(NumberField):
    """A bitwidth out of a few, mapped to [0, 1] on a logarithmic scale.

    Attributes:
        widths: the bitwidths, ascending.
    """

    static: ClassVar[bool] = True
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) < 2 or self.widths[0] < 1 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths must be two or more different ascending numbers >= 1, got {self.widths}")

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return ()

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        unknown = set(values.detach().tolist()) - set(self.widths)
        if unknown:
            raise ValueError(f"condition {name!r} must be one of {self.widths}, got {sorted(unknown)}")
        return values

    def unit(self, values: Tensor) -> Tensor:  # noqa: D102
        return (values / self.widths[0]).log2() / math.log2(self.widths[-1] / self.widths[0])

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        return torch.tensor(self.widths)[torch.randint(len(self.widths), (count,), generator=generator)]


@final
@dataclass(frozen=True)
class Categorical(Field):
    """One of ``count`` tasks, classes or names, each with a learned vector.

    Attributes:
        count: number of categories; values are integers from 0.
        embedding: length of the learned vectors.
    """

    static: ClassVar[bool] = True
    count: int
    embedding: int = 16

    def __post_init__(self) -> None:
        sized(self.count)
        sized(self.embedding)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return ()

    def dtype(self, like: Tensor) -> torch.dtype:  # noqa: D102
        del like
        return torch.int64

    def read(self, value: Value, name: str, *, like: Tensor) -> Tensor:  # noqa: D102
        if torch.as_tensor(value).dtype not in {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}:
            raise ValueError(f"condition {name!r} must be integers, got {torch.as_tensor(value).dtype}")
        return Field.read(self, value, name, like=like)

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        return in_range(values, 0, self.count - 1, name, clamp=False)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        return torch.randint(self.count, (count,), generator=generator)


@final
@dataclass(frozen=True)
class Examples(Field):
    """A set of feature vectors, such as examples of a data set; their order and number do not matter.

    Attributes:
        size: length of a vector.
        embedding: length of the learned summary.
    """

    kind: ClassVar[Kind] = "data"
    size: int
    embedding: int = 32

    def __post_init__(self) -> None:
        sized(self.size)
        sized(self.embedding)

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return (-1, self.size)

    def fits(self, shape: tuple[int, ...]) -> bool:  # noqa: D102
        return len(shape) == 2 and shape[0] > 0 and shape[1] == self.size

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        if not bool(values.detach().isfinite().all()):
            raise ValueError(f"condition {name!r} must be finite")
        return values

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        del count, generator
        raise ValueError("a set of examples cannot be drawn at random; take it from data")


def field_from_json(data: Mapping[str, Any]) -> Field:
    """Return the field that wrote ``data``.

    Raises:
        ValueError: its class is unknown.
    """
    known: tuple[type[Field], ...] = (
        Unit,
        Bounded,
        ArchitectureCode,
        Gaussian,
        Real,
        Size,
        Bits,
        Categorical,
        Examples,
        LabelledExamples,
    )
    classes = {cls.__name__: cls for cls in known}
    if data["field"] not in classes:
        raise ValueError(f"field must be one of {list(classes)}, got {data['field']!r}")
    return classes[data["field"]](**{name: value for name, value in data.items() if name != "field"})
