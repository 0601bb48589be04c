"""One, two and four workers on PostgreSQL, and the cost of asking in a study of 10,000 trials.

Scaling: workers share one study, every evaluation sleeps, so that only the coordination costs. The efficiency of n
workers is their trials a second over n times those of one. All workers wait for each other before the clock starts.
Size: the study is opened, its history told to the controller, and the search continued for a few trials without a
pause; an ask is what the search takes between the end of one evaluation and the begin of the next. Both the default
controller and evolution do so, one after the other.
"""

import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from benchmarks import Result
from benchmarks._crashing import question
from benchmarks._postgres import empty, postgres
from benchmarks._searching import Constant
from nas.controllers import Controller, EvolutionController, PredictorController, Problem, RandomController
from nas.evaluation import Evaluate, Screen
from nas.objectives import Evaluation
from nas.search import Search
from search_spaces import Architecture, derive_seed
from trials import Measurement, Outcome, SerialExecutor, Trial, TrialState, TrialStore
from trials.entries import TableEntries

ASKED_EFFICIENCY, ASKED_ASK_MS, ASKED_START_S = 0.90, 50.0, 10.0
CONTROLLERS: Mapping[str, Callable[[Problem], Controller]] = {
    "the default controller": PredictorController,
    "evolution": EvolutionController,
}


def work(url: str, folder: str, trials: int, pause: float, seed: int, barrier: Barrier) -> None:
    """One worker: the process that a machine of a cluster runs."""
    torch.set_num_threads(1)
    problem, spec = question()
    problem = Problem(problem.space, problem.objectives, (), seed)
    with TrialStore(url, spec, runs=Path(folder) / "runs") as store:
        search = Search(
            problem,
            RandomController(problem),
            screen=Screen(problem.space, [], ()),
            store=store,
            executor=SerialExecutor(Evaluate(Constant(pause))),
        )
        barrier.wait()
        search.run(trials)


def rate(url: str, workers: int, trials: int, pause: float) -> tuple[float, int]:
    """Trials a second, from the first begin to the last end, and how many workers took part."""
    empty(url)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers)
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=work, args=(url, folder, trials, pause, seed, barrier)) for seed in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        done = [trial for trial in TrialStore.load(url, question()[1].name).trials() if trial.finished is not None]
    if any(process.exitcode for process in processes) or len(done) < trials:
        raise RuntimeError(f"{len(done)} of {trials} trials; exit codes {[process.exitcode for process in processes]}")
    span = max(trial.finished or 0.0 for trial in done) - min(trial.started for trial in done)
    return len(done) / span, len({trial.worker for trial in done})


class Stopwatch(Constant):
    """Notes when its evaluations begin and end."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[tuple[float, float]] = []
        self.busy: list[tuple[float, float]] = []

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        begin, busy = time.perf_counter(), time.process_time()
        found = super().__call__(architecture, seed=seed)
        self.moments.append((begin, time.perf_counter()))
        self.busy.append((busy, time.process_time()))
        return found


def fill(url: str, folder: Path, count: int) -> None:
    """Write a study of random architectures with random accuracies."""
    problem, spec = question()
    generator = torch.Generator().manual_seed(derive_seed(0, "fill"))
    with TrialStore(url, spec, runs=folder) as store:
        worker = str(store.worker)
        templates = []
        for _ in range(count):
            architecture = problem.space.sample(generator)
            accuracy = float(torch.rand((), generator=generator))
            trial = Trial(
                number=-1,
                architecture=architecture,
                arch_id=architecture.arch_id,
                state=TrialState.RUNNING,
                seed=0,
                worker=worker,
                started=time.time(),
            )
            measured = {"accuracy": Measurement(accuracy, "fraction", "maximize")}
            outcome = Outcome(state=TrialState.COMPLETE, measurements=measured, finished=time.time())
            templates.append(store._ledger._template(trial.with_outcome(outcome)))  # what `record` writes
        entries = store._ledger._entries
        assert isinstance(entries, TableEntries)
        for first in range(0, count, 500):
            entries.extend(templates[first : first + 500])


def between(moments: Sequence[tuple[float, float]]) -> list[float]:
    """Milliseconds from each end to the next begin."""
    return [1e3 * (begin - end) for (_, end), (begin, _) in itertools.pairwise(moments)]


def large(url: str, folder: Path, more: int, make: Callable[[Problem], Controller]) -> tuple[int, float, float, str]:
    """Trials found, seconds until the first evaluation, the median ask in milliseconds, and more about asks."""
    problem, spec = question()
    watch = Stopwatch()
    start = time.perf_counter()
    with TrialStore(url, spec, runs=folder) as store:
        search = Search(
            problem,
            make(problem),
            screen=Screen(problem.space, [], ()),
            store=store,
            executor=SerialExecutor(Evaluate(watch)),
        )
        known = len(store.trials())
        search.run(known + more)
    asks, busy = between(watch.moments), statistics.median(between(watch.busy))
    return (
        known,
        watch.moments[0][0] - start,
        statistics.median(asks),
        f"worst {max(asks):.0f}, computing {busy:.0f} ms",
    )


def run(quick: bool = False) -> Result:
    """4 workers of 30 trials of two seconds each, 10,000 trials; ``quick`` 2 workers of 5 short ones, 300 trials."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    each, pause, size, more = (5, 0.3, 300, 10) if quick else (30, 2.0, 10_000, 50)
    rows: list[dict[str, object]] = []
    efficiencies = []
    with postgres() as url, tempfile.TemporaryDirectory() as folder:
        single = 0.0
        for workers in (1, 2) if quick else (1, 2, 4):
            speed, took_part = rate(url, workers, each * workers, pause)
            single = single or speed
            efficiencies.append(speed / (workers * single))
            rows.append(
                {
                    "what": f"{took_part} workers, {each * workers} trials of {pause:g} s",
                    "figure": f"{speed:.2f} trials/s, efficiency {efficiencies[-1]:.1%}",
                    "asked": f">= {ASKED_EFFICIENCY:.0%}",
                }
            )
        empty(url)
        fill(url, Path(folder), size)
        starts, asks = [], []
        for name, make in CONTROLLERS.items():
            known, opened, ask, details = large(url, Path(folder), more, make)
            starts.append(opened)
            asks.append(ask)
            rows += [
                {
                    "what": f"start at {known} trials with {name}, until the first evaluation",
                    "figure": f"{opened:.1f} s",
                    "asked": f"<= {ASKED_START_S:g} s",
                },
                {
                    "what": f"ask at {known} trials with {name}: propose, claim, record, tell",
                    "figure": f"{ask:.0f} ms (median of {more - 1}; {details})",
                    "asked": f"<= {ASKED_ASK_MS:g} ms",
                },
            ]
    lowest = min(efficiencies)
    said = ", ".join(f"{ask:.0f} ms with {name}" for name, ask in zip(CONTROLLERS, asks, strict=True))
    return Result(
        tuple(rows),
        f"efficiency {lowest:.1%} at the lowest (asked: >= {ASKED_EFFICIENCY:.0%}); at {known} trials an ask takes "
        f"{said} (asked: <= {ASKED_ASK_MS:g}) and the start at most {max(starts):.1f} s (asked: <= {ASKED_START_S:g})",
        lowest >= ASKED_EFFICIENCY and max(asks) <= ASKED_ASK_MS and max(starts) <= ASKED_START_S,
    )
