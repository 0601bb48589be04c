"""Single-label classification."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from search_spaces import SearchSpace
from supernets.confidence import Decisions
from supernets.distillation import Distillation, SoftTargets
from supernets.tasks.base import Task

__all__ = ["Classification"]


class _MeanLoss(torchmetrics.MeanMetric):
    """Mean cross-entropy over examples, fed like a classification metric."""

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        super().update(F.cross_entropy(logits, labels), weight=len(labels))


class Classification(Task):
    """Single-label classification of ``(images, labels)`` batches; outputs are logits ``(B, num_classes)``.

    Args:
        num_classes: number of classes.
        label_smoothing: of the regularised loss, i.e. where an architecture learns from labels.
        distillation: loss against a teacher's logits, averaged over the batch; default soft targets.

    Raises:
        ValueError: an argument is out of range.
    """

    headline = "accuracy"
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = {
        "accuracy": ("fraction", "maximize"),
        "loss": ("nats", "minimize"),
    }

    def __init__(
        self, num_classes: int, *, label_smoothing: float = 0.0, distillation: Distillation | None = None
    ) -> None:
        if num_classes < 2 or not 0 <= label_smoothing < 1:
            raise ValueError(
                "Classification needs num_classes >= 2 and 0 <= label_smoothing < 1, got "
                f"{num_classes=}, {label_smoothing=}"
            )
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.distillation = SoftTargets() if distillation is None else distillation

    def check(self, space: SearchSpace) -> None:
        """Refuse networks of another number of classes."""
        classes = getattr(space, "num_classes", self.num_classes)
        if classes != self.num_classes:
            raise ValueError(
                f"Classification.num_classes must be that of the space, got {self.num_classes} and "
                f"{type(space).__name__}.num_classes={classes}; make both the number of classes in the data"
            )

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return ``(images,)``."""
        return (batch[0],)

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean cross-entropy, with label smoothing where ``regularise``.

        Raises:
            ValueError: the outputs are no logits of that many classes.
        """
        if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[1] != self.num_classes:
            given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"model.task: networks must return logits of shape (batch, {self.num_classes}), as num_classes says, "
                f"got {given}; correct num_classes or the networks (of a Hugging Face model take `output: logits`)"
            )
        return F.cross_entropy(outputs, batch[1], label_smoothing=self.label_smoothing if regularise else 0.0)

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean distillation loss against the teacher's logits."""
        return self.distillation(outputs, teacher.detach()).mean()

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return ``accuracy`` (top-1, fraction) and ``loss`` (mean cross-entropy, nats)."""
        return torchmetrics.MetricCollection(
            {"accuracy": MulticlassAccuracy(self.num_classes, average="micro"), "loss": _MeanLoss()},
            compute_groups=False,
        )

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch."""
        metrics.update(outputs, batch[1])

    def decisions(self, outputs: Any, batch: Any) -> Decisions:
        """Return one decision for each example."""
        return Decisions(outputs, batch[1], torch.arange(len(outputs), device=outputs.device))
