"""How well some scores put architectures in the order of others, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Ranking", "ranking"]


@dataclass(frozen=True)
class Ranking:
    """How well some scores rank.

    Attributes:
        tau: Kendall's tau-b against the networks trained alone.
        low: lower end of its bootstrap interval.
        high: upper end.
    """

    tau: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.tau:.2f} ({self.low:.2f} to {self.high:.2f})"


def ranking(truth: Sequence[float], scores: Sequence[float], *, level: float, resamples: int, seed: int) -> Ranking:
    """Return Kendall's tau-b of two lists, and its percentile interval over resampled pairs (Efron, 1979).

    ``tau_b = sum_ij sgn(x_i - x_j) sgn(y_i - y_j) / sqrt(sum_ij |sgn(x_i - x_j)| sum_ij |sgn(y_i - y_j)|)``, 0 where a
    list is constant.

    Args:
        truth: one value per architecture.
        scores: of the same architectures.
        level: of the interval.
        resamples: number of draws with replacement.
        seed: of the draws.
    """
    x, y = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(truth), np.asarray(scores)))
    count = len(truth)
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    taus = np.array([_tau(x[np.ix_(rows, rows)], y[np.ix_(rows, rows)]) for rows in draws])
    low, high = np.quantile(taus, [(1 - level) / 2, (1 + level) / 2])
    return Ranking(_tau(x, y), float(low), float(high))


def _tau(x: np.ndarray, y: np.ndarray) -> float:
    scale = np.abs(x).sum() * np.abs(y).sum()
    return float((x * y).sum() / np.sqrt(scale)) if scale else 0.0
