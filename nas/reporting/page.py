"""The page of a report: one HTML file that needs nothing else."""

import html
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from nas.reporting.figures import hypervolume_figure, parallel_figure, pareto_figure
from nas.reporting.panels import panels, show, why
from nas.reporting.summary import Summary
from nas.reporting.tables import metric_names
from trials import Trial, TrialState

__all__ = ["page"]

_MAX_ROWS = 200
_STYLE = """
:root { --text: #212529; --soft: #6c757d; --line: #dee2e6; --front: #d9480f; }
* { box-sizing: border-box; }
body { margin: 0; background: #f8f9fa; color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; font-size: 15px; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 28px; font-weight: 650; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 18px; font-weight: 650; margin: 0 0 2px; }
p { margin: 0 0 12px; color: var(--soft); max-width: 105ch; }
.facts { display: flex; flex-wrap: wrap; gap: 12px; margin: 22px 0; }
.fact { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px; min-width: 110px; }
.fact b { display: block; font-size: 21px; font-weight: 650; font-variant-numeric: tabular-nums; }
.fact span { color: var(--soft); font-size: 13px; }
section { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin: 0 0 18px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line);
  padding: 6px 14px 6px 0; white-space: nowrap; }
td { border-bottom: 1px solid #f1f3f5; padding: 7px 14px 7px 0; vertical-align: top; }
td.number { white-space: nowrap; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 12px; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); }
.notice { border-left: 4px solid var(--front); }
.notice p { color: var(--text); margin: 0; }
"""


def _figure(figure: go.Figure, name: str) -> str:
    config = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["lasso2d", "select2d"]}
    drawn: str = to_html(figure, config=config, include_plotlyjs=False, full_html=False, div_id=name)
    return f'<div class="wide">{drawn}</div>'


def _section(title: str, note: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(note).replace(' %', '&nbsp;%')}</p>{body}</section>"


def _fact(value: str, label: str) -> str:
    return f'<div class="fact"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'


def _facts(summary: Summary) -> str:
    facts = [_fact(f"{len(summary.trials):,}", "trials")]
    for state in (TrialState.COMPLETE, TrialState.INFEASIBLE, TrialState.FAILED, TrialState.RUNNING):
        count = len(summary.in_state(state))
        if count or state is TrialState.COMPLETE:
            facts.append(_fact(f"{count:,}", state.value.lower()))
    if summary.front:
        if len(summary.spec.objectives) > 1:
            facts.append(_fact(f"{len(summary.front):,}", "on the front"))
        for metric in summary.spec.objectives:
            values = [trial.value(metric.name) for trial in summary.front]
            best = min(values) if metric.direction == "minimize" else max(values)
            word = "lowest" if metric.direction == "minimize" else "highest"
            facts.append(_fact(show(best, metric.unit), f"{word} {metric.name}"))
        if len(summary.spec.objectives) > 1:
            facts.append(_fact(f"{summary.progress[-1].share:.1%}", "hypervolume"))
    return f'<div class="facts">{"".join(facts)}</div>'


def _rows(cells: Iterable[Sequence[str]]) -> str:
    return "".join("<tr>" + "".join(row) + "</tr>" for row in cells)


def _front_table(summary: Summary) -> str:
    names = metric_names(summary)
    header = "".join(f"<th>{html.escape(name)}</th>" for name in ("trial", *names, "architecture"))

    def cells(trial: Trial) -> list[str]:
        found = (trial.measurements.get(name) for name in names)
        numbers = ["-" if item is None else show(item.value, item.unit) for item in found]
        architecture = html.escape(json.dumps(dict(trial.architecture)))
        return [
            f'<td class="number">{trial.number}</td>',
            *(f'<td class="number">{html.escape(number)}</td>' for number in numbers),
            f"<td><code>{architecture}</code></td>",
        ]

    body = _rows(cells(trial) for trial in summary.front)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _others(summary: Summary) -> str:
    others = summary.in_state(TrialState.FAILED, TrialState.INFEASIBLE, TrialState.RUNNING)
    if not others:
        return ""
    shown = sorted(others, key=lambda trial: (trial.state is not TrialState.FAILED, trial.number))[:_MAX_ROWS]
    body = _rows(
        [
            f'<td class="number">{trial.number}</td>',
            f'<td class="number">{trial.state.value}</td>',
            f"<td>{html.escape(why(summary.spec, trial))}</td>",
        ]
        for trial in shown
    )
    rest = f"The first {len(shown)} of {len(others)}; all are in trials.csv." if len(others) > len(shown) else ""
    table = f"<table><thead><tr><th>trial</th><th>state</th><th>why</th></tr></thead><tbody>{body}</tbody></table>"
    return (
        f"<section><details><summary>{len(others):,} trials that are not complete</summary>"
        f"<p>{rest}</p>{table}</details></section>"
    )


def _heading(summary: Summary) -> str:
    spec = summary.spec
    sought = ", ".join(f"{metric.direction} {metric.name}" for metric in spec.objectives)
    limits = ", ".join(f"{limit.key} = {limit.bound:g}" for limit in spec.limits)
    times = [trial.finished for trial in summary.trials if trial.finished is not None]
    last = f" Last trial finished {datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC." if times else ""
    said = f"{sought[0].upper()}{sought[1:]}." + (f" Limits: {limits}." if limits else "") + last
    return f"<h1>{html.escape(spec.name)}</h1><p>{html.escape(said)}</p>"


def _sections(summary: Summary) -> list[str]:
    names = [metric.name for metric in summary.spec.objectives]
    single = len(names) == 1
    columns = panels(summary)
    edge = "The line is the best value so far." if single else "Orange trials are on the front: nothing beats them."
    paired = " One panel per pair; the front is that of all objectives together." if len(columns) > 1 else ""
    found = [
        _section(
            "Best so far" if single else "Pareto front",
            f"{edge}{paired} Point at a trial for its architecture and everything that was measured. Hollow grey "
            "circles broke a limit; what was never fully measured stands below. Dotted lines are limits.",
            _figure(pareto_figure(summary), "pareto"),
        ),
        _section(
            "Hypervolume",
            "Dominated after each trial, as a share of the box between the best value of every objective and the "
            f"reference point ({_corner(summary)}). The reference is one point for the whole curve.",
            _figure(hypervolume_figure(summary), "hypervolume"),
        ),
    ]
    if len(summary.in_state(TrialState.COMPLETE)) > 1:
        found.append(
            _section(
                "Choices",
                f"One line per complete trial, coloured by {names[0]} (orange is best). Drag along an axis to keep a "
                "part of it. A dash is a choice that the architecture does not have.",
                _figure(parallel_figure(summary), "choices"),
            )
        )
    found.append(
        _section(
            "The front" if not single else "The best trial",
            "Best first. The same is in front.csv and front.json.",
            _front_table(summary),
        )
    )
    return found


def _corner(summary: Summary) -> str:
    pairs = zip(summary.spec.objectives, summary.reference or (), strict=True)
    return ", ".join(f"{metric.name} {show(value, metric.unit)}" for metric, value in pairs)


def page(summary: Summary) -> str:
    """Return the page; equal studies give equal text."""
    if summary.front:
        body = "".join(_sections(summary))
        script = f"<script>{get_plotlyjs()}</script>"
    else:
        body = f'<section class="notice"><p>{html.escape(summary.message)}</p></section>'
        script = ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(summary.spec.name)}</title><style>{_STYLE}</style>{script}</head><body><main>"
        f"{_heading(summary)}{_facts(summary)}{body}{_others(summary)}</main></body></html>\n"
    )
