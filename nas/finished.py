"""What another study found: its finished trials, and the best of them for the question at hand."""

from collections.abc import Sequence

import numpy as np

from nas.controllers.base import Problem
from trials import Trial, TrialStore, crowding_distance, non_dominated_rank

__all__ = ["best_of", "finished_trials", "violation"]


def finished_trials(problem: Problem, study: str, storage: str, *, where: str) -> list[Trial]:
    """Return the trials of another study that measured every objective of ``problem``.

    Args:
        problem: of the same space, and of objectives that the study measured.
        study: its name.
        storage: where it lives.
        where: the field of the configuration, for messages.

    Raises:
        StoreUnavailableError: there is no such storage.
        StudyNotFoundError: it holds no such study.
        ValueError: the study is of another space, or no trial measured all objectives.
    """
    store = TrialStore.load(storage, study)
    if store.spec.space_digest != problem.space.digest:
        choices = {choice.name: choice.candidates for choice in problem.space.choices}
        differing = sorted(
            name
            for name in choices.keys() | store.spec.choices.keys()
            if choices.get(name) != store.spec.choices.get(name)
        )
        raise ValueError(
            f"{where}: study {study!r} must be of the space that is searched, but its choices {differing[:5]} differ"
            if differing
            else f"{where}: study {study!r} must be of the space that is searched; it has the same choices, but its "
            f"digest is {store.spec.space_digest}, not {problem.space.digest}"
        )
    wanted = {metric.name: metric.direction for metric in problem.objectives}
    found = [
        trial
        for trial in store.trials()
        if trial.state.finished
        and all(
            name in trial.measurements and trial.measurements[name].direction == direction
            for name, direction in wanted.items()
        )
    ]
    if not found:
        measured = sorted({name for trial in store.trials() for name in trial.measurements})
        raise ValueError(
            f"{where}: study {study!r} must hold trials that measured {sorted(wanted)}, it measured {measured}; "
            "name another study, or search for what it measured"
        )
    return found


def violation(problem: Problem, trial: Trial) -> float:
    """Return by how much a trial breaks the limits of ``problem``, each relative to its bound, added up."""
    return sum(
        max(0.0, limit.violation(trial.value(limit.metric))) / (abs(limit.bound) or 1.0)
        for limit in problem.limits
        if limit.metric in trial.measurements
    )


def best_of(problem: Problem, trials: Sequence[Trial], count: int) -> list[Trial]:
    """Return the ``count`` best of ``trials`` by constrained domination (Deb et al. 2002, Sec. VI).

    Those that hold the limits come first, by non-dominated front and within a front by falling crowding distance; then
    those that break them, the least broken first. Ties go to the lower trial number.
    """
    held = sorted((t for t in trials if violation(problem, t) == 0.0), key=lambda trial: trial.number)
    broken = sorted(
        ((violation(problem, t), t.number, t) for t in trials if violation(problem, t) > 0.0), key=lambda item: item[:2]
    )
    ranked: list[Trial] = []
    if held:
        points = np.array([[trial.value(metric.name) for metric in problem.objectives] for trial in held])
        ranks = np.asarray(non_dominated_rank(points, problem.directions))
        for rank in np.unique(ranks):
            members = np.flatnonzero(ranks == rank)
            order = np.argsort(-crowding_distance(points[members]), kind="stable")
            ranked += [held[index] for index in members[order]]
    return (ranked + [trial for _, _, trial in broken])[:count]
