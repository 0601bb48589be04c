"""``kill -9`` at each of the eight steps of a trial, on a journal, SQLite and PostgreSQL: nothing lost or left behind.

One study for each storage. The search and the process that mirrors it to MLflow are killed at a step of a trial, and
the study is continued with the next step as target, until all eight have had their turn; a last run completes it. Every
evaluation leaves a line in a log of its own, so one done twice is seen even if the study hid it.
"""

import collections
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import Result
from benchmarks._crashing import STEPS, attempt, create
from benchmarks._postgres import postgres
from benchmarks._searching import EXPERIMENT, STUDY, tracking
from trials import TrialState, TrialStore
from trials.tracking import Tracker

TRIALS = 30


@contextlib.contextmanager
def address(kind: str, folder: Path) -> Iterator[str]:
    """Yield the address of an empty storage."""
    if kind == "postgresql":
        with postgres() as url:
            yield url
    else:
        yield str(folder / "studies.journal") if kind == "journal" else f"sqlite:///{folder}/studies.db"


def survive(kind: str) -> dict[str, object]:
    """Kill at every step and count what is left in the end."""
    folder = Path(tempfile.mkdtemp())
    try:
        with address(kind, folder) as url:
            create(url, folder)
            died = [step for step in STEPS if attempt(url, folder, TRIALS, step=step)]
            attempt(url, folder, TRIALS)
            store = TrialStore.load(url, STUDY, runs=folder / "runs")
            trials = store.trials()
            files = len(store.outcomes.numbers())
            del store
        complete = [trial.arch_id for trial in trials if trial.state is TrialState.COMPLETE]
        times = collections.Counter(line.split()[0] for line in (folder / "evaluated.log").read_text().splitlines())
        children = Tracker(tracking(folder), EXPERIMENT).runs(tags={"nas.kind": "trial"})
        shown = collections.Counter(run.status for run in children)
        finished = {run.tags["nas.arch_id"] for run in children if run.status == "FINISHED"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "storage": kind,
        "killed at": f"{len(died)} of {len(STEPS)} steps",
        "complete": len(complete),
        "distinct": len(set(complete)),
        "FINISHED in MLflow": shown["FINISHED"],
        "the same": finished == set(complete) and shown["FINISHED"] == len(finished),
        "RUNNING left": shown["RUNNING"] + sum(not trial.state.finished for trial in trials),
        "outcome files left": files,
        "lost": len(set(times) - set(complete)),
        "evaluated again": sum(count - 1 for count in times.values()),
        "most often": max(times.values()),
    }


def run(quick: bool = False) -> Result:
    """All three storages; ``quick`` the journal only."""
    rows = [survive(kind) for kind in (("journal",) if quick else ("journal", "sqlite", "postgresql"))]
    passed = all(
        row["killed at"] == f"{len(STEPS)} of {len(STEPS)} steps"
        and row["complete"] == row["distinct"] == row["FINISHED in MLflow"] == TRIALS
        and row["the same"]
        and not (row["RUNNING left"] or row["outcome files left"] or row["lost"])
        and int(str(row["most often"])) <= 2
        for row in rows
    )
    kills = len(STEPS) * len(rows)
    most = max(int(str(row["most often"])) for row in rows)
    return Result(
        tuple(rows),
        f"after {kills} kills: complete trials, finished runs in MLflow and evaluated architectures "
        f"{'agree' if passed else 'do NOT agree'}, {most} evaluations of one architecture "
        "at most (asked: agree, at most 2)",
        passed,
    )
