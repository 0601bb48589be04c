"""Two studies side by side: the same objectives, one scale."""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nas.reporting.agreement import agreement_figure, agreement_of
from nas.reporting.figures import importance_figure
from nas.reporting.page import document, fact, section, tip
from nas.reporting.panels import Axis, Panel, brief, panels, show
from nas.reporting.summary import Summary, summarise
from nas.reporting.svg import Frame, Scale, drawing, element, path, text
from trials import Metric, TrialState

__all__ = ["Comparison", "compare", "comparison_json", "comparison_page"]

_SIDES = (" first", " second")


@dataclass(frozen=True)
class Comparison:
    """Two studies, measured against one reference point.

    Attributes:
        summaries: the two, both with that reference.
        hypervolumes: dominated by each, as a share of the box between the best value of every objective in either and
            the reference.
        coverage: share of the *other* front that each covers: trials that one of its own is as good as in every
            objective (the C-metric of Zitzler and Thiele 1999).
    """

    summaries: tuple[Summary, Summary]
    hypervolumes: tuple[float, float]
    coverage: tuple[float, float]

    @property
    def objectives(self) -> tuple[Metric, ...]:
        """What both optimise."""
        return self.summaries[0].spec.objectives


def _loss(metric: Metric, value: float) -> float:
    return value if metric.direction == "minimize" else -value


def _points(summary: Summary) -> list[tuple[float, ...]]:
    metrics = summary.spec.objectives
    return [tuple(_loss(m, trial.value(m.name)) for m in metrics) for trial in summary.front]


def _covered(by: Sequence[tuple[float, ...]], points: Sequence[tuple[float, ...]]) -> float:
    covered = sum(any(all(a <= b for a, b in zip(own, point, strict=True)) for own in by) for point in points)
    return covered / len(points)


def compare(first: Summary, second: Summary) -> Comparison:
    """Put two studies on one scale.

    The reference point is the worst value of each objective in either study, a tenth of the seen range further out.

    Raises:
        ValueError: they optimise different things, or one has no COMPLETE trial.
    """
    names = [", ".join(f"{m.direction} {m.name} [{m.unit}]" for m in s.spec.objectives) for s in (first, second)]
    if first.spec.objectives != second.spec.objectives:
        raise ValueError(
            f"studies must optimise the same to be compared, {first.spec.name!r} has {names[0]} and "
            f"{second.spec.name!r} has {names[1]}; search one of them anew with the search.objectives of the other"
        )
    for summary in (first, second):
        if not summary.front:
            raise ValueError(f"studies must have a COMPLETE trial to be compared. {summary.message}")
    metrics = first.spec.objectives
    losses = [
        [_loss(m, trial.value(m.name)) for s in (first, second) for trial in s.in_state(TrialState.COMPLETE)]
        for m in metrics
    ]
    best = [min(column) for column in losses]
    worst = [max(column) + 0.1 * ((max(column) - min(column)) or abs(max(column)) or 1.0) for column in losses]
    reference = tuple(_loss(m, value) for m, value in zip(metrics, worst, strict=True))
    both = tuple(summarise(replace(s.spec, reference=reference), s.trials) for s in (first, second))
    box = math.prod(w - b for w, b in zip(worst, best, strict=True))
    shares = tuple(s.progress[-1].hypervolume / box for s in both)
    fronts = [_points(s) for s in both]
    return Comparison(
        (both[0], both[1]),
        (shares[0], shares[1]),
        (_covered(fronts[0], fronts[1]), _covered(fronts[1], fronts[0])),
    )


def comparison_json(comparison: Comparison) -> str:
    """Return the figures of the comparison, for programs."""
    reference = comparison.summaries[0].reference
    values = {
        "format_version": 1,
        "objectives": [metric.to_dict() for metric in comparison.objectives],
        "reference": list(reference or ()),
        "studies": [
            {
                "study": s.spec.name,
                "trials": len(s.trials),
                "front": len(s.front),
                "hypervolume": volume,
                "covers": share,
            }
            for s, volume, share in zip(comparison.summaries, comparison.hypervolumes, comparison.coverage, strict=True)
        ],
    }
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def _legend(comparison: Comparison) -> str:
    parts, left = [], 78.0
    for summary, side in zip(comparison.summaries, _SIDES, strict=True):
        parts.append(element("circle", cx=left, cy=11.0, r=5.0, class_=f"dot front{side}"))
        parts.append(text(summary.spec.name, left + 10, 15.0, class_="tick"))
        left += 40 + 7.2 * len(summary.spec.name)
    return "".join(parts)


def _ticks(axis: Axis) -> Callable[[float], str]:
    return (lambda value: f"{100 * value:.4g}%") if axis.percent else brief


def _fronts(comparison: Comparison, pair: tuple[Panel, Panel], left: float, width: float) -> str:
    sides = list(zip(comparison.summaries, pair, _SIDES, "ab", strict=True))
    measured = [(panel, panel.measured(s.in_state(TrialState.COMPLETE))) for s, panel, _, _ in sides]
    xs = [value for panel, found in measured for trial in found if (value := panel.x.value(trial)) is not None]
    ys = [value for panel, found in measured for trial in found if (value := panel.y.value(trial)) is not None]
    log_x, log_y = pair[0].x.log and min(xs) > 0, pair[0].y.log and min(ys) > 0
    frame = Frame(Scale.over(xs, left, left + width, log=log_x), Scale.over(ys, 440.0, 30.0, log=log_y))
    parts = [
        frame.drawn(
            x_title=pair[0].x.title, y_title=pair[0].y.title, x_label=_ticks(pair[0].x), y_label=_ticks(pair[0].y)
        )
    ]
    for summary, panel, side, letter in sides:
        front = {trial.number for trial in summary.front}
        if panel.line:
            parts.append(path([(frame.x(x), frame.y(y)) for x, y in panel.line], class_=f"edge{side}"))
        for trial in sorted(panel.measured(summary.in_state(TrialState.COMPLETE)), key=lambda t: t.number in front):
            x, y = panel.x.value(trial), panel.y.value(trial)
            kind, radius = ("front", 5.5) if trial.number in front else ("complete", 3.5)
            if x is not None and y is not None:
                parts.append(
                    element(
                        "circle",
                        cx=frame.x(x),
                        cy=frame.y(y),
                        r=radius,
                        class_=f"dot {kind}{side}",
                        data_trial=f"{letter}{trial.number}",
                    )
                )
    return "".join(parts)


def _pareto(comparison: Comparison) -> str:
    pairs = list(zip(*(panels(summary) for summary in comparison.summaries), strict=True))
    width = (1100.0 - 16.0) / len(pairs) - 84.0
    body = "".join(
        _fronts(comparison, (first, second), 78.0 + column * (width + 84.0), width)
        for column, (first, second) in enumerate(pairs)
    )
    return drawing(_legend(comparison) + body, 1100.0, 490.0, label="both Pareto fronts", key="pareto")


def _curves(comparison: Comparison) -> str:
    last = max(s.progress[-1].number for s in comparison.summaries)
    scaled = [
        share / (s.progress[-1].hypervolume or 1.0)
        for s, share in zip(comparison.summaries, comparison.hypervolumes, strict=True)
    ]
    top = max(0.01, *comparison.hypervolumes)
    frame = Frame(Scale(0.0, float(max(1, last)), 78.0, 1084.0), Scale(0.0, 1.05 * top, 236.0, 24.0))
    parts = [
        frame.drawn(
            x_title="trial",
            y_title="hypervolume",
            x_label=lambda value: f"{value:g}",
            y_label=lambda value: f"{100 * value:.4g}%",
        )
    ]
    for summary, factor, side in zip(comparison.summaries, scaled, _SIDES, strict=True):
        corners: list[tuple[float, float]] = []
        for entry in summary.progress:
            x, y = frame.x(entry.number), frame.y(factor * entry.hypervolume)
            corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
        parts.append(path(corners, class_=f"edge{side}"))
    return drawing("".join(parts) + _legend(comparison), 1100.0, 290.0, label="both hypervolumes", key="hypervolume")


def _table(comparison: Comparison) -> str:
    def best(summary: Summary, metric: Metric) -> str:
        values = [trial.value(metric.name) for trial in summary.front]
        return show(min(values) if metric.direction == "minimize" else max(values), metric.unit)

    def weights(summary: Summary) -> str:
        return ", ".join(sorted({t.provenance["weights"] for t in summary.front if "weights" in t.provenance})) or "-"

    sides = comparison.summaries
    rows = [
        ("supernet", *(s.spec.metadata.get("supernet") or "-" for s in sides)),
        ("weights", *(weights(s) for s in sides)),
        ("what is evaluated", *(s.spec.subject or "-" for s in sides)),
        ("trials, complete", *(f"{len(s.trials):,}, {len(s.in_state(TrialState.COMPLETE)):,}" for s in sides)),
        ("on the front", *(f"{len(s.front):,}" for s in sides)),
        *((f"best {m.name}", *(best(s, m) for s in sides)) for m in comparison.objectives),
        ("hypervolume, one reference", *(f"{share:.2%}" for share in comparison.hypervolumes)),
        ("covers of the other front", *(f"{share:.0%}" for share in comparison.coverage)),
    ]
    header = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *(s.spec.name for s in sides)))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _agreements(comparison: Comparison) -> list[str]:
    first, second = comparison.summaries
    others = {trial.arch_id: trial for trial in second.in_state(TrialState.COMPLETE)}
    shared = [(t, others[t.arch_id]) for t in first.in_state(TrialState.COMPLETE) if t.arch_id in others]
    found = []
    for metric in comparison.objectives:
        name = metric.name
        points = [
            (a.value(name), b.value(name), f"{a.arch_id}: trials {a.number} and {b.number}", None) for a, b in shared
        ]
        pair = agreement_of(metric, metric, points)
        if pair is None or all(x == y for x, y, _, _ in points):  # a cost is the same in both
            continue
        note = (
            f"{len(points):,} architectures are in both studies. Kendall's tau {pair.tau:.2f}, Spearman's rho "
            f"{pair.rho:.2f}: 1 ranks them alike, 0 tells nothing. The dashed line is where both are equal."
        )
        titles = [f"{name} in {s.spec.name}" for s in comparison.summaries]
        found.append(section(f"Ranking by {name}", note, agreement_figure(pair, x_title=titles[0], y_title=titles[1])))
    return found


def comparison_page(comparison: Comparison, importance: Sequence[Mapping[str, Mapping[str, float]]] = ({}, {})) -> str:
    """Return one self-contained page about both studies; equal studies give equal text.

    Args:
        comparison: of the two.
        importance: for each study, objective -> choice -> share of the variance.
    """
    first, second = comparison.summaries
    names = [s.spec.name for s in comparison.summaries]
    titled = html.escape(f"{names[0]} and {names[1]}")
    facts = "".join(
        fact(f"{share:.1%}", f"hypervolume of {name}")
        for share, name in zip(comparison.hypervolumes, names, strict=True)
    ) + "".join(
        fact(f"{share:.0%}", f"of the other front covered by {name}")
        for share, name in zip(comparison.coverage, names, strict=True)
    )
    sections = [
        section(
            "Pareto fronts",
            "Large dots are on the front of their study. Point at a trial for its architecture and everything that was "
            "measured.",
            _pareto(comparison),
        ),
        section(
            "Hypervolume",
            "Dominated after each trial, for both from one reference point and as a share of one box, so that the "
            "curves compare.",
            _curves(comparison),
        ),
        section("In numbers", "", _table(comparison)),
        *_agreements(comparison),
    ]
    for name, shares in zip(names, importance, strict=True):
        if shares:
            note = "Share of the variance that a choice explains by itself."
            figure = importance_figure(shares, key=f"importance-{name}")
            sections.append(section(f"Importance of the choices in {name}", note, figure))
    tips = {
        f"{letter}{t.number}": f"{s.spec.name}, {tip(s, t)}"
        for letter, s in (("a", first), ("b", second))
        for t in s.trials
    }
    return document(
        f"{names[0]} and {names[1]}",
        f'<h1>{titled}</h1><p>Two studies on one scale.</p><div class="facts">{facts}</div>{"".join(sections)}',
        tips,
    )
