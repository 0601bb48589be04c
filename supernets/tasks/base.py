"""What every task promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torchmetrics
from torch import Tensor

__all__ = ["Task"]


class Task(ABC):
    """One kind of problem: how to read a batch, the losses, and the metrics.

    A task holds no weights and no state; metrics are made fresh for every subnetwork, so that scores never mix.

    Attributes:
        headline: the metric by which subnetworks are ranked.
        quantities: (unit, direction) of each metric that :meth:`metrics` computes.
    """

    headline: str
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]]

    @abstractmethod
    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the positional arguments of the module."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the scalar loss against the labels, with the task's regularisation where asked."""

    @abstractmethod
    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the scalar loss against a teacher's outputs, which get no gradient."""

    @abstractmethod
    def metrics(self) -> torchmetrics.MetricCollection:
        """Return new metrics, among them ``headline``."""

    @abstractmethod
    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch to ``metrics``."""
