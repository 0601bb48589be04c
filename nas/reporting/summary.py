"""The facts of a report: states, front, reference point and hypervolume over the trials of a study."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trials import Metric, StudySpec, Trial, TrialState, hypervolume, non_dominated

__all__ = ["Progress", "Summary", "summarise"]

_MARGIN = 0.1


@dataclass(frozen=True)
class Progress:
    """How far the study was after one trial.

    Attributes:
        number: of the trial.
        hypervolume: dominated by all COMPLETE trials so far, in the product of the objectives' units.
        share: the same as a fraction of the box between the best value of every objective and the reference point.
    """

    number: int
    hypervolume: float
    share: float


@dataclass(frozen=True)
class Summary:
    """A study as a report sees it.

    Attributes:
        spec: the question.
        trials: all trials, by number.
        front: COMPLETE trials that no other dominates, best first objective first; of trials with equal objectives
            the earliest.
        reference: worst corner that the hypervolume is measured from, ``None`` without a COMPLETE trial.
        progress: one entry per finished trial from the first COMPLETE one on, never decreasing.
    """

    spec: StudySpec
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    reference: tuple[float, ...] | None
    progress: tuple[Progress, ...]

    def in_state(self, *states: TrialState) -> tuple[Trial, ...]:
        """Return the trials in one of ``states``, by number."""
        return tuple(trial for trial in self.trials if trial.state in states)

    @property
    def message(self) -> str:
        """What to say instead of a front when nothing is complete; empty otherwise."""
        if self.front:
            return ""
        name = self.spec.name
        if not self.trials:
            return f"Study {name!r} has no trials yet. Run `nas search` with this study name, then report again."
        counts = [f"{len(self.in_state(state))} {state.value}" for state in TrialState if self.in_state(state)]
        reasons = {
            limit.key: sum(
                limit.metric in trial.measurements and not limit.holds(trial.value(limit.metric))
                for trial in self.in_state(TrialState.INFEASIBLE)
            )
            for limit in self.spec.limits
        }
        broken = ", ".join(f"{key} by {count}" for key, count in reasons.items() if count)
        advice = (
            f" Broken limits: {broken}. Loosen them, or see with `nas profile` what this space can reach."
            if broken
            else " Continue the search, or read the errors of the failed trials below."
        )
        return f"Study {name!r} has no COMPLETE trial ({', '.join(counts)}), so there is no front to show.{advice}"


def _values(spec: StudySpec, trial: Trial) -> list[float]:
    return [trial.value(metric.name) for metric in spec.objectives]


def _sign(metric: Metric) -> float:
    return 1.0 if metric.direction == "minimize" else -1.0


def _reference(spec: StudySpec, points: np.ndarray) -> tuple[float, ...]:
    """Return the study's own reference, or the worst seen values moved outwards by a tenth of the seen range.

    The margin lets the extremes of a front count. Where all trials agree it is a tenth of the value, or of one.
    """
    if spec.reference is not None:
        return spec.reference
    corner = []
    for metric, column in zip(spec.objectives, points.T, strict=True):
        low, high = float(column.min()), float(column.max())
        margin = _MARGIN * ((high - low) or abs(high) or 1.0)
        corner.append(high + margin if metric.direction == "minimize" else low - margin)
    return tuple(corner)


def _progress(
    spec: StudySpec, finished: Sequence[Trial], points: np.ndarray, reference: tuple[float, ...]
) -> tuple[Progress, ...]:
    """Add up what each COMPLETE trial dominates alone: ``hv(F + p) - hv(F) = vol(p) - hv(worse(f, p) : f in F)``."""
    signs = np.array([_sign(metric) for metric in spec.objectives])
    corner = np.array(reference) * signs
    box = float(np.prod(np.maximum(corner - (points * signs).min(axis=0), 0.0)))
    front = np.empty((0, len(signs)))
    total = 0.0
    entries: list[Progress] = []
    for trial in finished:
        if trial.state is TrialState.COMPLETE:
            point = np.array(_values(spec, trial)) * signs
            if (point < corner).all() and not (front <= point).all(axis=1).any():
                alone = float(np.prod(corner - point)) - hypervolume(np.maximum(front, point), corner)
                total += max(0.0, alone)
                front = np.vstack([front[~(front >= point).all(axis=1)], point])
        elif not entries:
            continue
        entries.append(Progress(trial.number, total, total / box if box else 0.0))
    return tuple(entries)


def summarise(spec: StudySpec, trials: Sequence[Trial]) -> Summary:
    """Compute what a report shows.

    The reference point of the hypervolume is ``spec.reference``; without one it is the nadir of *all* COMPLETE trials
    (the worst value of each objective), moved outwards by a tenth of the seen range. It is one point for the whole
    curve, so the curve never falls and its values compare within the study; a study that has grown has another
    reference, and curves of different studies compare only when both give ``reference``.

    Args:
        spec: of the study.
        trials: all of its trials, in any order.
    """
    ordered = tuple(sorted(trials, key=lambda trial: trial.number))
    complete = [trial for trial in ordered if trial.state is TrialState.COMPLETE]
    if not complete:
        return Summary(spec, ordered, (), None, ())
    points = np.array([_values(spec, trial) for trial in complete])
    kept = non_dominated(points, [metric.direction for metric in spec.objectives])
    unique: dict[tuple[float, ...], Trial] = {}
    for trial, point, keep in zip(complete, points.tolist(), kept.tolist(), strict=True):
        if keep:
            unique.setdefault(tuple(point), trial)
    first = spec.objectives[0]
    front = sorted(unique.values(), key=lambda trial: (_sign(first) * trial.value(first.name), trial.number))
    reference = _reference(spec, points)
    finished = [trial for trial in ordered if trial.state.finished]
    return Summary(spec, ordered, tuple(front), reference, _progress(spec, finished, points, reference))
