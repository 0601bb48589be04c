"""The description of a search in MLflow: what a person wants to see before opening anything."""

from collections.abc import Sequence

from nas.reporting import Summary
from nas.reporting.panels import show
from trials import Trial

__all__ = ["search_note"]

_ROWS = 10


def search_note(summary: Summary, run_id: str, commands: Sequence[tuple[str, str]]) -> str:
    """Return Markdown: the Pareto chart, the front, and what to do next.

    Args:
        summary: of the study.
        run_id: the run that holds the report below ``report``.
        commands: what a person may want to do next, and the command for it.
    """
    spec = summary.spec
    goals = ", ".join(f"{metric.direction} {metric.name}" for metric in spec.objectives)
    limits = ", ".join(f"{limit.key} = {limit.bound:g}" for limit in spec.limits)
    lines = [f"Search **{spec.name}**: {goals}." + (f" Limits: {limits}." if limits else "")]
    if summary.front:
        ends = summary.front if len(summary.front) == 1 else (summary.front[0], summary.front[-1])
        lines += [
            f"{len(summary.trials):,} trials, {len(summary.front):,} on the front: "
            + " ... ".join(_described(summary, trial) for trial in ends),
            f"![Pareto front, hypervolume and choices](get-artifact?path=report%2Fpareto.png&run_uuid={run_id})",
            _table(summary, _shown(summary.front)),
            "`report/pareto.html` under *Artifacts* is the same with everything that was measured, the layers of each "
            "architecture and the importance of each choice.",
        ]
    else:
        lines.append(summary.message)
    lines += [f"{what[0].upper()}{what[1:]}:\n```\n{command}\n```" for what, command in commands]
    return "\n\n".join(lines)


def _described(summary: Summary, trial: Trial) -> str:
    return ", ".join(f"**{show(trial.value(m.name), m.unit)}** {m.name}" for m in summary.spec.objectives)


def _shown(front: Sequence[Trial]) -> list[Trial]:
    if len(front) <= _ROWS:
        return list(front)
    step = (len(front) - 1) / (_ROWS - 1)
    return [front[round(index * step)] for index in range(_ROWS)]


def _table(summary: Summary, trials: Sequence[Trial]) -> str:
    metrics = summary.spec.objectives
    rows = [
        f"| {trial.number} | `{trial.arch_id}` | "
        + " | ".join(show(trial.value(metric.name), metric.unit) for metric in metrics)
        + " |"
        for trial in trials
    ]
    omitted = "" if len(trials) == len(summary.front) else f"\n\n{len(trials)} of {len(summary.front)} on the front."
    head = f"| trial | architecture | {' | '.join(metric.name for metric in metrics)} |"
    return "\n".join([head, "|---" * (2 + len(metrics)) + "|", *rows]) + omitted
