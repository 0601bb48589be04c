"""Language modelling."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F

from search_spaces import SearchSpace
from supernets.confidence import Decisions
from supernets.distillation import Distillation, SoftTargets
from supernets.tasks.base import Task

__all__ = ["LanguageModelling"]


class _Perplexity(torchmetrics.MeanMetric):
    """Exponential of a mean, ``exp(sum_i w_i l_i / sum_i w_i)``."""

    def compute(self) -> Tensor:
        return torch.exp(super().compute())


class _Bits(torchmetrics.MeanMetric):
    """A mean in nats per token, as bits per character."""

    def __init__(self, characters_per_token: float) -> None:
        super().__init__()
        self.nats_per_bit = math.log(2) * characters_per_token

    def compute(self) -> Tensor:
        return super().compute() / self.nats_per_bit


class LanguageModelling(Task):
    """Prediction of the next token.

    Batches are ``(tokens, next tokens)``, both ``(B, T)``; outputs are logits ``(B, T, vocabulary)``.

    Args:
        label_smoothing: of the regularised loss, i.e. where an architecture learns from labels.
        characters_per_token: mean length of a token, for bits per character; 1 for a character vocabulary.
        distillation: loss against a teacher's logits, averaged over tokens; default soft targets.

    Raises:
        ValueError: an argument is out of range.
    """

    headline = "loss"
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = {
        "loss": ("nats", "minimize"),
        "perplexity": ("1", "minimize"),
        "bits_per_character": ("bit", "minimize"),
    }

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        characters_per_token: float = 1.0,
        distillation: Distillation | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1 or characters_per_token <= 0:
            raise ValueError(
                "LanguageModelling needs 0 <= label_smoothing < 1 and characters_per_token > 0, got "
                f"{label_smoothing=}, {characters_per_token=}"
            )
        self.label_smoothing = label_smoothing
        self.characters_per_token = characters_per_token
        self.distillation = SoftTargets() if distillation is None else distillation

    def check(self, space: SearchSpace) -> None:
        """Refuse classifiers."""
        classes = getattr(space, "num_classes", None)
        if classes is not None:
            raise ValueError(
                "LanguageModelling needs networks that predict the next token, and those of "
                f"{type(space).__name__} tell {classes} classes apart; use TransformerSpace with num_classes: null, or "
                f"Classification({classes})"
            )

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return ``(tokens,)``."""
        return (batch[0],)

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean cross-entropy of the next token in nats, with label smoothing where ``regularise``."""
        smoothing = self.label_smoothing if regularise else 0.0
        return F.cross_entropy(outputs.flatten(0, 1), batch[1].flatten(), label_smoothing=smoothing)

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean distillation loss against the teacher's logits."""
        return self.distillation(outputs, teacher.detach()).mean()

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return ``loss`` (nats per token), ``perplexity`` (its exponential) and ``bits_per_character``."""
        return torchmetrics.MetricCollection(
            {
                "loss": torchmetrics.MeanMetric(),
                "perplexity": _Perplexity(),
                "bits_per_character": _Bits(self.characters_per_token),
            },
            compute_groups=False,
        )

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch, weighted by its tokens."""
        metrics.update(self.loss(outputs, batch), batch[1].numel())

    def decisions(self, outputs: Any, batch: Any) -> Decisions:
        """Return one decision for each token; the tokens of a row are one example."""
        rows = torch.arange(len(outputs), device=outputs.device)
        return Decisions(outputs.flatten(0, 1), batch[1].flatten(), rows.repeat_interleave(outputs.shape[1]))
