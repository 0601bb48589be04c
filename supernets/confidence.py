"""How far the probabilities of a classifier can be believed, and the temperature that mends them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Bins", "Decisions", "brier_score", "fit_temperature", "negative_log_likelihood", "reliability"]

_SUM_TOLERANCE = 1e-3
_LOWEST, _HIGHEST = 1e-3, 1e3  # of the inverse temperature
_ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a network said of one batch, decision by decision.

    Attributes:
        logits: ``(N, C)``, before softmax.
        labels: ``(N,)`` the right class of each.
        examples: ``(N,)`` number of the example within the batch that each belongs to; the tokens of one sentence
            belong together.
    """

    logits: Tensor
    labels: Tensor
    examples: Tensor


@dataclass(frozen=True, eq=False)
class Bins:
    """Decisions grouped by confidence, the largest probability.

    Attributes:
        counts: ``(M,)`` decisions in each bin.
        confidence: ``(M,)`` their mean confidence, 0 in empty bins.
        accuracy: ``(M,)`` share of them that are right, 0 in empty bins.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error ``sum_m |B_m| / N |acc(B_m) - conf(B_m)|`` (Guo et al. 2017, Eq. 3), in [0, 1]."""
        shares = self.counts / self.counts.sum()
        return float((shares * (self.accuracy - self.confidence).abs()).sum())


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 15, equal_mass: bool = False) -> Bins:
    """Group decisions by their confidence (the reliability diagram of Guo et al. 2017, arXiv 1706.04599).

    Bins of equal width are ``[m / M, (m + 1) / M)``, the last one closed. Bins of equal mass (adaptive calibration
    error, Nixon et al. 2019, arXiv 1904.01685) hold ``N / M`` decisions each, up to one, in the order of their
    confidence; equal confidences count with their mean accuracy, so the order of the decisions does not matter.

    Args:
        probabilities: ``(N, C)``, after softmax.
        labels: ``(N,)``.
        bins: number ``M`` of bins.
        equal_mass: bins of equal mass instead of equal width.

    Raises:
        ValueError: there are no decisions or no bins, or ``probabilities`` are something else, logits say.
    """
    _check_probabilities(probabilities, labels)
    if bins < 1:
        raise ValueError(f"reliability needs bins >= 1, got {bins}")
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    if equal_mass:
        confidence, group, sizes = torch.unique(confidence, return_inverse=True, return_counts=True)
        right = torch.zeros_like(confidence).scatter_add_(0, group, right) / sizes
        confidence, right = confidence.repeat_interleave(sizes), right.repeat_interleave(sizes)
        index = torch.arange(len(right), device=right.device) * bins // len(right)
    else:
        index = (confidence * bins).long().clamp_(max=bins - 1)
    counts, sums, hits = (
        torch.zeros(bins, dtype=torch.double, device=right.device).scatter_add_(0, index, values)
        for values in (torch.ones_like(right), confidence, right)
    )
    filled = counts.clamp(min=1)
    return Bins(counts, sums / filled, hits / filled)


def brier_score(probabilities: Tensor, labels: Tensor) -> float:
    """Return ``mean_i sum_c (p_ic - [y_i = c])^2``, in [0, 2] (Brier 1950).

    Args:
        probabilities: ``(N, C)``, after softmax.
        labels: ``(N,)``.

    Raises:
        ValueError: there are no decisions, or ``probabilities`` are something else.
    """
    _check_probabilities(probabilities, labels)
    return float((probabilities.double() - F.one_hot(labels, probabilities.shape[1])).square().sum(1).mean())


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Return ``-mean_i log softmax(z_i)_{y_i}`` in nats.

    Args:
        logits: ``(N, C)``, before softmax.
        labels: ``(N,)``.

    Raises:
        ValueError: there are no decisions, or ``logits`` are probabilities already.
    """
    _check_logits(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


def fit_temperature(logits: Tensor, labels: Tensor, *, assumed_errors: float = 1.0) -> float:
    """Return the temperature ``T`` for which ``softmax(z / T)`` fits the labels best (Guo et al. 2017, Sec. 4.2).

    It minimises ``-mean_i [(1 - e) log p_i,y_i + e / (C - 1) sum_{c != y_i} log p_ic]`` with
    ``e = assumed_errors / (N + 1 + assumed_errors)``. That is convex in ``1 / T``; Newton's method, kept between bounds
    that close in, finds it.

    Differs from the paper: where every decision is right the likelihood alone has no best temperature, the colder the
    better, so some decisions more are assumed that went wrong (as Platt scaling does, Platt 1999). With many decisions
    the effect is small; ``assumed_errors=0`` is the paper, with ``T`` kept between 0.001 and 1000.

    Args:
        logits: ``(N, C)``, before softmax, of examples that the scores do not see.
        labels: ``(N,)``.
        assumed_errors: see above.

    Returns:
        Above 1 where the network is too sure of itself; 1 where the logits tell nothing.

    Raises:
        ValueError: there are no decisions, ``logits`` are probabilities already, or ``assumed_errors < 0``.
    """
    _check_logits(logits, labels)
    if assumed_errors < 0:
        raise ValueError(f"fit_temperature needs assumed_errors >= 0, got {assumed_errors}")
    scores = logits.double()
    scores = scores - scores.mean(1, keepdim=True)
    own, classes = scores.gather(1, labels[:, None]).squeeze(1), scores.shape[1]
    wrong = assumed_errors / (len(scores) + 1 + assumed_errors)
    wanted = float(((1 - wrong) * own + wrong / (classes - 1) * (scores.sum(1) - own)).mean())
    if not scores.any():
        return 1.0
    low, high, inverse = _LOWEST, _HIGHEST, 1.0
    for _ in range(_ITERATIONS):
        probabilities = torch.softmax(inverse * scores, 1)
        means = (probabilities * scores).sum(1)
        slope = float(means.mean()) - wanted
        curvature = float(((probabilities * scores.square()).sum(1) - means.square()).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else 0.0
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - inverse) <= 1e-10 * inverse:
            break
        inverse = following
    return 1.0 / inverse


def _check_decisions(name: str, values: Tensor, labels: Tensor) -> None:
    if values.ndim != 2 or labels.shape != values.shape[:1] or not len(labels) or values.shape[1] < 2:
        raise ValueError(
            f"{name} must be (N, C) with labels (N,), at least one decision and two classes, got "
            f"{tuple(values.shape)} and {tuple(labels.shape)}"
        )
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite, got some that are not; has the training diverged?")


def _sum_to_one(values: Tensor) -> bool:
    sums = values.double().sum(1)
    return bool(
        (values >= 0).all() and (values <= 1 + _SUM_TOLERANCE).all() and ((sums - 1).abs() < _SUM_TOLERANCE).all()
    )


def _check_probabilities(probabilities: Tensor, labels: Tensor) -> None:
    _check_decisions("probabilities", probabilities, labels)
    if not _sum_to_one(probabilities):
        raise ValueError(
            "probabilities must lie in [0, 1] and sum to 1 for each decision, got values from "
            f"{float(probabilities.min()):.3g} to {float(probabilities.max()):.3g}; are they logits? take softmax first"
        )


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    _check_decisions("logits", logits, labels)
    if _sum_to_one(logits):
        raise ValueError(
            "logits must be what goes into softmax, got rows that sum to 1 and so are probabilities already; end the "
            "network with its last linear layer"
        )
