"""Cost of one trial with a durable study and MLflow tracking on, against bare Optuna on the same kind of journal.

A constant objective over twelve choices. Ours: the search loop with ``OptunaController``, the trial store and a running
MLflow mirror. Theirs: ``study.optimize`` with the same sampler and the same (integer) distributions on a journal file,
without tracking; it repeats architectures, ours never does. The two take turns; the time per trial is compared run by
run.
"""

import statistics
import tempfile
import time
import warnings
from pathlib import Path

import optuna

from benchmarks import Result
from benchmarks._searching import Constant, TwelveChoices, search
from nas.controllers import Controller, OptunaController, Problem

SAMPLERS = {"random": optuna.samplers.RandomSampler, "TPE": optuna.samplers.TPESampler}


def bare(folder: Path, trials: int, sampler: str) -> float:
    """Seconds that bare Optuna takes."""
    choices = TwelveChoices.choices
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "optuna.journal")))
    study = optuna.create_study(storage=storage, sampler=SAMPLERS[sampler](seed=0), direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        for choice in choices:
            choice.candidates[trial.suggest_int(choice.name, 0, choice.size - 1)]
        return 0.5

    start = time.perf_counter()
    study.optimize(objective, n_trials=trials)
    return time.perf_counter() - start


def ours(folder: Path, trials: int, sampler: str) -> tuple[float, float]:
    """Seconds of the search, and of the mirror after it."""

    def make(problem: Problem) -> Controller:
        return OptunaController(problem, sampler=SAMPLERS[sampler])

    start = time.perf_counter()
    result, report, seconds = search(folder, trials, Constant(), make=make)
    rest = time.perf_counter() - start - seconds
    if len(result.trials) != trials or not report.complete:
        raise RuntimeError(f"{len(result.trials)} of {trials} trials, mirror: {report}")
    return seconds, rest


def run(quick: bool = False) -> Result:
    """Five turns of 200 trials per sampler; ``quick`` two turns of 50."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    turns, trials = (2, 50) if quick else (5, 200)
    rows: list[dict[str, object]] = []
    worst = 0.0
    for sampler in SAMPLERS:
        mine, theirs, drains = [], [], []
        for _ in range(turns):
            with tempfile.TemporaryDirectory() as folder:
                theirs.append(1e3 * bare(Path(folder), trials, sampler) / trials)
                seconds, rest = ours(Path(folder), trials, sampler)
                mine.append(1e3 * seconds / trials)
                drains.append(rest)
        ratio = statistics.median(m / t for m, t in zip(mine, theirs, strict=True))
        worst = max(worst, ratio)
        rows.append(
            {
                "sampler": sampler,
                "bare Optuna, ms a trial": f"{statistics.median(theirs):.2f}",
                "ours with tracking, ms a trial": f"{statistics.median(mine):.2f}",
                "ratio (median of turns)": f"{ratio:.2f}",
                "MLflow start and rest after the search, s": f"{statistics.median(drains):.1f}",
            }
        )
    return Result(
        tuple(rows),
        f"a trial costs {worst:.2f} x bare Optuna at most (asked: <= 1.50), {turns} turns of {trials} trials",
        worst <= 1.5,
    )
