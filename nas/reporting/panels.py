"""What the figures draw, independent of the library that draws it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from nas.reporting.summary import Summary
from trials import Candidate, Metric, StudySpec, Trial, TrialState

__all__ = ["Axis", "Dimension", "Ink", "Panel", "brief", "outline", "panels", "parallel", "show", "why"]

_LOG_SPAN = 30.0
_MAX_DIMENSIONS = 40


class Ink(StrEnum):
    """Colours of both figures; told apart by people with any kind of colour vision, and in grey."""

    FRONT = "#d9480f"
    COMPLETE = "#7f9fc4"
    INFEASIBLE = "#868e96"
    FAILED = "#212529"
    LIMIT = "#adb5bd"
    TEXT = "#212529"
    SOFT = "#6c757d"
    GRID = "#e9ecef"


def brief(value: float) -> str:
    """Return a tick label: 0.05, 200, 30k, 4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def show(value: float, unit: str) -> str:
    """Return a value for people: fractions as percent, whole numbers with separators, the rest to 4 digits."""
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    else:
        text = f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text if unit in ("1", "") else f"{text} {unit}"


@dataclass(frozen=True)
class Axis:
    """One axis of a panel: a metric, or the number of the trial.

    Attributes:
        metric: what is measured; ``None`` for the trial number.
        log: whether values span enough to be drawn in logarithms.
        bounds: limits to draw.
        ticks: where a logarithmic axis is labelled.
    """

    metric: Metric | None
    log: bool = False
    bounds: tuple[float, ...] = ()
    ticks: tuple[float, ...] = ()

    @property
    def title(self) -> str:
        """Name, unit and the better direction."""
        if self.metric is None:
            return "trial"
        unit = "" if self.metric.unit in ("1", "", "fraction") else f" [{self.metric.unit}]"
        better = "lower" if self.metric.direction == "minimize" else "higher"
        return f"{self.metric.name}{unit}, {better} is better"

    @property
    def percent(self) -> bool:
        """Whether ticks are percentages."""
        return self.metric is not None and self.metric.unit == "fraction"

    def value(self, trial: Trial) -> float | None:
        """Return where a trial lies, ``None`` when it was not measured."""
        if self.metric is None:
            return float(trial.number)
        item = trial.measurements.get(self.metric.name)
        return None if item is None else item.value


@dataclass(frozen=True)
class Panel:
    """One scatter plot of trials.

    Attributes:
        x: horizontal axis.
        y: vertical axis.
        line: ``(x, y)`` corners of the best so far, or of the edge of the dominated area; empty where a front is no
            line.
    """

    x: Axis
    y: Axis
    line: tuple[tuple[float, float], ...] = ()

    def measured(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials that have both values."""
        return [t for t in trials if self.x.value(t) is not None and self.y.value(t) is not None]

    def half_measured(self, trials: Iterable[Trial]) -> list[Trial]:
        """Return the trials that have a horizontal value alone; they are drawn apart, below the panel."""
        return [t for t in trials if self.x.value(t) is not None and self.y.value(t) is None]


@dataclass(frozen=True)
class Dimension:
    """One vertical line of the parallel coordinates.

    Attributes:
        label: name of the choice or the objective.
        values: position of each COMPLETE trial.
        ticks: positions that have a text; empty for a plain number line.
        texts: of the ticks.
        unit: of plain numbers.
    """

    label: str
    values: tuple[float, ...]
    ticks: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    unit: str = ""


def _axis(summary: Summary, metric: Metric) -> Axis:
    values = [t.value(metric.name) for t in summary.trials if metric.name in t.measurements]
    low, high = min(values, default=0.0), max(values, default=0.0)
    bounds = tuple(limit.bound for limit in summary.spec.limits if limit.metric == metric.name)
    log = low > 0 and high / low > _LOG_SPAN
    return Axis(metric, log, bounds, _log_ticks(low, high, sparse=len(summary.spec.objectives) > 2) if log else ())


def _log_ticks(low: float, high: float, *, sparse: bool) -> tuple[float, ...]:
    """Return 1, 2, 5 times the powers of ten, or 1 and 3 times in a narrow panel, alone where they get too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors: tuple[int, ...] = (1, 3) if sparse else (1, 2, 5)
    if len(powers) > 5:
        factors = (1,)
    return tuple(factor * 10.0**power for power in powers for factor in factors)


def outline(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return the staircase through points of a front sorted by x: horizontal first, then vertical."""
    corners: list[tuple[float, float]] = []
    for x, y in points:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return tuple(corners)


def _best_so_far(summary: Summary, metric: Metric) -> tuple[tuple[float, float], ...]:
    best, points = math.nan, []
    complete = summary.in_state(TrialState.COMPLETE)
    for trial in complete:
        value = trial.value(metric.name)
        if math.isnan(best) or (value < best if metric.direction == "minimize" else value > best):
            best = value
            points.append((float(trial.number), best))
    if points:
        points.append((float(summary.trials[-1].number), best))
    return outline(points)


def _edge(summary: Summary, x: Metric, y: Metric) -> tuple[tuple[float, float], ...]:
    """Return the edge of the dominated area of two objectives, walked from the best x towards the worst."""
    points = sorted((trial.value(x.name), trial.value(y.name)) for trial in summary.front)
    return outline(points if x.direction == "minimize" else points[::-1])


def _oriented(first: Metric, second: Metric) -> tuple[Metric, Metric]:
    """Put what is minimised (a cost) on the horizontal axis where the two differ."""
    if first.direction == "maximize" and second.direction == "minimize":
        return second, first
    return first, second


def panels(summary: Summary) -> list[Panel]:
    """Return the scatter plots of a study.

    One objective: its value over the trials with the best so far. Two: one against the other with the edge of the
    dominated area. Three: every pair. More: each against the first.
    """
    objectives = summary.spec.objectives
    if len(objectives) == 1:
        axis = _axis(summary, objectives[0])
        return [Panel(Axis(None), axis, _best_so_far(summary, objectives[0]))]
    if len(objectives) <= 3:
        pairs = list(combinations(objectives, 2))
    else:
        pairs = [(objectives[0], other) for other in objectives[1:]]
    result = []
    for pair in pairs:
        x, y = _oriented(*pair)
        line = _edge(summary, x, y) if len(objectives) == 2 else ()
        result.append(Panel(_axis(summary, x), _axis(summary, y), line))
    return result


def _same(a: Candidate, b: Candidate) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _choice(name: str, candidates: Sequence[Candidate], trials: Sequence[Trial]) -> Dimension:
    def position(trial: Trial) -> float:
        if name not in trial.architecture:
            return -1.0
        return float(next(i for i, c in enumerate(candidates) if _same(c, trial.architecture[name])))

    values = tuple(position(trial) for trial in trials)
    absent = (("-",), (-1.0,)) if -1.0 in values else ((), ())
    ticks = (*absent[1], *map(float, range(len(candidates))))
    return Dimension(name, values, ticks, (*absent[0], *map(str, candidates)))


def parallel(summary: Summary) -> list[Dimension]:
    """Return the lines of the parallel coordinates: choices that can differ (at most 40), then the objectives.

    Candidates stand at equal distances in their order, categorical ones too; ``-`` is a choice that the architecture
    does not have. Where there are more than 40 choices, those whose candidates were tried most evenly are kept.
    """
    complete = summary.in_state(TrialState.COMPLETE)
    found = [_choice(name, candidates, complete) for name, candidates in summary.spec.choices.items()]
    varied = [dimension for dimension in found if len(set(dimension.values)) > 1]
    if len(varied) > _MAX_DIMENSIONS:
        kept = sorted(range(len(varied)), key=lambda i: -_evenness(varied[i].values))[:_MAX_DIMENSIONS]
        varied = [varied[i] for i in sorted(kept)]
    objectives = [
        Dimension(m.name, tuple(t.value(m.name) for t in complete), unit=m.unit) for m in summary.spec.objectives
    ]
    return [*varied, *objectives]


def _evenness(values: Sequence[float]) -> float:
    """Return the entropy of the values, in nats."""
    shares = [values.count(value) / len(values) for value in set(values)]
    return -sum(share * math.log(share) for share in shares)


def why(spec: StudySpec, trial: Trial) -> str:
    """Return in one line why a trial is not COMPLETE."""
    if trial.state is TrialState.FAILED:
        lines = (trial.error or "no reason was recorded").strip().splitlines()
        return lines[-1]
    broken = [
        f"{limit.key}: {show(trial.value(limit.metric), trial.measurements[limit.metric].unit)}"
        f" against {show(limit.bound, trial.measurements[limit.metric].unit)}"
        for limit in spec.limits
        if limit.metric in trial.measurements and not limit.holds(trial.value(limit.metric))
    ]
    if trial.state is TrialState.RUNNING:
        return "still running"
    return "; ".join(broken) or "a limit on a value that was not recorded"
