"""Classification of the nodes of one graph."""

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
import torchmetrics
from torch import Tensor

from search_spaces import SearchSpace
from supernets.confidence import Decisions
from supernets.distillation import Distillation
from supernets.tasks.base import Task
from supernets.tasks.classification import Classification

__all__ = ["NodeClassification"]


@final
class NodeClassification(Task):
    """Classification of the nodes of one graph, which is seen whole; outputs are logits ``(N, num_classes)``.

    A batch is the graph: ``(features (N, F), edge_index (2, E), labels (N,), mask (N,))``. Losses and metrics are over
    the nodes of the mask, which is that of the training, validation or test split.

    Args:
        num_classes: number of classes.
        label_smoothing: of the regularised loss, i.e. where an architecture learns from labels.
        distillation: loss against a teacher's logits, averaged over nodes; default soft targets.
        distilled: ``"labelled"``: students learn from the teacher on the nodes of the mask alone; ``"all"``: on every
            node, which needs no labels.

    Raises:
        ValueError: an argument is out of range.
    """

    headline = Classification.headline
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = Classification.quantities

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        distillation: Distillation | None = None,
        distilled: Literal["labelled", "all"] = "labelled",
    ) -> None:
        if distilled not in ("labelled", "all"):
            raise ValueError(f"NodeClassification.distilled must be 'labelled' or 'all', got {distilled!r}")
        self._nodes = Classification(num_classes, label_smoothing=label_smoothing, distillation=distillation)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.distillation = self._nodes.distillation
        self.distilled = distilled

    def check(self, space: SearchSpace) -> None:
        """Refuse networks of another number of classes, or that take no graph."""
        self._nodes.check(space)
        inputs = space.inputs(space.smallest())
        if len(inputs) != 2:
            raise ValueError(
                "NodeClassification needs networks of (features, edge_index), and those of "
                f"{type(space).__name__} take {len(inputs)} input(s); use search_spaces.GraphSpace"
            )

    @staticmethod
    def _masked(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Return logits and labels of the nodes of the mask."""
        _, _, labels, mask = batch
        return outputs[mask], labels[mask]

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return ``(features, edge_index)``."""
        return batch[0], batch[1]

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean cross-entropy over the nodes of the mask, with label smoothing where ``regularise``."""
        logits, labels = self._masked(outputs, batch)
        return self._nodes.loss(logits, (None, labels), regularise=regularise)

    def counted(self, outputs: Any, batch: Any) -> Any:
        """Return the logits that a student learns from."""
        return outputs if self.distilled == "all" else outputs[batch[3]]

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean distillation loss against the teacher's logits."""
        return self._nodes.distil(outputs, teacher)

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return ``accuracy`` (fraction) and ``loss`` (mean cross-entropy, nats) over nodes."""
        return self._nodes.metrics()

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add the nodes of the mask."""
        logits, labels = self._masked(outputs, batch)
        metrics.update(logits, labels)

    def decisions(self, outputs: Any, batch: Any) -> Decisions:
        """Return one decision for each node of the mask."""
        logits, labels = self._masked(outputs, batch)
        return Decisions(logits, labels, torch.arange(len(labels), device=labels.device))
