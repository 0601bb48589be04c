"""What every task promises."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torchmetrics
from torch import Tensor, nn

from search_spaces import SearchSpace
from supernets.confidence import Decisions

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

    def check(self, space: SearchSpace) -> None:
        """Refuse a space whose networks do not fit this task, before training. Default: take any.

        Only what a space says of itself in public attributes such as ``num_classes``, ``vocabulary``, ``context`` and
        ``padding`` is compared; a space without them is taken.

        Raises:
            ValueError: saying what does not go together and what to use instead.
        """
        del space

    @abstractmethod
    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the positional arguments of the module."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the scalar loss against the labels, with the task's regularisation where asked."""

    def counted(self, outputs: Any, batch: Any) -> Any:
        """Return the part of the outputs that a student learns from, e.g. without padding. Default: all."""
        del batch
        return outputs

    @abstractmethod
    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the scalar loss against a teacher's outputs, which get no gradient; both as ``counted`` gives them."""

    @abstractmethod
    def metrics(self) -> torchmetrics.MetricCollection:
        """Return new metrics, among them ``headline``."""

    @abstractmethod
    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch to ``metrics``."""

    @property
    def decides(self) -> bool:
        """Whether the task chooses among classes, so that :meth:`decisions` has an answer."""
        return type(self).decisions is not Task.decisions

    def decisions(self, outputs: Any, batch: Any) -> Decisions:
        """Return the logits and labels of a batch, where the task is to choose among classes. Default: refuse.

        Raises:
            TypeError: the outputs are no logits of classes that the batch has labels of.
        """
        del outputs, batch
        raise TypeError(
            f"{type(self).__name__} does not choose among classes with known labels, so there is no confidence to "
            "measure; leave the objective's confidence out"
        )

    def report(self, module: nn.Module, data: Any) -> Mapping[str, float]:
        """Return slow measurements of a subnetwork that is handed out, on the test split of ``data``. Default: none.

        Made once, when a subnetwork is exported; ``module`` is in evaluation mode and only read.
        """
        del module, data
        return {}
