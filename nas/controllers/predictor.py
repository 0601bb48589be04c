"""A controller that predicts before it evaluates."""

import heapq
import operator
from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch

from nas.controllers.base import Controller, Problem
from nas.controllers.beliefs import Beliefs
from nas.controllers.features import Features
from nas.controllers.gaussian import Hyperparameters, normal_scores
from nas.controllers.history import History, Observation
from search_spaces import Architecture
from trials import Trial

__all__ = ["PredictorController"]

_DRAWS = 64
_RANDOM = 128
_FRINGE = 64
_REMEMBERED = 16


@final
class PredictorController(Controller):
    """Proposes what a Gaussian process expects to improve most: for searches of few, dear evaluations.

    **Model.** One Gaussian process for each objective, on the normal scores of its values, and one for each limit, on
    its relative violation, logarithmic far from zero. The kernel is a squared exponential of
    :class:`~nas.controllers.features.Features`: the choices, and what the space says about isomorphism
    (:meth:`search_spaces.SearchSpace.motifs`), each divided by its mean distance. Length scale and noise maximise the
    marginal likelihood on a grid, anew whenever the study has grown by a seventh, and beyond ``memory`` observations
    whenever the oldest seventh of them is dropped.

    **Acquisition.** Expected improvement on the best posterior mean that holds the limits (Jones et al. 1998), times
    the probability to hold them (Gardner et al. 2014); that probability alone while nothing does. Several objectives
    are scalarised at random for each proposal, ``(min_m (1 - Phi(y_m)) / lambda_m) ** M`` with ``lambda`` on the
    positive part of the unit sphere, whose mean over ``lambda`` is a hypervolume but for a constant (Golovin and Zhang,
    arXiv 2006.04655, lemma 5), here of ranks; the expectation is then over samples. Architectures under evaluation
    enter with the values that are predicted for them, so that a batch spreads out.

    **Candidates.** Neighbours and mutations of the best known architectures, random ones, and then, for ``rounds``
    rounds, the neighbours of the candidates that score highest.

    Args:
        problem: what is searched for.
        start: random architectures before the first prediction.
        parents: best known architectures whose neighbours are candidates.
        rounds: how often the best candidates are replaced by better neighbours.
        memory: observations that the model is fitted to at most, the newest ones; time grows with its cube.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, problem: Problem, *, start: int = 10, parents: int = 5, rounds: int = 2, memory: int = 300
    ) -> None:
        if start < 2 or parents < 1 or rounds < 0 or memory < 10:
            raise ValueError(
                "PredictorController needs start >= 2, parents >= 1, rounds >= 0 and memory >= 10, got "
                f"{start=}, {parents=}, {rounds=}, {memory=}"
            )
        self.problem = problem
        self.start = start
        self.parents = parents
        self.rounds = rounds
        self.memory = memory
        self._history = History(problem)
        self._features = Features(problem.space)
        self._neighbours: dict[Architecture, list[Architecture]] = {}
        self._chosen: dict[int, tuple[object, Hyperparameters]] = {}

    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` architectures that promise the largest improvement."""
        return self._history.propose(count, self._draw, redraws=0)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from trials."""
        self._history.tell(trials)

    def best(self, count: int = 1) -> list[Architecture]:
        """Return the evaluated architectures of the best posterior mean, those that break limits last.

        The highest of many noisy measurements is partly luck; the posterior mean has learnt from its neighbours too.
        Several objectives are weighted equally.
        """
        if self._history.learnt(scored=True) < self.start:
            few = self._history.newest(self.start, scored=True)
            return [item.architecture for item in sorted(few, key=lambda i: (i.violation, i.costs, i.order))[:count]]
        scored = self._history.newest(self.memory, scored=True)
        beliefs = self._believe(scored, scored, [])
        return beliefs.parents(beliefs.merits(np.full(len(self.problem.objectives), 1.0)), count)

    def _draw(self, generator: torch.Generator) -> Architecture:
        space, history = self.problem.space, self._history
        if history.learnt() < self.start or history.seen < self.start:
            return space.sample(generator)
        newest, scored = history.newest(self.memory), history.newest(self.memory, scored=True)
        beliefs = self._believe(newest, scored, history.pending())
        size = len(self.problem.objectives)
        weights = np.abs(torch.randn(size, generator=generator, dtype=torch.float64).numpy())
        weights /= np.linalg.norm(weights)
        draws = torch.randn(_DRAWS, size, generator=generator, dtype=torch.float64).numpy()
        merits = beliefs.merits(weights)
        parents = beliefs.parents(merits, self.parents)
        pool = dict.fromkeys(other for parent in parents for other in self._fringe(parent, generator))
        pool.update(dict.fromkeys(space.mutate(parent, generator, 0.3) for parent in parents for _ in range(8)))
        pool.update(dict.fromkeys(space.sample(generator) for _ in range(_RANDOM)))
        values: dict[Architecture, float] = {}
        for left in range(self.rounds, -1, -1):
            fresh = [item for item in pool if item not in values and item not in history]
            if fresh:
                values.update(zip(fresh, beliefs.score(fresh, merits, weights, draws).tolist(), strict=True))
            if left and values:
                leaders = heapq.nlargest(3, values.items(), key=operator.itemgetter(1))
                pool = dict.fromkeys(other for leader, _ in leaders for other in self._fringe(leader, generator))
        return max(values, key=values.__getitem__) if values else space.sample(generator)

    def _fringe(self, architecture: Architecture, generator: torch.Generator) -> list[Architecture]:
        """Neighbours, or some of them where there are many."""
        found = self._neighbours.pop(architecture, None) or list(self.problem.space.neighbours(architecture))
        if len(self._neighbours) >= _REMEMBERED:
            del self._neighbours[next(iter(self._neighbours))]
        self._neighbours[architecture] = found
        if len(found) <= _FRINGE:
            return found
        return [found[i] for i in torch.randperm(len(found), generator=generator)[:_FRINGE].tolist()]

    def _believe(
        self, newest: Sequence[Observation], scored: Sequence[Observation], pending: Sequence[Architecture]
    ) -> Beliefs:
        older = [item for item in scored if item.order < newest[0].order]
        rows = [*older, *newest]
        targets = []
        known = np.array([i for i, item in enumerate(rows) if item.costs is not None], dtype=np.int64)
        for column in range(len(self.problem.objectives) if len(known) > 1 else 0):
            values = np.array([(rows[i].costs or ())[column] for i in known])
            targets.append((column, known, normal_scores(values)))
        for column in range(len(self.problem.limits)):
            margins = np.array([(item.margins or ())[column] for item in rows])
            measured = np.flatnonzero(margins[len(older) :]) + len(older)  # zero where it was not measured
            if len(measured) > 1:
                squashed = np.sign(margins[measured]) * np.log1p(np.abs(margins[measured]))
                targets.append((-1 - column, measured, squashed))
        return Beliefs(self._features, rows, pending, targets, self._hyperparameters)

    def _hyperparameters(self, target: int, key: object, make: Callable[[], Hyperparameters]) -> Hyperparameters:
        """Return what was chosen for ``key``, choosing once."""
        known = self._chosen.get(target)
        if known is None or known[0] != key:
            known = self._chosen[target] = key, make()
        return known[1]
