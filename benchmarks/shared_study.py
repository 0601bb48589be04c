"""Two processes that share one study: every trial once, none lost.

Both run the same command on the same journal at the same time, with the same seed, so that they want the same
architectures all the time.
"""

import collections
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import Result
from benchmarks._searching import EXPERIMENT, STUDY, tracking
from trials import TrialState, TrialStore
from trials.tracking import Tracker


def run(quick: bool = False) -> Result:
    """200 trials; ``quick`` 40."""
    trials = 40 if quick else 200
    folder = Path(tempfile.mkdtemp())
    try:
        command = [sys.executable, "-m", "benchmarks._searching", str(folder), str(trials), "0.02"]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        ends = [process.communicate()[0].strip() for process in processes]
        store = TrialStore.load(str(folder / "studies.journal"), STUDY, runs=folder / "runs")
        complete = [trial for trial in store.trials() if trial.state is TrialState.COMPLETE]
        store.close()
        lines = [line.split() for line in (folder / "evaluated.log").read_text().splitlines()]
        shares = collections.Counter(process for _, process in lines)
        children = Tracker(tracking(folder), EXPERIMENT).runs(tags={"nas.kind": "trial"})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = [arch_id for arch_id, _ in lines]
    doubled = len(names) - len(set(names))
    lost = len(set(names) - {trial.arch_id for trial in complete})
    over = len(complete) - trials
    rows = (
        {"what": "evaluations by process", "count": sorted(shares.values())},
        {"what": "complete trials", "count": len(complete)},
        {"what": "evaluated twice", "count": doubled},
        {"what": "evaluated but no trial", "count": lost},
        {"what": "MLflow trial runs", "count": len(children)},
        {"what": "how they ended", "count": " / ".join(end.split()[0] if end else "nothing" for end in ends)},
    )
    both = len(shares) == 2
    passed = both and not doubled and not lost and 0 <= over <= 1 and len(children) == len(complete)
    return Result(
        rows,
        f"{doubled} trials doubled, {lost} lost (asked: 0 of each); {len(complete)} of {trials} wanted, "
        f"{'both' if both else 'NOT both'} processes took part",
        passed,
    )
