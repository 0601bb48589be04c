"""Tasks: what a batch is, what the loss is, and how a subnetwork is scored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

__all__ = ["Classification", "Task"]


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
    def distillation(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the scalar loss against a teacher's outputs, which get no gradient."""

    @abstractmethod
    def metrics(self) -> torchmetrics.MetricCollection:
        """Return new metrics, among them ``headline``."""

    @abstractmethod
    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch to ``metrics``."""


class _MeanLoss(torchmetrics.MeanMetric):
    """Mean cross-entropy over examples, fed like a classification metric."""

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        super().update(F.cross_entropy(logits, labels), weight=len(labels))


class Classification(Task):
    """Single-label classification of ``(images, labels)`` batches; outputs are logits ``(B, num_classes)``.

    Args:
        num_classes: number of classes.
        label_smoothing: of the regularised loss, i.e. where an architecture learns from labels.
        temperature: ``T`` of the distillation loss ``-T^2 sum_c softmax(z_t / T)_c log softmax(z / T)_c``, averaged
            over the batch (Hinton et al., arXiv 1503.02531; BigNAS uses T = 1).

    Raises:
        ValueError: an argument is out of range.
    """

    headline = "accuracy"
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = {
        "accuracy": ("fraction", "maximize"),
        "loss": ("nats", "minimize"),
    }

    def __init__(self, num_classes: int, *, label_smoothing: float = 0.0, temperature: float = 1.0) -> None:
        if num_classes < 2 or not 0 <= label_smoothing < 1 or temperature <= 0:
            raise ValueError(
                "Classification needs num_classes >= 2, 0 <= label_smoothing < 1 and temperature > 0, got "
                f"{num_classes=}, {label_smoothing=}, {temperature=}"
            )
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.temperature = temperature

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return ``(images,)``."""
        return (batch[0],)

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean cross-entropy, with label smoothing where ``regularise``."""
        return F.cross_entropy(outputs, batch[1], label_smoothing=self.label_smoothing if regularise else 0.0)

    def distillation(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean soft cross-entropy against the teacher."""
        soft = torch.softmax(teacher.detach() / self.temperature, dim=-1)
        return F.cross_entropy(outputs / self.temperature, soft) * self.temperature**2

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return ``accuracy`` (top-1, fraction) and ``loss`` (mean cross-entropy, nats)."""
        return torchmetrics.MetricCollection(
            {"accuracy": MulticlassAccuracy(self.num_classes, average="micro"), "loss": _MeanLoss()},
            compute_groups=False,
        )

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch."""
        metrics.update(outputs, batch[1])
