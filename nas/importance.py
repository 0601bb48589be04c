"""How much each choice matters for an objective."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trials import Candidate, StudySpec, Trial, TrialState

__all__ = ["choice_importance"]

_FEWEST = 10
_TREES = 32
_ROWS = 512


def choice_importance(spec: StudySpec, trials: Sequence[Trial], objective: str) -> dict[str, float]:
    """Return the share of the variance of an objective that each choice explains alone, in [0, 1].

    A random forest f is fitted to the COMPLETE trials; with all candidates that were tried equally likely,

        share_i = Var_c( E[f | choice i is c] ) / Var(f),

    the main effects of fANOVA (Hutter et al. 2014, Eq. 5 and 6). What they leave to 1 are effects of several choices
    together. A choice that an architecture does not have counts as one more candidate. Expectations are exact where the
    choices have at most 512 combinations and means over 512 random ones otherwise.

    Args:
        spec: of the study.
        trials: in any order.
        objective: name of a measurement.

    Returns:
        Choice -> share, in the order of the study, those with one candidate left out; empty with fewer than ten
        COMPLETE trials, and where the forest says the same everywhere.
    """
    complete = sorted((trial for trial in trials if trial.state is TrialState.COMPLETE), key=lambda trial: trial.number)
    tried = {name: _tried(name, complete) for name in spec.choices}
    varied = {name: candidates for name, candidates in tried.items() if len(candidates) > 1}
    if len(complete) < _FEWEST or not varied:
        return {}
    from sklearn.ensemble import RandomForestRegressor  # more than a second to import

    sizes = [len(candidates) for candidates in varied.values()]
    codes = np.array(
        [[candidates.index(_key(t, name)) for name, candidates in varied.items()] for t in complete], dtype=np.intp
    )
    forest = RandomForestRegressor(_TREES, random_state=0).fit(
        _one_hot(codes, sizes), [trial.value(objective) for trial in complete]
    )
    rows = _combinations(sizes)
    total = float(np.var(forest.predict(_one_hot(rows, sizes))))
    if total <= 0.0:
        return {}
    shares = {}
    for column, (name, size) in enumerate(zip(varied, sizes, strict=True)):
        means = []
        for code in range(size):
            changed = rows.copy()
            changed[:, column] = code
            means.append(float(forest.predict(_one_hot(changed, sizes)).mean()))
        shares[name] = min(1.0, float(np.var(means)) / total)
    return shares


def _key(trial: Trial, name: str) -> tuple[str, Candidate | None]:
    """Return what a trial chose, telling ``1`` from ``True``."""
    chosen = trial.architecture.get(name)
    return type(chosen).__name__, chosen


def _tried(name: str, trials: Sequence[Trial]) -> list[tuple[str, Candidate | None]]:
    return sorted({_key(trial, name) for trial in trials}, key=str)


def _one_hot(codes: NDArray[np.intp], sizes: Sequence[int]) -> NDArray[np.float32]:
    return np.concatenate(
        [np.eye(size, dtype=np.float32)[codes[:, column]] for column, size in enumerate(sizes)], axis=1
    )


def _combinations(sizes: Sequence[int]) -> NDArray[np.intp]:
    if math.prod(sizes) <= _ROWS:
        return np.array(list(itertools.product(*map(range, sizes))), dtype=np.intp)
    return np.random.default_rng(0).integers(0, sizes, size=(_ROWS, len(sizes)), dtype=np.intp)
