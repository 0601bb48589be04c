"""A data set as a condition: a few labelled examples of every class."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from hypernets.fields import Field, Kind, sized

__all__ = ["LabelledExamples", "Summary"]

Summary = Literal["statistics", "set_transformer"]


@final
@dataclass(frozen=True)
class LabelledExamples(Field):
    """A set of labelled feature vectors; their order does not matter, and their number may differ between calls.

    A value is made by :meth:`of`: each row is the features of one example and, behind them, its class as a one-hot
    vector. Every class needs at least one example.

    Attributes:
        size: number of features.
        classes: number of classes.
        embedding: length of the learned summary of a data set.
        summary: ``statistics`` reads the mean features of each class; ``set_transformer`` attends to the examples of
            each class, and then to the classes.
    """

    kind: ClassVar[Kind] = "data"
    size: int
    classes: int
    embedding: int = 32
    summary: Summary = "statistics"

    def __post_init__(self) -> None:
        for number in (self.size, self.classes, self.embedding):
            sized(number)
        if self.summary not in get_args(Summary):
            raise ValueError(f"summary must be one of {get_args(Summary)}, got {self.summary!r}")

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        return (-1, self.size + self.classes)

    def fits(self, shape: tuple[int, ...]) -> bool:  # noqa: D102
        return len(shape) == 2 and shape[0] > 0 and shape[1] == self.size + self.classes

    def of(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the value of a data set.

        Args:
            features: ``(n, size)`` or, of several data sets, ``(K, n, size)``.
            labels: ``(n,)`` or ``(K, n)`` integers from 0.

        Returns:
            ``(K, n, size + classes)``, K = 1 for one data set.

        Raises:
            ValueError: shapes or labels do not fit.
        """
        if features.shape[:-1] != labels.shape or features.dim() not in {2, 3} or features.shape[-1] != self.size:
            raise ValueError(
                f"features must be (n, {self.size}) or (K, n, {self.size}) with one label each, got "
                f"{tuple(features.shape)} and labels {tuple(labels.shape)}"
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(f"labels must lie in 0..{self.classes - 1}, got {labels.min()} to {labels.max()}")
        rows = torch.cat([features, F.one_hot(labels.long(), self.classes).to(features.dtype)], dim=-1)
        return rows if rows.dim() == 3 else rows[None]

    def check(self, values: Tensor, name: str) -> Tensor:  # noqa: D102
        seen = values.detach()
        if not bool(seen.isfinite().all()):
            raise ValueError(f"condition {name!r} must be finite")
        members = seen[..., self.size :]
        if not bool(((members == 0) | (members == 1)).all() and (members.sum(-1) == 1).all()):
            raise ValueError(f"condition {name!r} needs one class per example behind its features; make it with of()")
        empty = (members.sum(1) == 0).any(0).nonzero().flatten().tolist()
        if len(values) and empty:
            raise ValueError(f"condition {name!r} needs at least one example of every class, there is none of {empty}")
        return values

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # noqa: D102
        del count, generator
        raise ValueError("labelled examples cannot be drawn at random; take them from data")
