"""The same figures as one PNG, for logs, slides and trackers, in matplotlib."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from nas.reporting.panels import Axis, Dimension, Ink, Panel, brief, panels, parallel, show
from nas.reporting.summary import Summary
from trials import TrialState

__all__ = ["picture"]

_DPI = 96
_COLOURS = ("#d5deea", "#7f9fc4", "#3b5f8f", Ink.FRONT.value)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=Ink.TEXT, pad=10)
    axes.grid(color=Ink.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(Ink.LIMIT)
    axes.tick_params(colors=Ink.SOFT, labelsize=8.5)


def _style(axes: Axes, which: str, axis: Axis) -> None:
    scale: Any = axes.xaxis if which == "x" else axes.yaxis
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        low, high = scale.get_view_interval()
        shown = [tick for tick in axis.ticks if low <= tick <= high]
        scale.set_major_locator(FixedLocator(shown))
        scale.set_minor_locator(NullLocator())
    if axis.percent:
        scale.set_major_formatter(PercentFormatter(1.0))
    elif axis.metric is None:
        scale.set_major_locator(MaxNLocator(integer=True))
    else:
        scale.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
    scale.set_label_text(axis.title, fontsize=9.5, color=Ink.TEXT)


def _scatter(axes: Axes, summary: Summary, panel: Panel, title: str) -> None:
    _tidy(axes, title)
    front = {trial.number for trial in summary.front}
    behind = [t for t in summary.in_state(TrialState.COMPLETE) if t.number not in front]
    broken = summary.in_state(TrialState.INFEASIBLE)
    groups: list[tuple[str, Any, dict[str, Any]]] = [
        ("infeasible", broken, {"s": 20, "facecolors": "none", "edgecolors": Ink.INFEASIBLE, "linewidths": 0.9}),
        ("complete", behind, {"s": 24, "c": Ink.COMPLETE, "alpha": 0.75, "linewidths": 0}),
        (
            "best" if len(summary.spec.objectives) == 1 else "front",
            summary.front,
            {"s": 52, "c": Ink.FRONT, "edgecolors": "white", "linewidths": 1.1},
        ),
    ]
    for order, (name, trials, style) in enumerate(groups):
        measured = panel.measured(trials)
        if measured:
            points = [(panel.x.value(trial), panel.y.value(trial)) for trial in measured]
            axes.scatter(*zip(*points, strict=True), label=f"{name} ({len(measured)})", zorder=3 + order, **style)
    if panel.line:
        axes.plot(*zip(*panel.line, strict=True), color=Ink.FRONT, linewidth=1.3, zorder=2)
    _style(axes, "x", panel.x)
    _style(axes, "y", panel.y)
    for bound in panel.x.bounds:
        axes.axvline(bound, color=Ink.LIMIT, linestyle=":", linewidth=1.4)
    for bound in panel.y.bounds:
        axes.axhline(bound, color=Ink.LIMIT, linestyle=":", linewidth=1.4)
    axes.legend(fontsize=8, frameon=False, loc="best", labelcolor=Ink.SOFT)


def _apart(axes: Axes, summary: Summary, panel: Panel) -> None:
    """Draw what has a horizontal value alone into the strip below a panel."""
    rows: list[tuple[TrialState, str, dict[str, Any]]] = [
        (TrialState.INFEASIBLE, "o", {"facecolors": "none", "edgecolors": Ink.INFEASIBLE}),
        (TrialState.FAILED, "x", {"c": Ink.FAILED}),
    ]
    for level, (state, symbol, style) in enumerate(rows):
        trials = panel.half_measured(summary.in_state(state))
        axes.scatter(
            [panel.x.value(t) or 0.0 for t in trials],
            [level] * len(trials),
            s=16,
            marker=symbol,
            linewidths=0.9,
            **style,
        )
    axes.set_yticks(range(len(rows)), [state.value.lower() for state, _, _ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(color=Ink.GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(Ink.LIMIT)
    axes.tick_params(colors=Ink.SOFT, labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    _style(axes, "x", panel.x)
    for bound in panel.x.bounds:
        axes.axvline(bound, color=Ink.LIMIT, linestyle=":", linewidth=1.4)


def _panel(figure: Figure, place: SubplotSpec, summary: Summary, panel: Panel, title: str) -> None:
    if not panel.half_measured(summary.in_state(TrialState.INFEASIBLE, TrialState.FAILED)):
        _scatter(figure.add_subplot(place), summary, panel, title)
        return
    grid = place.subgridspec(2, 1, height_ratios=(8, 1), hspace=0.02)
    above = figure.add_subplot(grid[0])
    below = figure.add_subplot(grid[1], sharex=above)
    _scatter(above, summary, panel, title)
    _apart(below, summary, panel)
    above.tick_params(labelbottom=False)
    above.set_xlabel("")


def _hypervolume(axes: Axes, summary: Summary) -> None:
    _tidy(axes, "Hypervolume over trials")
    numbers = [entry.number for entry in summary.progress]
    shares = [entry.share for entry in summary.progress]
    axes.step(numbers, shares, where="post", color=Ink.FRONT, linewidth=1.6)
    axes.fill_between(numbers, shares, step="post", color=Ink.FRONT, alpha=0.08, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial", fontsize=9.5, color=Ink.TEXT)
    axes.set_ylabel("share of the reachable box", fontsize=9.5, color=Ink.TEXT)


def _unit(line: Dimension) -> list[float]:
    low, high = (line.ticks[0], line.ticks[-1]) if line.ticks else (min(line.values), max(line.values))
    return [0.5 if high == low else (value - low) / (high - low) for value in line.values]


def _parallel(axes: Axes, summary: Summary) -> None:
    lines = parallel(summary)
    first = summary.spec.objectives[0]
    heights = list(zip(*(_unit(line) for line in lines), strict=True))
    values = [trial.value(first.name) for trial in summary.in_state(TrialState.COMPLETE)]
    low, high = min(values), max(values)
    rank = [0.5 if high == low else (value - low) / (high - low) for value in values]
    goodness = rank if first.direction == "maximize" else [1 - value for value in rank]
    order = sorted(range(len(values)), key=lambda index: goodness[index])
    colours = LinearSegmentedColormap.from_list("goodness", list(zip((0, 0.5, 0.85, 1), _COLOURS, strict=True)))
    axes.add_collection(
        LineCollection(
            [list(enumerate(heights[index])) for index in order],
            colors=[colours(goodness[index]) for index in order],
            linewidths=[0.8 + 0.9 * goodness[index] for index in order],
            alpha=0.8,
        )
    )
    axes.set_xlim(-0.3, len(lines) - 0.7)
    axes.set_ylim(-0.06, 1.06)
    axes.set_title("Choices of the complete trials", loc="left", fontsize=11, fontweight="bold", pad=10)
    axes.set_xticks(range(len(lines)), [line.label for line in lines], fontsize=8.5, rotation=20, ha="right")
    axes.tick_params(colors=Ink.SOFT, length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for position, line in enumerate(lines):
        axes.axvline(position, color=Ink.LIMIT, linewidth=0.8, zorder=0)
        for height, text in _marks(line):
            axes.text(position + 0.03, height, text, fontsize=7.5, color=Ink.TEXT, va="center", bbox=box)


def _marks(line: Dimension) -> list[tuple[float, str]]:
    if line.ticks:
        low, high = line.ticks[0], line.ticks[-1]
        places = [(tick - low) / (high - low) if high > low else 0.5 for tick in line.ticks]
        return list(zip(places, line.texts, strict=True))
    low, high = min(line.values), max(line.values)
    texts = [show(value, line.unit) for value in (low, high)]
    return [(0.5, texts[0])] if low == high else [(0.0, texts[0]), (1.0, texts[1])]


def picture(summary: Summary) -> bytes:
    """Return the PNG; equal studies give equal bytes."""
    drawn = panels(summary) if summary.front else []
    choices = len(summary.in_state(TrialState.COMPLETE)) > 1
    columns = max(1, len(drawn)) + (len(drawn) == 1)
    rows = 1 + (len(drawn) > 1) + choices if drawn else 1
    figure = Figure(figsize=(5.6 * columns, 4.4 * rows + 0.5 if drawn else 2.2), dpi=_DPI)
    figure.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.14, w_pad=0.14, hspace=0.04))
    FigureCanvasAgg(figure)
    figure.patch.set_facecolor("white")
    figure.suptitle(summary.spec.name, x=0.01, ha="left", fontsize=15, fontweight="bold", color=Ink.TEXT)
    if not drawn:
        figure.text(0.012, 0.55, summary.message, fontsize=10, color=Ink.TEXT, wrap=True, va="top")
    else:
        grid = figure.add_gridspec(rows, columns)
        title = "Best so far" if len(summary.spec.objectives) == 1 else "Pareto front"
        for column, panel in enumerate(drawn):
            _panel(figure, grid[0, column], summary, panel, title)
        _hypervolume(figure.add_subplot(grid[0, 1] if len(drawn) == 1 else grid[1, :]), summary)
        if choices:
            _parallel(figure.add_subplot(grid[-1, :]), summary)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
