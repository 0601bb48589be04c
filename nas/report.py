"""Write what studies found into a folder: pages, a picture and tables."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.importance import choice_importance
from nas.reporting import Findings, summarise
from nas.reporting.comparison import compare, comparison_json, comparison_page
from nas.reporting.page import page
from nas.reporting.picture import picture
from nas.reporting.tables import front_json, hypervolume_csv, trials_csv
from trials import StudySpec, Trial

__all__ = ["write_comparison", "write_report"]


def write_report(
    spec: StudySpec, trials: Sequence[Trial], folder: str | Path, findings: Findings | None = None
) -> Mapping[str, Path]:
    """Write the report of a study; a reader sees each file whole or not at all, and older ones are replaced.

    - ``pareto.html``: self-contained page: the front, the hypervolume over the trials, the choices, the ``findings``;
    - ``pareto.png``: the first of these figures;
    - ``front.csv``, ``trials.csv``: one row per trial, columns as in :func:`nas.reporting.tables.trials_csv`;
    - ``front.json``: the front with units and provenance;
    - ``hypervolume.csv``: see :func:`nas.reporting.summarise` for the reference point.

    A study without a COMPLETE trial gives the same files; page and picture then say what is missing and why
    (:attr:`nas.reporting.Summary.message`). Equal studies give equal files.

    Args:
        spec: the question.
        trials: all trials of the study, in any order.
        folder: created when missing.
        findings: what the trials alone do not say, see :func:`nas.findings.find`.

    Returns:
        File name -> path, in the order above.

    Raises:
        OSError: the folder cannot be written; nothing has been replaced.
    """
    folder = Path(folder)
    summary = summarise(spec, trials)
    contents: dict[str, str | bytes] = {
        "pareto.html": page(summary, findings),
        "pareto.png": picture(summary),
        "front.csv": trials_csv(summary, summary.front),
        "trials.csv": trials_csv(summary, summary.trials),
        "front.json": front_json(summary),
        "hypervolume.csv": hypervolume_csv(summary),
    }
    return _write(contents, folder)


def write_comparison(
    first: tuple[StudySpec, Sequence[Trial]], second: tuple[StudySpec, Sequence[Trial]], folder: str | Path
) -> Mapping[str, Path]:
    """Write ``compare.html`` and ``compare.json`` about two studies of the same objectives, all or nothing.

    Args:
        first: specification and trials of a study.
        second: the same of another.
        folder: created when missing.

    Returns:
        File name -> path.

    Raises:
        ValueError: they optimise different things, or one has no COMPLETE trial.
        OSError: the folder cannot be written; nothing has been replaced.
    """
    comparison = compare(summarise(*first), summarise(*second))
    importance = [
        {m.name: shares for m in spec.objectives if (shares := choice_importance(spec, trials, m.name))}
        for spec, trials in (first, second)
    ]
    contents: dict[str, str | bytes] = {
        "compare.html": comparison_page(comparison, importance),
        "compare.json": comparison_json(comparison),
    }
    return _write(contents, Path(folder))


def _write(contents: Mapping[str, str | bytes], folder: Path) -> Mapping[str, Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=".report-"))
    except OSError as error:
        raise type(error)(
            error.errno, f"report folder must be writable ({error.strerror}); give another with --out", str(folder)
        ) from error
    try:
        for name, content in contents.items():
            (staging / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for name in contents:
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return {name: folder / name for name in contents}
