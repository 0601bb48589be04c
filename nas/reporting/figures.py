"""The figures of the page, in plotly."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nas.reporting.panels import Axis, Ink, Panel, brief, panels, parallel, show, why
from nas.reporting.summary import Summary
from trials import Trial, TrialState

__all__ = ["hypervolume_figure", "parallel_figure", "pareto_figure"]

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif", "size": 13}
_STRIP = 0.1


def _hover(summary: Summary, trial: Trial) -> str:
    """Return everything about a trial as the text of its tooltip."""
    lines = [f"<b>trial {trial.number}</b> · {trial.state.value} · {trial.arch_id}"]
    if trial.state is not TrialState.COMPLETE:
        lines.append(_escape(why(summary.spec, trial))[:160])
    objectives = [m.name for m in summary.spec.objectives if m.name in trial.measurements]
    for name in [*objectives, *sorted(trial.measurements.keys() - set(objectives))]:
        item = trial.measurements[name]
        lines.append(f"{_escape(name)}: <b>{_escape(show(item.value, item.unit))}</b>")
    chosen = [f"{_escape(name)}={_escape(str(value))}" for name, value in trial.architecture.items()]
    lines.append("")
    lines.extend(", ".join(chosen[start : start + 4]) for start in range(0, len(chosen), 4))
    return "<br>".join(lines)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _layout(height: int, **more: object) -> dict[str, object]:
    return {
        "height": height,
        "template": "none",
        "font": {**_FONT, "color": Ink.TEXT.value},
        "margin": {"l": 78, "r": 24, "t": 44, "b": 58},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"align": "left", "bgcolor": "white", "bordercolor": Ink.LIMIT.value, "font": _FONT},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": Ink.LIMIT.value, "activecolor": Ink.SOFT.value},
        "legend": {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"},
        **more,
    }


def _axis_style(axis: Axis) -> dict[str, object]:
    return {
        "title": {"text": _escape(axis.title), "standoff": 10},
        "type": "log" if axis.log else "linear",
        "tickformat": ".1%" if axis.percent else "",
        **({"tickvals": axis.ticks, "ticktext": [brief(tick) for tick in axis.ticks]} if axis.log else {}),
        "gridcolor": Ink.GRID.value,
        "linecolor": Ink.LIMIT.value,
        "ticks": "outside",
        "tickcolor": Ink.LIMIT.value,
        "ticklen": 4,
        "showline": True,
        "zeroline": False,
    }


def _group(summary: Summary, trials: Sequence[Trial], panel: Panel, **style: object) -> go.Scatter:
    return go.Scatter(
        x=[panel.x.value(trial) for trial in trials],
        y=[panel.y.value(trial) for trial in trials],
        mode="markers",
        customdata=[_hover(summary, trial) for trial in trials],
        hovertemplate="%{customdata}<extra></extra>",
        **style,
    )


def _strip(summary: Summary, trials: Sequence[Trial], panel: Panel, **style: object) -> go.Scatter:
    return go.Scatter(
        x=[panel.x.value(trial) for trial in trials],
        y=[trial.state.value.lower() for trial in trials],
        mode="markers",
        customdata=[_hover(summary, trial) for trial in trials],
        hovertemplate="%{customdata}<extra></extra>",
        **style,
    )


def pareto_figure(summary: Summary) -> go.Figure:
    """Return one column per panel: the trials, the front and its edge, and below it what was never fully measured."""
    drawn = panels(summary)
    apart = summary.in_state(TrialState.INFEASIBLE, TrialState.FAILED)
    strip = any(panel.half_measured(apart) for panel in drawn)
    figure = make_subplots(
        rows=2 if strip else 1,
        cols=len(drawn),
        shared_xaxes="columns",
        row_heights=[1 - _STRIP, _STRIP] if strip else [1],
        vertical_spacing=0.03,
        horizontal_spacing=0.24 / len(drawn) if len(drawn) > 1 else 0,
    )
    front_numbers = {trial.number for trial in summary.front}
    behind = [t for t in summary.in_state(TrialState.COMPLETE) if t.number not in front_numbers]
    grey, black = Ink.INFEASIBLE.value, Ink.FAILED.value
    cross = {TrialState.INFEASIBLE: ("circle-open", grey), TrialState.FAILED: ("x-thin", black)}
    for column, panel in enumerate(drawn, start=1):
        named = {"showlegend": column == 1}
        if panel.line:
            corners = list(zip(*panel.line, strict=True))
            edge = {"color": Ink.FRONT.value, "width": 1.6}
            figure.add_trace(
                go.Scatter(x=corners[0], y=corners[1], mode="lines", line=edge, hoverinfo="skip", showlegend=False),
                row=1,
                col=column,
            )
        groups = [
            ("complete", behind, {"color": Ink.COMPLETE.value, "size": 8, "opacity": 0.75}),
            (
                "infeasible",
                summary.in_state(TrialState.INFEASIBLE),
                {"color": grey, "size": 7, "symbol": "circle-open"},
            ),
            (
                "best" if len(summary.spec.objectives) == 1 else "front",
                summary.front,
                {"color": Ink.FRONT.value, "size": 11, "line": {"color": "white", "width": 1.5}},
            ),
        ]
        for name, trials, marker in groups:
            measured = panel.measured(trials)
            if measured:
                style = {"name": name, "legendgroup": name, "marker": marker, **named}
                figure.add_trace(_group(summary, measured, panel, **style), row=1, col=column)
        figure.update_xaxes(_axis_style(panel.x), row=1, col=column)
        figure.update_yaxes(_axis_style(panel.y), row=1, col=column)
        dotted = {"line": {"color": Ink.LIMIT.value, "dash": "dot", "width": 1.5}, "row": 1, "col": column}
        for bound in panel.x.bounds:
            figure.add_vline(x=bound, **dotted)
        for bound in panel.y.bounds:
            figure.add_hline(y=bound, **dotted)
        figure.update_xaxes(showticklabels=True, row=1, col=column)
        if panel.half_measured(apart):
            for state, (symbol, colour) in cross.items():
                found = [trial for trial in panel.half_measured(apart) if trial.state is state]
                if found:
                    marker = {"symbol": symbol, "color": colour, "size": 7, "line": {"width": 1.2, "color": colour}}
                    style = {"name": state.value.lower(), "marker": marker, "showlegend": False}
                    figure.add_trace(_strip(summary, found, panel, **style), row=2, col=column)
            figure.update_xaxes(showticklabels=False, title=None, row=1, col=column)
            figure.update_xaxes(_axis_style(panel.x), row=2, col=column)
            figure.update_yaxes(gridcolor=Ink.GRID.value, tickfont={"size": 11}, row=2, col=column)
    figure.update_layout(_layout(520))
    return figure


def hypervolume_figure(summary: Summary) -> go.Figure:
    """Return the share of the hypervolume over the trials, as steps."""
    figure = go.Figure(
        go.Scatter(
            x=[entry.number for entry in summary.progress],
            y=[entry.share for entry in summary.progress],
            customdata=[entry.hypervolume for entry in summary.progress],
            mode="lines",
            line={"shape": "hv", "color": Ink.FRONT.value, "width": 2},
            fill="tozeroy",
            fillcolor="rgba(217, 72, 15, 0.08)",
            hovertemplate="after trial %{x}: %{y:.2%}<br>hypervolume %{customdata:.6g}<extra></extra>",
        )
    )
    style = _axis_style(Axis(None))
    figure.update_xaxes(style)
    figure.update_yaxes({**style, "title": {"text": "hypervolume", "standoff": 10}, "tickformat": ".0%"})
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(_layout(300, showlegend=False))
    return figure


def parallel_figure(summary: Summary) -> go.Figure:
    """Return the parallel coordinates of all COMPLETE trials, coloured by the first objective."""
    dimensions = []
    for line in parallel(summary):
        dimension: dict[str, object] = {"label": line.label, "values": list(line.values)}
        if line.ticks:
            low, high = line.ticks[0], line.ticks[-1]
            dimension |= {"tickvals": list(line.ticks), "ticktext": list(line.texts), "range": [low, high + 1e-9]}
        else:
            low, high = min(line.values), max(line.values)
            ticks = [low + (high - low) * part / 4 for part in range(5)] if high > low else [low]
            dimension |= {"tickvals": ticks, "ticktext": [show(tick, line.unit) for tick in ticks]}
        dimensions.append(dimension)
    first = summary.spec.objectives[0]
    colours = [[0, "#d5deea"], [0.5, "#7f9fc4"], [0.85, "#3b5f8f"], [1, Ink.FRONT.value]]
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            labelangle=-25 if len(dimensions) > 6 else 0,
            labelside="top",
            line={
                "color": [trial.value(first.name) for trial in summary.in_state(TrialState.COMPLETE)],
                "colorscale": colours,
                "reversescale": first.direction == "minimize",
            },
        )
    )
    wide = {"width": 84 * len(dimensions)} if len(dimensions) > 13 else {}
    figure.update_layout(_layout(420, margin={"l": 70, "r": 60, "t": 96, "b": 30}, **wide))
    return figure
