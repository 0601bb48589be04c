"""What a controller is told before a search begins."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from nas.controllers.base import Problem
from nas.finished import finished_trials, violation
from trials import Trial, TrialState

__all__ = ["WarmStart", "told_first"]


@final
@dataclass(frozen=True)
class WarmStart:
    """The finished trials of another study of the same space and objectives, from which the controller learns for free.

    They cost none of the budget and are no trials of the new study, so its front does not hold them, and a controller
    does not propose what it knows: name the study among ``search.seeds`` too (:class:`nas.FinishedStudy`) to have the
    best of them evaluated again. Limits are those of the new search.

    Values are taken as they are. Where the old study scored other weights, say so to yourself: what misleads the model
    is outweighed only slowly.

    Args:
        study: name of the study.
        storage: where it lives, a journal file or a database URL.
    """

    study: str
    storage: str = "studies.journal"

    def trials(self, problem: Problem) -> list[Trial]:
        """Return the trials that measured all objectives, judged by the limits of ``problem``.

        Raises:
            StoreUnavailableError: there is no such storage.
            StudyNotFoundError: it holds no such study.
            ValueError: the study is of another space, or has measured none of its trials for all objectives.
        """
        found = finished_trials(problem, self.study, self.storage, where="search.warm_start")
        return [
            replace(trial, state=TrialState.INFEASIBLE if violation(problem, trial) > 0.0 else TrialState.COMPLETE)
            for trial in found
        ]


def told_first(starts: Sequence[WarmStart], problem: Problem) -> list[Trial]:
    """Return the trials of all ``starts`` under negative numbers, which no trial of a study has.

    Raises:
        ValueError: a study cannot be learnt from.
    """
    trials = [trial for start in starts for trial in start.trials(problem)]
    return [replace(trial, number=-1 - place) for place, trial in enumerate(trials)]
