"""Random search."""

from collections.abc import Sequence
from typing import final

from nas.controllers.base import Controller, Problem
from nas.controllers.history import History
from search_spaces import Architecture
from trials import Trial

__all__ = ["RandomController"]


@final
class RandomController(Controller):
    """Independent uniform draws of every choice, without replacement: the baseline every other controller must beat.

    Args:
        problem: what is searched for; objectives and limits make no difference here.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._history = History(problem)

    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` random architectures that are new."""
        return self._history.propose(count, self.problem.space.sample)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remember which architectures are taken."""
        self._history.tell(trials)
