"""The page of a report: one HTML file that needs nothing else, neither a network nor a library."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from nas.reporting.agreement import agreement_figure, agreements
from nas.reporting.confidence import believed, confidence_figure
from nas.reporting.figures import hypervolume_figure, importance_figure, parallel_figure, pareto_figure
from nas.reporting.findings import Findings
from nas.reporting.panels import panels, show, why
from nas.reporting.portrait import portrait_figure
from nas.reporting.summary import Summary
from nas.reporting.tables import metric_names
from trials import Trial, TrialState

__all__ = ["document", "fact", "page", "section", "tip"]

_MAX_ROWS = 200


def section(title: str, note: str, body: str) -> str:
    """Return a titled box: ``note`` is text, ``body`` is HTML."""
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(note).replace(' %', '&nbsp;%')}</p>{body}</section>"


def fact(value: str, label: str) -> str:
    """Return a number with what it counts."""
    return f'<div class="fact"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'


def document(title: str, body: str, tips: Mapping[str, str]) -> str:
    """Return a whole page.

    Args:
        title: of the window.
        body: HTML.
        tips: what is said of a trial when it is pointed at, by its ``data-trial``.
    """
    assets = files("nas.reporting") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    spoken = json.dumps(tips).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body><main>{body}</main>"
        f'<div id="tip"></div><script type="application/json" id="trials">{spoken}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def tip(summary: Summary, trial: Trial) -> str:
    """Return everything about a trial, line by line."""
    lines = [f"trial {trial.number} · {trial.state.value} · {trial.arch_id}"]
    if trial.state is not TrialState.COMPLETE:
        lines.append(why(summary.spec, trial)[:160])
    objectives = [m.name for m in summary.spec.objectives if m.name in trial.measurements]
    for name in [*objectives, *sorted(trial.measurements.keys() - set(objectives))]:
        item = trial.measurements[name]
        lines.append(f"{name}: {show(item.value, item.unit)}")
    chosen = [f"{name}={value}" for name, value in trial.architecture.items()]
    lines.append("")
    lines.extend(", ".join(chosen[start : start + 4]) for start in range(0, len(chosen), 4))
    return "\n".join(lines)


def _facts(summary: Summary) -> str:
    facts = [fact(f"{len(summary.trials):,}", "trials")]
    for state in (TrialState.COMPLETE, TrialState.INFEASIBLE, TrialState.FAILED, TrialState.RUNNING):
        count = len(summary.in_state(state))
        if count or state is TrialState.COMPLETE:
            facts.append(fact(f"{count:,}", state.value.lower()))
    if summary.front:
        if len(summary.spec.objectives) > 1:
            facts.append(fact(f"{len(summary.front):,}", "on the front"))
        for metric in summary.spec.objectives:
            values = [trial.value(metric.name) for trial in summary.front]
            best = min(values) if metric.direction == "minimize" else max(values)
            word = "lowest" if metric.direction == "minimize" else "highest"
            facts.append(fact(show(best, metric.unit), f"{word} {metric.name}"))
        if len(summary.spec.objectives) > 1:
            facts.append(fact(f"{summary.progress[-1].share:.1%}", "hypervolume"))
    return f'<div class="facts">{"".join(facts)}</div>'


def _front_table(summary: Summary) -> str:
    names = metric_names(summary)
    header = "".join(f"<th>{html.escape(name)}</th>" for name in ("trial", *names, "architecture"))

    def row(trial: Trial) -> str:
        found = (trial.measurements.get(name) for name in names)
        numbers = ["-" if item is None else show(item.value, item.unit) for item in found]
        cells = "".join(f'<td class="number">{html.escape(text)}</td>' for text in (str(trial.number), *numbers))
        architecture = html.escape(json.dumps(dict(trial.architecture)))
        return f'<tr data-trial="{trial.number}">{cells}<td><code>{architecture}</code></td></tr>'

    body = "".join(row(trial) for trial in summary.front)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _others(summary: Summary) -> str:
    others = summary.in_state(TrialState.FAILED, TrialState.INFEASIBLE, TrialState.RUNNING)
    if not others:
        return ""
    shown = sorted(others, key=lambda trial: (trial.state is not TrialState.FAILED, trial.number))[:_MAX_ROWS]
    body = "".join(
        f'<tr><td class="number">{trial.number}</td><td class="number">{trial.state.value}</td>'
        f"<td>{html.escape(why(summary.spec, trial))}</td></tr>"
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


def _sections(summary: Summary, findings: Findings) -> Iterable[str]:
    names = [metric.name for metric in summary.spec.objectives]
    single = len(names) == 1
    columns = panels(summary)
    edge = "The line is the best value so far." if single else "Orange trials are on the front: nothing beats them."
    paired = " One panel per pair; the front is that of all objectives together." if len(columns) > 1 else ""
    yield section(
        "Best so far" if single else "Pareto front",
        f"{edge}{paired} Point at a trial for its architecture and everything that was measured; every other figure "
        "then shows it too. Hollow circles broke a limit; what was never fully measured stands below. Dotted lines are "
        "limits.",
        pareto_figure(summary),
    )
    yield section(
        "Hypervolume",
        "Dominated after each trial, as a share of the box between the best value of every objective and the "
        f"reference point ({_corner(summary)}). The reference is one point for the whole curve.",
        hypervolume_figure(summary),
    )
    if len(summary.in_state(TrialState.COMPLETE)) > 1:
        yield section(
            "Choices",
            f"One line per complete trial, coloured by {names[0]} (orange is best). Drag along an axis to keep a "
            "part of it, click it to keep all again. A dash is a choice that the architecture does not have.",
            parallel_figure(summary),
        )
    for pair in agreements(summary):
        yield section(
            f"{pair.x.name} against {pair.y.name}",
            f"Both were measured on {len(pair.points):,} trials. Kendall's tau {pair.tau:.2f}, Spearman's rho "
            f"{pair.rho:.2f}: 1 ranks the trials alike, 0 tells nothing. The dashed line is where both are equal.",
            agreement_figure(pair),
        )
    trusted = believed(summary)
    if trusted is not None:
        yield section(
            "Confidence",
            "How far the stated probabilities are from how often the networks are right, before and after dividing "
            "their logits by the temperature of each. Right: the decisions of the most accurate trial on the front, "
            "grouped by confidence; on the dashed line confidence is deserved, below it the network is too sure of "
            "itself. Larger dots are more decisions.",
            confidence_figure(trusted),
        )
    if findings.importance:
        yield section(
            "Importance of the choices",
            "How much of the variance of each objective a choice explains by itself (fANOVA over the complete trials; "
            "what is missing to 100 % is the effect of choices together). Read it as a hint: a search does not try "
            "everything equally often.",
            importance_figure(findings.importance),
        )
    if findings.anatomy is not None and findings.anatomy.trials:
        yield section(
            "Architectures",
            "The layers of a trial inside those of the largest architecture (dashed), from input to output; higher is "
            "wider. Below: what each layer costs. Choose a trial here, or click one on the front.",
            portrait_figure(findings.anatomy),
        )
    yield section(
        "The best trial" if single else "The front",
        "Best first. The same is in front.csv and front.json.",
        _front_table(summary),
    )


def _corner(summary: Summary) -> str:
    pairs = zip(summary.spec.objectives, summary.reference or (), strict=True)
    return ", ".join(f"{metric.name} {show(value, metric.unit)}" for metric, value in pairs)


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    rows = "".join(
        f'<div class="command"><span>{html.escape(what)}</span><code>{html.escape(command)}</code>'
        '<button type="button" data-copy>copy</button></div>'
        for what, command in commands
    )
    return section("Continue with", "", rows) if rows else ""


def page(summary: Summary, findings: Findings | None = None) -> str:
    """Return the page; equal studies and findings give equal text.

    Args:
        summary: of the study.
        findings: what its trials alone do not say.
    """
    findings = Findings() if findings is None else findings
    if summary.front:
        body = "".join(_sections(summary, findings))
    else:
        body = f'<section class="notice"><p>{html.escape(summary.message)}</p></section>'
    whole = f"{_heading(summary)}{_facts(summary)}{body}{_commands(findings.commands)}{_others(summary)}"
    drawn = summary.trials if summary.front else ()
    return document(summary.spec.name, whole, {str(trial.number): tip(summary, trial) for trial in drawn})
