"""Whether two measurements of the same trials rank them alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.stats import kendalltau, spearmanr

from nas.reporting.panels import brief, show
from nas.reporting.summary import Summary
from nas.reporting.svg import Frame, Scale, drawing, element, path
from trials import Metric, TrialState

__all__ = ["Agreement", "agreement_figure", "agreement_of", "agreements"]

_FEWEST = 3


@dataclass(frozen=True)
class Agreement:
    """Two measurements of the same architectures.

    Attributes:
        x: the first, horizontal.
        y: the second, of the same unit and direction.
        points: (x, y, label, trial number where there is one) of each architecture.
        tau: Kendall's tau-b.
        rho: Spearman's rank correlation.
    """

    x: Metric
    y: Metric
    points: tuple[tuple[float, float, str, int | None], ...]
    tau: float
    rho: float


def agreement_of(x: Metric, y: Metric, points: Sequence[tuple[float, float, str, int | None]]) -> Agreement | None:
    """Return how two measurements agree, or ``None`` with fewer than three points or where one of them is constant."""
    first, second = [point[0] for point in points], [point[1] for point in points]
    if len(points) < _FEWEST or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    tau, rho = kendalltau(first, second).statistic, spearmanr(first, second).statistic
    return Agreement(x, y, tuple(points), float(tau), float(rho))


def agreements(summary: Summary) -> Iterable[Agreement]:
    """Yield each objective beside every other measurement of its unit and direction, over the COMPLETE trials.

    That is where a study measured one quality twice: with and without calibration, or with shared weights and trained
    from scratch.
    """
    complete = summary.in_state(TrialState.COMPLETE)
    names = sorted({name for trial in complete for name in trial.measurements})
    seen = set()
    for metric in summary.spec.objectives:
        for name in names:
            both = [trial for trial in complete if name in trial.measurements]
            alike = all(
                (m.unit, m.direction) == (metric.unit, metric.direction)
                for m in (trial.measurements[name] for trial in both)
            )
            if name == metric.name or not alike or metric.unit in ("1", "") or frozenset((name, metric.name)) in seen:
                continue
            seen.add(frozenset((name, metric.name)))
            other = Metric(name, metric.unit, metric.direction)
            points = [(trial.value(metric.name), trial.value(name), "", trial.number) for trial in both]
            found = agreement_of(metric, other, points)
            if found is not None:
                yield found


def agreement_figure(pair: Agreement, *, x_title: str = "", y_title: str = "") -> str:
    """Return the scatter of one measurement against the other, with the diagonal."""
    values = [(x, y) for x, y, _, _ in pair.points]
    frame = Frame(
        Scale.over([x for x, _ in values], 78.0, 560.0), Scale.over([y for _, y in values], 380.0, 14.0)
    )  # fmt: skip
    grid = frame.drawn(
        x_title=x_title or pair.x.name,
        y_title=y_title or pair.y.name,
        x_label=lambda v: _words(v, pair.x),
        y_label=lambda v: _words(v, pair.y),
    )
    low, high = max(frame.x.low, frame.y.low), min(frame.x.high, frame.y.high)
    both = path([(frame.x(low), frame.y(low)), (frame.x(high), frame.y(high))], class_="diagonal") if low < high else ""
    dots = "".join(
        element(
            "circle",
            cx=frame.x(x),
            cy=frame.y(y),
            r=4.0,
            class_="dot complete",
            data_trial=trial,
            data_tip=None
            if trial is not None
            else f"{label}\n{x_title} {show(x, pair.x.unit)}\n{y_title} {show(y, pair.y.unit)}",
        )
        for x, y, label, trial in pair.points
    )
    key = f"agreement-{pair.x.name}-{pair.y.name}"
    return drawing(grid + both + dots, 1100.0, 430.0, label=f"{pair.x.name} against {pair.y.name}", key=key)


def _words(value: float, metric: Metric) -> str:
    return f"{100 * value:.4g}%" if metric.unit == "fraction" else brief(value)
