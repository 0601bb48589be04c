"""``kill -9`` at random moments of a search, then the same command: nothing lost, doubled or left running.

A search of 60 trials of 50 ms with tracking on is killed at a random moment, 20 times, and started again each time,
then run to its end. Every evaluation leaves a line in a log of its own, so an evaluation done twice would be seen even
if the study hid it.
"""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import Result
from benchmarks._searching import EXPERIMENT, STUDY, tracking
from trials import TrialState, TrialStore
from trials.tracking import Tracker

PAUSE = 0.05


def start(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    """Start the search as a user would, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks._searching", str(folder), str(trials), str(PAUSE)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def evaluated(folder: Path) -> list[str]:
    """Architectures in the order in which their evaluations ended."""
    log = folder / "evaluated.log"
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def kill_somewhere(folder: Path, trials: int, chance: random.Random) -> None:
    """Start the search, wait until it evaluates, and kill it a moment later."""
    before = len(evaluated(folder))
    process = start(folder, trials)
    while process.poll() is None and len(evaluated(folder)) == before:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 3 * PAUSE))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def run(quick: bool = False) -> Result:
    """20 kills; ``quick`` 4."""
    kills, trials = (4, 30) if quick else (20, 120)
    chance = random.Random(0)
    folder = Path(tempfile.mkdtemp())
    try:
        for _ in range(kills):
            kill_somewhere(folder, trials, chance)
        if start(folder, trials).wait() != 0:
            raise RuntimeError(f"the last run failed; see {folder}/mirror.log")
        store = TrialStore.load(str(folder / "studies.journal"), STUDY, runs=folder / "runs")
        found = store.trials()
        store.close()
        complete = [trial.arch_id for trial in found if trial.state is TrialState.COMPLETE]
        times = collections.Counter(evaluated(folder))
        lost = [arch_id for arch_id in times if arch_id not in complete]
        twice = sum(count - 1 for count in times.values())
        doubled = len(complete) - len(set(complete))
        tracker = Tracker(tracking(folder), EXPERIMENT)
        parents, children = (tracker.runs(tags={"nas.kind": kind}) for kind in ("search", "trial"))
        statuses = collections.Counter(run.status for run in (*parents, *children))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = (
        {"what": "kills", "count": kills},
        {"what": "complete trials", "count": f"{len(complete)} of {trials}"},
        {"what": "trials recorded twice", "count": doubled},
        {"what": "finished evaluations that are no trial", "count": len(lost)},
        {"what": "evaluations done again", "count": twice},
        {"what": "MLflow runs by status", "count": dict(statuses)},
    )
    mirrored = len(parents) == 1 and len(children) == trials
    passed = len(complete) == trials and mirrored and not (doubled or lost or twice or statuses["RUNNING"])
    return Result(
        rows,
        f"after {kills} kills: {len(lost)} trials lost, {doubled} recorded twice, {twice} evaluated again, "
        f"{statuses['RUNNING']} runs left RUNNING (asked: 0 of each)",
        passed,
    )
