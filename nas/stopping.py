"""When a search may end before its budget."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import numpy as np

from nas.controllers.base import Problem
from trials import Trial, TrialState, hypervolume, non_dominated

__all__ = ["NoImprovement", "Stopping"]


class Stopping(ABC):
    """Says whether more evaluations are still worth their time."""

    @abstractmethod
    def __call__(self, problem: Problem, trials: Sequence[Trial]) -> bool:
        """Return whether the search may end; a function of finished trials alone, so that a resumed search agrees.

        Args:
            problem: what is searched for.
            trials: of the study, by number.
        """


@final
class NoImprovement(Stopping):
    """Ends a search whose front has not grown for a while.

    Complete trials are put in the order in which they finished, every objective is scaled to [0, 1] over all of them,
    1 being the worst, and the hypervolume up to the point 1.1 is taken with and without the last ``patience`` trials.
    The search may end when the difference is at most ``tolerance``. For one objective that is the improvement of the
    best value as a share of the range seen.

    Args:
        patience: complete trials without improvement.
        tolerance: improvement that does not count.

    Raises:
        ValueError: ``patience`` is not positive, or ``tolerance`` negative.
    """

    def __init__(self, patience: int = 50, tolerance: float = 0.001) -> None:
        if patience < 1 or tolerance < 0:
            raise ValueError(
                f"search.stopping: NoImprovement needs patience >= 1 and tolerance >= 0, got {patience=}, {tolerance=}"
            )
        self.patience, self.tolerance = patience, tolerance

    def __call__(self, problem: Problem, trials: Sequence[Trial]) -> bool:
        """Return whether the last ``patience`` complete trials have brought at most ``tolerance``."""
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        if len(complete) <= self.patience:
            return False
        complete.sort(key=lambda trial: (trial.finished or 0.0, trial.number))
        signs = np.array([1.0 if metric.direction == "minimize" else -1.0 for metric in problem.objectives])
        costs = signs * np.array([[trial.value(metric.name) for metric in problem.objectives] for trial in complete])
        low, high = costs.min(axis=0), costs.max(axis=0)
        scaled = (costs - low) / np.where(high > low, high - low, 1.0)
        return _volume(scaled) - _volume(scaled[: -self.patience]) <= self.tolerance


def _volume(points: np.ndarray) -> float:
    front = points[non_dominated(points, ["minimize"] * points.shape[1])]
    return hypervolume(front, [1.1] * points.shape[1])
