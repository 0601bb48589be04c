"""Translation from one language to another."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.text import SacreBLEUScore

from search_spaces import SearchSpace
from supernets.confidence import Decisions
from supernets.distillation import Distillation, SoftTargets
from supernets.tasks.base import Task

__all__ = ["Translation", "greedy"]


@runtime_checkable
class Sentences(Protocol):
    """Data whose tokens can be read: what BLEU needs of a data module."""

    def test_dataloader(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Return the test batches."""

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the text of each row of tokens, special tokens left out."""


def greedy(module: nn.Module, source: Tensor, *, begin: int, end: int, padding: int, limit: int) -> Tensor:
    """Translate by taking the most likely next token until every sentence has ended.

    Args:
        module: ``(B, S)`` source and ``(B, T)`` target tokens -> logits ``(B, T, vocabulary)``; in evaluation mode.
        source: ``(B, S)`` tokens.
        begin: token before the first of a sentence.
        end: token after the last.
        padding: fills what follows the end.
        limit: the most tokens of a translation.

    Returns:
        ``(B, T)`` tokens without ``begin``, ``T <= limit``.
    """
    tokens = torch.full((len(source), 1), begin, dtype=source.dtype, device=source.device)
    ended = torch.zeros(len(source), dtype=torch.bool, device=source.device)
    with torch.no_grad():
        while tokens.shape[1] <= limit and not bool(ended.all()):
            likely = module(source, tokens)[:, -1].argmax(-1)
            likely = torch.where(ended, padding, likely)
            ended = ended | (likely == end)
            tokens = torch.cat((tokens, likely[:, None]), dim=1)
    return tokens[:, 1:]


class Translation(Task):
    """Prediction of the next token of a target sentence, given the source (teacher forcing).

    Batches are ``(source, target, labels)``: source tokens ``(B, S)``, target tokens ``(B, T)`` that begin with
    ``begin``, and the same one position later, ending with ``end``. Outputs are logits ``(B, T, vocabulary)``. Labels
    that are padding count nowhere.

    Args:
        label_smoothing: of the regularised loss, i.e. where an architecture learns from labels.
        padding: token that fills short sentences.
        begin: token before the first of a target sentence.
        end: token after the last.
        max_length: the most tokens of a greedy translation; at most the context of the space.
        distillation: loss against a teacher's logits, averaged over tokens; default soft targets.

    Raises:
        ValueError: an argument is out of range.
    """

    headline = "loss"
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = {
        "loss": ("nats", "minimize"),
        "token_accuracy": ("fraction", "maximize"),
    }

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        padding: int = 0,
        begin: int = 1,
        end: int = 2,
        max_length: int = 64,
        distillation: Distillation | None = None,
    ) -> None:
        if not 0 <= label_smoothing < 1 or max_length < 1:
            raise ValueError(
                f"Translation needs 0 <= label_smoothing < 1 and max_length >= 1, got {label_smoothing=}, {max_length=}"
            )
        if len({padding, begin, end}) < 3 or min(padding, begin, end) < 0:
            raise ValueError(
                "Translation.padding, begin and end must be different tokens, from 0 on, got "
                f"{padding=}, {begin=}, {end=}"
            )
        self.label_smoothing = label_smoothing
        self.padding = padding
        self.begin = begin
        self.end = end
        self.max_length = max_length
        self.distillation = SoftTargets() if distillation is None else distillation

    def check(self, space: SearchSpace) -> None:
        """Refuse another padding than that of the networks, tokens they do not know, and more tokens than they take."""
        name = type(space).__name__
        padding = getattr(space, "padding", self.padding)
        if padding != self.padding:
            raise ValueError(
                f"Translation.padding must be the token that the networks do not look at, got {self.padding} and "
                f"{name}.padding={padding}; make both the padding of the data"
            )
        known = getattr(space, "vocabulary", None)
        if known is not None and max(self.padding, self.begin, self.end) >= known:
            raise ValueError(
                f"Translation.padding, begin and end must be among the {known} tokens of {name}.vocabulary, got "
                f"{self.padding}, {self.begin} and {self.end}; use the special tokens of the data"
            )
        context = getattr(space, "context", None)
        if context is not None and self.max_length > context:
            raise ValueError(
                f"Translation.max_length must be at most {name}.context={context}, the most tokens that a network "
                f"takes, got {self.max_length}; lower it or raise the context"
            )

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return ``(source, target)``."""
        return batch[0], batch[1]

    def counted(self, outputs: Any, batch: Any) -> Any:
        """Return ``(N, vocabulary)``, the logits of the labels that are not padding."""
        return outputs[batch[2] != self.padding]

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean cross-entropy of the next token in nats, with label smoothing where ``regularise``."""
        return F.cross_entropy(
            outputs.flatten(0, 1),
            batch[2].flatten(),
            ignore_index=self.padding,
            label_smoothing=self.label_smoothing if regularise else 0.0,
        )

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean distillation loss against the teacher's logits; both as :meth:`counted` gives them."""
        return self.distillation(outputs, teacher.detach()).mean()

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return ``loss`` (nats per token) and ``token_accuracy`` (fraction)."""
        return torchmetrics.MetricCollection(
            {"loss": torchmetrics.MeanMetric(), "token_accuracy": torchmetrics.MeanMetric()}, compute_groups=False
        )

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch, weighted by its tokens."""
        kept = batch[2] != self.padding
        right = (outputs.argmax(-1) == batch[2])[kept].float().mean()
        weight = int(kept.sum())
        metrics["loss"].update(self.loss(outputs, batch), weight)
        metrics["token_accuracy"].update(right, weight)

    def decisions(self, outputs: Any, batch: Any) -> Decisions:
        """Return one decision for each token that is not padding, given the right tokens before it."""
        kept = batch[2] != self.padding
        return Decisions(outputs[kept], batch[2][kept], kept.nonzero()[:, 0])

    def report(self, module: nn.Module, data: Any) -> Mapping[str, float]:
        """Return ``bleu`` (percent) of greedy translations of the test split, where ``data`` can read tokens.

        BLEU-4 over the corpus with the 13a tokeniser (Post, arXiv 1804.08771).
        """
        if not isinstance(data, Sentences):
            return {}
        bleu = SacreBLEUScore()
        device = next(module.parameters()).device
        for source, _, labels in data.test_dataloader():
            tokens = greedy(
                module,
                source.to(device),
                begin=self.begin,
                end=self.end,
                padding=self.padding,
                limit=self.max_length,
            )
            bleu.update(data.decode(tokens.cpu()), [[text] for text in data.decode(labels)])
        return {"bleu": 100 * float(bleu.compute())}
