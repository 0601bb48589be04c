"""Local search, a strong and simple baseline where neighbours score alike."""

import math
from collections.abc import Sequence
from typing import final

import torch

from nas.controllers import Controller, Problem
from nas.controllers.history import History, Observation
from search_spaces import Architecture
from trials import Trial


@final
class LocalSearchController(Controller):
    """Try the untried neighbours of the best architecture known, then of the second best, and so on.

    Best-first local search (White et al., arXiv 2005.02960) on the first objective. Architectures that break limits
    rank behind all that hold them, the least broken first. ``History`` keeps the promises of every controller: nothing
    is asked twice, and a replayed study continues as before.

    Args:
        problem: what is searched for.
        start: random architectures before the first step.
    """

    def __init__(self, problem: Problem, *, start: int = 8) -> None:
        self.problem = problem
        self.start = start
        self._history = History(problem)

    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` architectures."""
        return self._history.propose(count, self._draw)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from trials."""
        self._history.tell(trials)

    def _draw(self, generator: torch.Generator) -> Architecture:
        space, known = self.problem.space, self._history.lessons()
        if len(known) >= self.start:
            for observation in sorted(known, key=_rank):
                fresh = [other for other in space.neighbours(observation.architecture) if other not in self._history]
                if fresh:
                    return fresh[int(torch.randint(len(fresh), (), generator=generator))]
        return space.sample(generator)


def _rank(observation: Observation) -> tuple[float, float]:
    return observation.violation, observation.costs[0] if observation.costs else math.inf
