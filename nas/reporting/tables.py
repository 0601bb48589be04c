"""Reports for programs: CSV and JSON with exact values."""

import csv
import io
import json
from collections.abc import Iterable, Sequence

from nas.reporting.summary import Summary
from trials import Trial

__all__ = ["front_json", "hypervolume_csv", "metric_names", "trials_csv"]

_FORMAT_VERSION = 1


def metric_names(summary: Summary) -> list[str]:
    """Return every measured name: objectives first, in their order, then the others by name."""
    objectives = [metric.name for metric in summary.spec.objectives]
    measured = {name for trial in summary.trials for name in trial.measurements}
    return [*objectives, *sorted(measured.difference(objectives))]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def trials_csv(summary: Summary, trials: Sequence[Trial]) -> str:
    """Return one row per trial.

    Columns: ``number, state, arch_id``, one ``arch/<choice>`` per choice of the study and one ``metric/<name>`` per
    measurement (empty where absent), ``seed``, ``started`` and ``finished`` (seconds since the epoch), ``attempt``,
    ``worker``, ``provenance`` (JSON) and ``error``. Numbers read back exactly.
    """
    choices, metrics = list(summary.spec.choices), metric_names(summary)
    header = [
        *("number", "state", "arch_id"),
        *(f"arch/{name}" for name in choices),
        *(f"metric/{name}" for name in metrics),
        *("seed", "started", "finished", "attempt", "worker", "provenance", "error"),
    ]
    rows = (
        [
            *(trial.number, trial.state.value, trial.arch_id),
            *(trial.architecture.get(name, "") for name in choices),
            *(trial.measurements[name].value if name in trial.measurements else "" for name in metrics),
            *(trial.seed, trial.started, "" if trial.finished is None else trial.finished),
            *(trial.attempt, trial.worker, json.dumps(dict(trial.provenance), sort_keys=True), trial.error or ""),
        ]
        for trial in trials
    )
    return _csv(header, rows)


def front_json(summary: Summary) -> str:
    """Return the question of the study and its front: architectures, measurements with units, seeds, provenance."""
    spec = summary.spec
    return (
        json.dumps(
            {
                "format_version": _FORMAT_VERSION,
                "study": spec.name,
                "space_digest": spec.space_digest,
                "objectives": [metric.to_dict() for metric in spec.objectives],
                "limits": {limit.key: limit.bound for limit in spec.limits},
                "reference": None if summary.reference is None else list(summary.reference),
                "hypervolume": summary.progress[-1].hypervolume if summary.progress else 0.0,
                "front": [
                    {
                        "number": trial.number,
                        "arch_id": trial.arch_id,
                        "architecture": dict(trial.architecture),
                        "measurements": {name: item.to_dict() for name, item in sorted(trial.measurements.items())},
                        "seed": trial.seed,
                        "provenance": dict(sorted(trial.provenance.items())),
                    }
                    for trial in summary.front
                ],
            },
            indent=2,
            allow_nan=False,
        )
        + "\n"
    )


def hypervolume_csv(summary: Summary) -> str:
    """Return ``number, hypervolume, share`` for each finished trial from the first COMPLETE one on."""
    rows = ((entry.number, entry.hypervolume, entry.share) for entry in summary.progress)
    return _csv(("number", "hypervolume", "share"), rows)
