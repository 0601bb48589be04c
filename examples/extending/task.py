"""A task with a loss and metrics of its own: the prediction of one number."""

from collections.abc import Mapping
from typing import Any, Literal, final

import torchmetrics
from torch import Tensor
from torch.nn import functional as F

from supernets import Task


@final
class Regression(Task):
    """Predict the targets of ``(features, targets (B,))`` batches; outputs are ``(B,)`` or ``(B, 1)``.

    The loss is that of Huber: squared below ``delta``, linear above. A student learns from a teacher by the same loss.

    Args:
        delta: above which an error is an outlier, in units of the target.
    """

    headline = "mae"
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = {
        "mae": ("1", "minimize"),
        "rmse": ("1", "minimize"),
    }

    def __init__(self, *, delta: float = 1.0) -> None:
        self.delta = delta

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the positional arguments of the network."""
        return (batch[0],)

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean loss; there is no regularisation to add."""
        del regularise
        return F.huber_loss(outputs.flatten(), batch[1], delta=self.delta)

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean loss against what the teacher predicts."""
        return F.huber_loss(outputs, teacher, delta=self.delta)

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return new metrics, named as in ``quantities``."""
        rmse = torchmetrics.MeanSquaredError(squared=False)
        return torchmetrics.MetricCollection({"mae": torchmetrics.MeanAbsoluteError(), "rmse": rmse})

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch."""
        metrics.update(outputs.flatten(), batch[1])
