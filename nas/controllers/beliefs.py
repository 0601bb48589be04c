"""What Gaussian processes believe about architectures, given what has been evaluated and what is under way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from nas.controllers.features import Features
from nas.controllers.gaussian import GaussianProcess, Hyperparameters, choose, log_expected_improvement
from nas.controllers.history import Observation
from search_spaces import Architecture

__all__ = ["Beliefs"]

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
_FITTED = 128


@dataclass(frozen=True)
class _Model:
    rows: Indices
    process: GaussianProcess


@final
class Beliefs:
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
        self._lessons = lessons
        self._features = features
        known = [*(item.architecture for item in lessons), *pending]
        base = _milestone(len(lessons))
        self._groups = [_Group(table, base) for table in features(known)]
        between = self._distances(known)
        self._between = between[: len(lessons)]
        waiting = np.arange(len(lessons), len(known))
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
        choices, motifs = (
            group(table) for group, table in zip(self._groups, self._features(architectures), strict=True)
        )
        return choices + motifs

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

    def merits(self, weights: Floats) -> Floats:
        """Return how good each lesson is, larger being better: the mean believed, or how well the limits are held.

        Args:
            weights: of the objectives, ``(M,)``.
        """
        broken = -np.array([item.violation for item in self._lessons])
        if not self._objectives:
            return broken
        models = [self._models[key] for key in self._objectives]
        means = np.stack([model.process.mean(self._between[:, model.rows]) for model in models], axis=1)
        return np.where(broken < 0.0, broken - 1e9, _scalarised(means, weights))

    def parents(self, merits: Floats, count: int) -> list[Architecture]:
        """Return up to ``count`` lessons of the highest :meth:`merits`."""
        best: dict[Architecture, None] = {}
        for place in np.argsort(-merits, kind="stable"):
            if len(best) == count:
                break
            best[self._lessons[place].architecture] = None
        return list(best)

    def score(self, architectures: Sequence[Architecture], merits: Floats, weights: Floats, draws: Floats) -> Floats:
        """Return the logarithm of the expected improvement times the probability to hold the limits, ``(N,)``.

        Args:
            architectures: that are scored.
            merits: of the lessons, by the same weights.
            weights: of the objectives, ``(M,)``.
            draws: standard normal, ``(S, M)``; expectations over several objectives are means over them.
        """
        distances = self._distances(architectures)
        held = np.zeros(len(architectures))
        if self._limits:
            means, deviations = self._predict(self._limits, distances)
            held = log_ndtr(-means / deviations).sum(axis=1)
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


@final
class _Group:
    """Squared distances to known architectures by one group of features, relative to the mean among some of these.

    Args:
        known: features of the known ones, ``(K, D)``.
        base: how many of them give the mean.
    """

    def __init__(self, known: Floats, base: int) -> None:
        self._known = known
        self._scale = float(_squared(known[:base], known[:base]).mean())

    def __call__(self, rows: Floats) -> Floats:
        """Return distances ``(N, K)`` of features ``(N, D)`` or longer ones, zeros where the scale is zero."""
        if self._scale == 0.0:
            return np.zeros((len(rows), len(self._known)))
        known = self._known
        if added := rows.shape[1] - known.shape[1]:
            known = np.pad(known, ((0, 0), (0, added)))
        return _squared(rows, known) / self._scale


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


def _squared(first: Floats, second: Floats) -> Floats:
    found = first @ second.T
    found *= -2.0
    found += (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None]
    return np.asarray(np.maximum(found, 0.0, out=found))
