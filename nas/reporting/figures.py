"""The figures of the page, as SVG: trials carry their number, which is all that the script of the page needs."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from nas.reporting.panels import Axis, Dimension, Panel, brief, panels, parallel, show
from nas.reporting.summary import Summary
from nas.reporting.svg import Frame, Scale, drawing, element, number, path, shade, text
from trials import Trial, TrialState

__all__ = ["goodness", "hypervolume_figure", "importance_figure", "parallel_figure", "pareto_figure"]

_WIDTH = 1100.0
_MAX_LINES = 1000


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def _label(axis: Axis) -> Callable[[float], str]:
    return _percent if axis.percent else brief


def _values(axis: Axis, trials: Sequence[Trial]) -> list[float]:
    return [value for trial in trials if (value := axis.value(trial)) is not None]


def _dot(trial: Trial, x: float, y: float, kind: str) -> str:
    radius = {"front": 5.5, "failed": 3.0}.get(kind, 4.0)
    return element("circle", cx=x, cy=y, r=radius, class_=f"dot {kind}", data_trial=trial.number)


def _limits(frame: Frame, panel: Panel) -> str:
    x, y = frame.x, frame.y
    lines = [[(x(b), y.start), (x(b), y.end)] for b in panel.x.bounds if x.low <= b <= x.high]
    lines += [[(x.start, y(b)), (x.end, y(b))] for b in panel.y.bounds if y.low <= b <= y.high]
    return "".join(path(line, class_="limit") for line in lines)


def _scatter(summary: Summary, panel: Panel, left: float, width: float) -> str:
    apart = panel.half_measured(summary.in_state(TrialState.INFEASIBLE, TrialState.FAILED))
    whole = panel.measured(summary.trials)
    bottom = 400.0 if apart else 440.0
    frame = Frame(
        Scale.over(_values(panel.x, [*whole, *apart]), left, left + width, log=panel.x.log),
        Scale.over(_values(panel.y, whole), bottom, 30.0, log=panel.y.log),
    )
    parts = []
    if apart:  # what was never fully measured stands in two rows of its own between the axis and its title
        for row, state in enumerate((TrialState.INFEASIBLE, TrialState.FAILED)):
            parts += [
                _dot(trial, frame.x(value), bottom + 34 + 14 * row, state.value.lower())
                for trial in apart
                if trial.state is state and (value := panel.x.value(trial)) is not None
            ]
    grid = frame.drawn(
        x_title="" if apart else panel.x.title,
        y_title=panel.y.title,
        x_label=_label(panel.x),
        y_label=_label(panel.y),
        x_ticks=panel.x.ticks,
        y_ticks=panel.y.ticks,
    )
    if apart:
        grid += text(panel.x.title, left + width / 2, bottom + 72, class_="title", text_anchor="middle")
    edge = path([(frame.x(x), frame.y(y)) for x, y in panel.line], class_="edge") if panel.line else ""
    front = {trial.number for trial in summary.front}
    order = {"infeasible": 0, "complete": 1, "front": 2}
    kinds = [(trial, "front" if trial.number in front else trial.state.value.lower()) for trial in whole]
    for trial, kind in sorted(kinds, key=lambda pair: order.get(pair[1], 0)):
        x, y = panel.x.value(trial), panel.y.value(trial)
        if x is not None and y is not None:
            parts.append(_dot(trial, frame.x(x), frame.y(y), kind))
    return grid + _limits(frame, panel) + edge + "".join(parts)


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    parts, left = [], 78.0
    for kind, words in entries:
        parts.append(element("circle", cx=left, cy=11.0, r=4.5, class_=f"dot {kind}"))
        parts.append(text(words, left + 10, 15.0, class_="tick"))
        left += 34 + 7.2 * len(words)
    return "".join(parts)


def pareto_figure(summary: Summary) -> str:
    """Return one column per panel: the trials, the front and its edge, and below it what was never fully measured."""
    drawn = panels(summary)
    gap = 84.0
    width = (_WIDTH - 16.0) / len(drawn) - gap
    body = "".join(
        _scatter(summary, panel, gap - 6 + column * (width + gap), width) for column, panel in enumerate(drawn)
    )
    front = {trial.number for trial in summary.front}
    behind = len(summary.in_state(TrialState.COMPLETE)) - len(front)
    entries = [("front", f"{'best' if len(summary.spec.objectives) == 1 else 'on the front'} ({len(front)})")]
    entries += [("complete", f"complete ({behind})")] if behind else []
    for state in (TrialState.INFEASIBLE, TrialState.FAILED):
        count = len(summary.in_state(state))
        entries += [(state.value.lower(), f"{state.value.lower()} ({count})")] if count else []
    return drawing(_legend(entries) + body, _WIDTH, 490.0, label="trials and the Pareto front", key="pareto")


def hypervolume_figure(summary: Summary) -> str:
    """Return the share of the hypervolume over the trials, as steps."""
    entries = summary.progress
    frame = Frame(
        Scale(float(entries[0].number), max(entries[-1].number, entries[0].number + 1), 72.0, _WIDTH - 16),
        Scale(0.0, max(1.05 * entries[-1].share, 0.01), 236.0, 12.0),
    )
    corners: list[tuple[float, float]] = []
    for entry in entries:
        x, y = frame.x(entry.number), frame.y(entry.share)
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    area = [(corners[0][0], frame.y.start), *corners, (corners[-1][0], frame.y.start)]
    grid = frame.drawn(x_title="trial", y_title="hypervolume", x_label=lambda v: f"{v:g}", y_label=_percent)
    dots = "".join(
        element(
            "circle",
            cx=frame.x(entry.number),
            cy=frame.y(entry.share),
            r=4.0,
            class_="step",
            data_trial=entry.number,
            data_tip=f"after trial {entry.number}: {entry.share:.2%}\nhypervolume {entry.hypervolume:.6g}",
        )
        for before, entry in zip([None, *entries], entries, strict=False)
        if before is None or entry.share > before.share
    )
    body = grid + path(area, class_="area") + path(corners, class_="edge") + dots
    return drawing(body, _WIDTH, 290.0, label="hypervolume over the trials", key="hypervolume")


def goodness(summary: Summary, trials: Sequence[Trial]) -> list[float]:
    """Return how good each COMPLETE trial is in the first objective, from 0 (worst seen) to 1 (best seen)."""
    first = summary.spec.objectives[0]
    values = [trial.value(first.name) for trial in trials]
    low, high = min(values), max(values)
    if low == high:
        return [0.5] * len(values)
    shares = [(value - low) / (high - low) for value in values]
    return shares if first.direction == "maximize" else [1 - share for share in shares]


def _marks(line: Dimension) -> list[tuple[float, str]]:
    if line.ticks:
        return list(zip(line.ticks, line.texts, strict=True))
    low, high = min(line.values), max(line.values)
    ticks = [low + (high - low) * part / 4 for part in range(5)] if high > low else [low]
    return [(tick, show(tick, line.unit)) for tick in ticks]


def _spread(line: Dimension, shares: Sequence[float], room: float) -> list[float]:
    """Return how far each trial is moved off its tick, so that lines of one candidate lie side by side, best highest.

    Args:
        line: an axis; on a plain number line nothing is moved.
        shares: how good each trial is.
        room: pixels between two ticks.
    """
    moved = [0.0] * len(shares)
    for tick in line.ticks:
        there = sorted((share, index) for index, share in enumerate(shares) if line.values[index] == tick)
        step = min(2.2, 0.62 * room / max(1, len(there)))
        for rank, (_, index) in enumerate(there):
            moved[index] = ((len(there) - 1) / 2 - rank) * step
    return moved


def parallel_figure(summary: Summary) -> str:
    """Return the parallel coordinates of the COMPLETE trials, coloured by the first objective, best on top.

    The trials of one candidate lie side by side in a band around its tick. Of more than 1,000 the best are drawn.
    """
    lines, complete = parallel(summary), summary.in_state(TrialState.COMPLETE)
    top, bottom = 70.0, 380.0
    width = max(_WIDTH, 84.0 * len(lines))
    gap = (width - 150.0) / max(1, len(lines) - 1)
    columns = [60.0 + gap * index for index in range(len(lines))]
    ends = [(line.ticks[0], line.ticks[-1]) if line.ticks else (min(line.values), max(line.values)) for line in lines]
    steps = [max(1, len(line.ticks)) for line in lines]  # a band per candidate
    inset = [(bottom - top) / (2 * count) if line.ticks else 0.0 for line, count in zip(lines, steps, strict=True)]
    scales = [Scale(low, high, bottom - edge, top + edge) for (low, high), edge in zip(ends, inset, strict=True)]
    shares = goodness(summary, complete)
    moved = [_spread(line, shares, (bottom - top) / count) for line, count in zip(lines, steps, strict=True)]
    drawn = []
    for index in sorted(range(len(complete)), key=lambda i: shares[i])[-_MAX_LINES:]:
        heights = [
            scale(line.values[index]) + off[index] for scale, line, off in zip(scales, lines, moved, strict=True)
        ]
        curve = f"M{number(columns[0])},{number(heights[0])}"
        for (left, start), (right, end) in pairwise(zip(columns, heights, strict=True)):
            half = number((left + right) / 2)
            curve += f"C{half},{number(start)} {half},{number(end)} {number(right)},{number(end)}"
        drawn.append(
            element(
                "path",
                d=curve,
                class_="line",
                stroke=shade(shares[index]),
                data_trial=complete[index].number,
                data_heights=",".join(number(height) for height in heights),
            )
        )
    axes = []
    for position, (line, column, scale) in enumerate(zip(lines, columns, scales, strict=True)):
        axes.append(element("line", x1=column, x2=column, y1=top, y2=bottom, class_="axis"))
        turn = f"rotate(-18 {number(column)} {number(top - 16)})" if len(lines) > 6 else None
        axes.append(text(line.label, column - 6, top - 16, class_="name", transform=turn))
        for tick, words in _marks(line):
            axes.append(text(words, column + 5, scale(tick) + 4, class_="tick halo"))
        axes.append(
            element("rect", x=column - 14, y=top - 8, width=28.0, height=bottom - top + 16, class_="axis-drag",
                    data_axis=position)
        )  # fmt: skip
    body = element("g", "".join(drawn), class_="lines") + "".join(axes)
    return drawing(body, width, 410.0, label="choices and objectives of the complete trials", key="choices")


def importance_figure(shares: Mapping[str, Mapping[str, float]], *, key: str = "importance") -> str:
    """Return one group of horizontal bars per objective: the share of its variance that each choice explains alone."""
    names = list(next(iter(shares.values())))
    rows = sorted(names, key=lambda name: -max(found[name] for found in shares.values()))
    room = 12.0 + 6.8 * max(map(len, rows))
    gap = 34.0
    width = (_WIDTH - room) / len(shares) - gap
    parts = [text(name, room - 8, 46.0 + 24 * row, class_="name", text_anchor="end") for row, name in enumerate(rows)]
    for column, (objective, found) in enumerate(shares.items()):
        left = room + column * (width + gap)
        parts.append(text(objective, left, 18.0, class_="title"))
        for row, name in enumerate(rows):
            long = max(1.0, found[name] * (width - 50))
            tip = f"{name}\n{100 * found[name]:.1f} % of {objective}"
            parts.append(
                element("rect", x=left, y=33.0 + 24 * row, width=long, height=16.0, rx=2.0, class_="bar", data_tip=tip)
            )
            parts.append(text(f"{100 * found[name]:.0f}%", left + long + 6, 46.0 + 24 * row, class_="tick"))
    return drawing("".join(parts), _WIDTH, 44.0 + 24 * len(rows), label="importance of each choice", key=key)
