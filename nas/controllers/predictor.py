"""A controller that predicts before it evaluates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from nas.controllers.base import Controller, Problem
from nas.controllers.features import Features
from nas.controllers.gaussian import (
    GaussianProcess,
    Hyperparameters,
    choose,
    log_expected_improvement,
    normal_scores,
)
from nas.controllers.history import History, Observation
from search_spaces import Architecture
from trials import Trial

__all__ = ["PredictorController"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
_DRAWS = 64
_RANDOM = 128
_FRINGE = 64
_FITTED = 128


@final
class PredictorController(Controller):
    """Proposes what a Gaussian process expects to improve most: for searches of few, dear evaluations.

    **Model.** One Gaussian process for each objective, on the normal scores of its values, and one for each limit, on
    its relative violation, logarithmic far from zero. The kernel is a squared exponential of
    :class:`~nas.controllers.features.Features`: the choices, and what the space says about isomorphism
    (:meth:`search_spaces.SearchSpace.motifs`), each divided by its mean distance. Length scale and noise maximise the
    marginal likelihood on a grid, anew whenever the study has grown by a seventh.

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
        memory: observations that the model is fitted to, the newest ones; time grows with its cube.

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
        lessons = [item for item in self._history.lessons() if item.costs is not None]
        if len(lessons) < self.start:
            return [
                item.architecture for item in sorted(lessons, key=lambda i: (i.violation, i.costs, i.order))[:count]
            ]
        beliefs = self._believe(lessons, [])
        return beliefs.parents(np.full(len(self.problem.objectives), 1.0), count)

    def _draw(self, generator: torch.Generator) -> Architecture:
        space, lessons = self.problem.space, self._history.lessons()
        if len(lessons) < self.start or self._history.seen < self.start:
            return space.sample(generator)
        beliefs = self._believe(lessons, self._history.pending())
        size = len(self.problem.objectives)
        weights = np.abs(torch.randn(size, generator=generator, dtype=torch.float64).numpy())
        weights /= np.linalg.norm(weights)
        draws = torch.randn(_DRAWS, size, generator=generator, dtype=torch.float64).numpy()
        parents = beliefs.parents(weights, self.parents)
        pool = dict.fromkeys(other for parent in parents for other in self._fringe(parent, generator))
        pool.update(dict.fromkeys(space.mutate(parent, generator, 0.3) for parent in parents for _ in range(8)))
        pool.update(dict.fromkeys(space.sample(generator) for _ in range(_RANDOM)))
        scored: dict[Architecture, float] = {}
        for left in range(self.rounds, -1, -1):
            fresh = [item for item in pool if item not in scored and item not in self._history]
            if fresh:
                scored.update(zip(fresh, beliefs.score(fresh, weights, draws).tolist(), strict=True))
            if left and scored:
                leaders = sorted(scored, key=scored.__getitem__, reverse=True)[:3]
                pool = dict.fromkeys(other for leader in leaders for other in self._fringe(leader, generator))
        return max(scored, key=scored.__getitem__) if scored else space.sample(generator)

    def _fringe(self, architecture: Architecture, generator: torch.Generator) -> list[Architecture]:
        """Neighbours, or some of them where there are many."""
        found = list(self.problem.space.neighbours(architecture))
        if len(found) <= _FRINGE:
            return found
        return [found[i] for i in torch.randperm(len(found), generator=generator)[:_FRINGE].tolist()]

    def _believe(self, lessons: Sequence[Observation], pending: Sequence[Architecture]) -> "_Beliefs":
        scored = [item for item in lessons if item.costs is not None][-self.memory :]
        used = {id(item) for item in (*scored, *lessons[-self.memory :])}
        rows = [item for item in lessons if id(item) in used]
        targets = []
        known = np.array([i for i, item in enumerate(rows) if item.costs is not None], dtype=np.int64)
        for column in range(len(self.problem.objectives) if len(known) > 1 else 0):
            values = np.array([(rows[i].costs or ())[column] for i in known])
            targets.append((column, known, normal_scores(values)))
        for column in range(len(self.problem.limits)):
            margins = np.array([(item.margins or ())[column] for item in rows])
            measured = np.flatnonzero(margins)  # zero where it was not measured
            if len(measured) > 1:
                squashed = np.sign(margins[measured]) * np.log1p(np.abs(margins[measured]))
                targets.append((-1 - column, measured, squashed))
        return _Beliefs(self._features, rows, pending, targets, self._hyperparameters)

    def _hyperparameters(self, target: int, key: object, make: Callable[[], Hyperparameters]) -> Hyperparameters:
        """Return what was chosen for ``key``, choosing once."""
        known = self._chosen.get(target)
        if known is None or known[0] != key:
            known = self._chosen[target] = key, make()
        return known[1]


@dataclass(frozen=True)
class _Model:
    rows: Indices
    process: GaussianProcess


@final
class _Beliefs:
    """What the models say, given some finished trials and some that are under way.

    Args:
        features: of architectures.
        lessons: finished trials.
        pending: architectures under evaluation.
        targets: for each model its key (objectives count from 0 up, limits from -1 down), the lessons that know its
            value, and their values.
        hyperparameters: remembers those that were chosen, by key of the model and by what they were chosen from.
    """

    def __init__(
        self,
        features: Features,
        lessons: Sequence[Observation],
        pending: Sequence[Architecture],
        targets: Sequence[tuple[int, Indices, Floats]],
        hyperparameters: Callable[[int, object, Callable[[], Hyperparameters]], Hyperparameters],
    ) -> None:
        self._features = features
        self._lessons = lessons
        self._known = [*(item.architecture for item in lessons), *pending]
        base = _milestone(len(lessons))
        self._scales = _scales(features, self._known[:base])
        between = self._distances(self._known)
        waiting = np.arange(len(lessons), len(self._known))
        self._models: dict[int, _Model] = {}
        for key, rows, values in targets:
            fitted = slice(max(0, _milestone(len(rows)) - _FITTED), _milestone(len(rows)))
            some = rows[fitted]
            made_from = (base, *(lessons[i].order for i in some))
            given = hyperparameters(
                key,
                made_from,
                lambda s=some, v=values[fitted]: choose(between[np.ix_(s, s)], v),  # type: ignore[misc]
            )
            process = GaussianProcess(between[np.ix_(rows, rows)], values, given)
            if len(waiting):
                expected, _ = process(between[np.ix_(waiting, rows)])
                rows = np.concatenate([rows, waiting])
                process = GaussianProcess(between[np.ix_(rows, rows)], np.concatenate([values, expected]), given)
            self._models[key] = _Model(rows, process)

    def _distances(self, architectures: Sequence[Architecture]) -> Floats:
        """Return squared distances ``(len(architectures), known)``, each group of features by its scale."""
        total = np.zeros((len(architectures), len(self._known)))
        for group, scale in zip((self._features.choices, self._features.motifs), self._scales, strict=True):
            if scale > 0:
                both = group([*self._known, *architectures])
                total += _squared(both[len(self._known) :], both[: len(self._known)]) / scale
        return total

    def _predict(self, keys: Sequence[int], distances: Floats) -> tuple[Floats, Floats]:
        """Return means and deviations ``(m, len(keys))``."""
        found = [self._models[key].process(distances[:, self._models[key].rows]) for key in keys]
        return np.stack([mean for mean, _ in found], axis=1), np.stack([sd for _, sd in found], axis=1)

    @property
    def _objectives(self) -> list[int]:
        return sorted(key for key in self._models if key >= 0)

    @property
    def _limits(self) -> list[int]:
        return [key for key in self._models if key < 0]

    def _merits(self, weights: Floats) -> Floats:
        """Return how good each lesson is, larger being better: the mean believed, or how well the limits are held."""
        broken = -np.array([item.violation for item in self._lessons])
        if not self._objectives:
            return broken
        distances = self._distances([item.architecture for item in self._lessons])
        means, _ = self._predict(self._objectives, distances)
        return np.where(broken < 0.0, broken - 1e9, _scalarised(means, weights))

    def parents(self, weights: Floats, count: int) -> list[Architecture]:
        """Return the best lessons."""
        order = np.argsort(-self._merits(weights), kind="stable")
        return list(dict.fromkeys(self._lessons[i].architecture for i in order))[:count]

    def score(self, architectures: Sequence[Architecture], weights: Floats, draws: Floats) -> Floats:
        """Return the logarithm of the expected improvement times the probability to hold the limits."""
        distances = self._distances(architectures)
        held = np.zeros(len(architectures))
        if self._limits:
            means, deviations = self._predict(self._limits, distances)
            held = log_ndtr(-means / deviations).sum(axis=1)
        merits = self._merits(weights)
        feasible = np.array([item.violation == 0.0 and item.costs is not None for item in self._lessons])
        if not self._objectives or not feasible.any():
            return held
        best = merits[feasible].max()
        means, deviations = self._predict(self._objectives, distances)
        if len(self._objectives) == 1:
            return held + log_expected_improvement(means[:, 0], deviations[:, 0], -best)
        samples = _scalarised(means[:, None] + deviations[:, None] * draws, weights)
        improvement = np.maximum(samples - best, 0.0).mean(axis=1)
        return np.asarray(held + np.log(improvement + 1e-6 * np.exp(_scalarised(means, weights) - best)))


def _scalarised(scores: Floats, weights: Floats) -> Floats:
    """Return one number for normal scores ``(..., M)``, larger being better; of one objective, its negative."""
    if scores.shape[-1] == 1:
        return np.asarray(-scores[..., 0])
    return np.asarray(((1.0 - ndtr(scores)) / np.maximum(weights, 1e-3)).min(axis=-1) ** scores.shape[-1])


def _milestone(count: int) -> int:
    """Return the largest number of 2, 3, ..., 14, 16, 18, 20, 22, 25, ... up to ``count``: each a seventh larger."""
    reached = following = min(count, 2)
    while following <= count:
        reached, following = following, following + max(1, following // 7)
    return reached


def _scales(features: Features, architectures: Sequence[Architecture]) -> tuple[float, float]:
    """Mean squared distance between architectures, for each group of features."""
    choices, motifs = features.choices(architectures), features.motifs(architectures)
    return float(_squared(choices, choices).mean()), float(_squared(motifs, motifs).mean())


def _squared(first: Floats, second: Floats) -> Floats:
    products = first @ second.T
    lengths = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None]
    return np.asarray(np.maximum(lengths - 2 * products, 0.0))
