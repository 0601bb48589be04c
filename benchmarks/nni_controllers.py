"""Do NNI's tuners find better cells than chance, does a resumed search go on as before, does its portal clean up?

Every tuner searches the table of NATS-Bench (CIFAR-10), 100 evaluations a seed; the cell with the highest validation
accuracy after 12 epochs is judged by its test accuracy after 200. Tuners that learn must gain on average; chance and
grid, which can be no better than our random search, must not lose beyond the 95 % confidence interval. Then a study of
each is stopped half-way and continued by a new controller, against the same study without a stop. Last, a study is
shown by NNI's own manager; processes and files are counted afterwards, also when the process that started it was
killed.
"""

import functools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil

from benchmarks import Result
from benchmarks.nats_bench import interval
from nas import Controller, NNIController, Problem, RandomController, TabularObjective, nni_portal, write_nni_experiment
from nas.evaluation import Evaluate, Screen
from nas.search import Search
from search_spaces import CellSpace
from trials import Measurement, SerialExecutor, StudySpec, Trial, TrialState, TrialStore

TUNERS = ("tpe", "evolution", "regularized_evolution", "random", "grid")
LEARNING = TUNERS[:3]
SEEDS, EVALUATIONS = 20, 100
OWNER = """
import sys
from nas import nni_portal
with nni_portal(sys.argv[1], sys.argv[2], port=0) as address:
    print(address, flush=True)
    sys.stdin.read()
"""


def make(tuner: str, problem: Problem) -> Controller:
    """Return a tuner of NNI, or our random search."""
    return RandomController(problem) if tuner == "ours" else NNIController(problem, tuner=tuner)


def find(seed: int, *, tuner: str, evaluations: int) -> tuple[float, float]:
    """Return (validation, test) accuracy in percent of the cell that one search finds."""
    space = CellSpace(10, equivalence="function")
    seen, judge = (TabularObjective(space, split=split) for split in ("val", "test"))
    controller = make(tuner, Problem(space, seen.metrics, seed=seed))
    scores = {}
    for number in range(evaluations):
        (architecture,) = controller.ask(1)
        scores[architecture] = seen(architecture, seed=0).measurements["accuracy"]
        measurement = Measurement(scores[architecture], seen.metrics[0].unit, seen.metrics[0].direction)
        trial = Trial(
            number=number,
            architecture=architecture,
            arch_id=architecture.arch_id,
            state=TrialState.COMPLETE,
            measurements={"accuracy": measurement},
            finished=float(number),
        )
        controller.tell([trial])
    best = max(scores, key=scores.__getitem__)
    return 100 * scores[best], 100 * judge(best, seed=0).measurements["accuracy"]


def study(folder: Path, tuner: str, budgets: tuple[int, ...]) -> tuple[StudySpec, list[Trial]]:
    """Run one study up to each budget in turn, each time with a new controller and the study read from disk."""
    space = CellSpace(10, equivalence="function")
    objective = TabularObjective(space)
    problem = Problem(space, objective.metrics, seed=1)
    spec = StudySpec(
        name=f"{tuner}-{len(budgets)}",
        objectives=problem.objectives,
        choices={choice.name: choice.candidates for choice in space.choices},
        space_digest=space.digest,
    )
    for budget in budgets:
        with TrialStore(str(folder / "studies.journal"), spec, runs=folder / "runs") as store:
            search = Search(
                problem,
                make(tuner, problem),
                screen=Screen(space, [], ()),
                store=store,
                executor=SerialExecutor(Evaluate(objective)),
            )
            trials = search.run(budget).trials
    return spec, list(trials)


def managers(folder: Path) -> int:
    """Count the processes that were started over ``folder``."""
    return sum(str(folder) in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def portal(folder: Path, spec: StudySpec, trials: list[Trial]) -> dict[str, int]:
    """Show a study twice, ending once in order and once by ``kill -9``; count what is left."""
    home = folder / "home"
    home.mkdir()
    os.environ["HOME"] = str(home)
    name = write_nni_experiment(spec, trials, folder / "nni")
    with nni_portal(folder / "nni", name, port=0):
        running = managers(folder / "nni")
    ended = managers(folder / "nni")
    command = [sys.executable, "-c", OWNER, str(folder / "nni"), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (killed := managers(folder / "nni")) and time.monotonic() < deadline:
        time.sleep(0.05)
    files = sum(1 for _ in home.rglob("*"))
    return {"while it runs": running, "after its end": ended, "after kill -9": killed, "files in the home": files}


def accuracy(seeds: int, evaluations: int) -> dict[str, dict[str, object]]:
    """Return a row for each tuner, with the gain in test accuracy over our random search as a number."""
    rows: dict[str, dict[str, object]] = {}
    random: list[float] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for tuner in ("ours", *TUNERS):
            found = list(pool.map(functools.partial(find, tuner=tuner, evaluations=evaluations), range(seeds)))
            tests = [test for _, test in found]
            random = random or tests
            gaps = [mine - theirs for mine, theirs in zip(tests, random, strict=True)]
            rows[tuner] = {
                "tuner": "our random search" if tuner == "ours" else tuner,
                "validation accuracy found": interval([val for val, _ in found]),
                "its test accuracy": interval(tests),
                "above our random search": "" if tuner == "ours" else interval(gaps),
                "gain": statistics.mean(gaps),
            }
    return rows


def verdict(rows: Mapping[str, Mapping[str, object]], same: Mapping[str, int], left: Mapping[str, int]) -> Result:
    """Compare with what was asked."""
    gains = {tuner: float(str(rows[tuner]["gain"])) for tuner in TUNERS}
    worst = min(LEARNING, key=gains.__getitem__)
    ranges = {tuner: str(rows[tuner]["above our random search"]) for tuner in TUNERS}
    lost = [tuner for tuner in TUNERS if sum(map(float, ranges[tuner].split(" +- "))) < 0.0]
    differing = sum(count > 0 for count in same.values())
    remains = left["after its end"] + left["after kill -9"] + left["files in the home"]
    table = tuple(
        {key: value for key, value in row.items() if key != "gain"} | {"trials changed by a stop": same.get(tuner, "")}
        for tuner, row in rows.items()
    )
    return Result(
        table,
        f"of the tuners that learn, {worst} gains least over random search: {gains[worst]:+.2f} points (asked: not "
        f"below); random {ranges['random']}, grid {ranges['grid']}; below random search beyond chance: "
        f"{', '.join(lost) or 'none'} (asked: none). {differing} of {len(same)} resumed studies "
        f"differ (asked: 0). Portal: {left['while it runs']} processes while it runs, {left['after its end']} after, "
        f"{left['after kill -9']} after kill -9 of their owner, {left['files in the home']} files in the home folder "
        "(asked: 0)",
        gains[worst] >= 0.0 and not lost and not differing and not remains and left["while it runs"] > 0,
    )


def run(quick: bool = False) -> Result:
    """20 seeds of 100 evaluations; ``quick`` takes 2 seeds of 30."""
    seeds, evaluations = (2, 30) if quick else (SEEDS, EVALUATIONS)
    rows = accuracy(seeds, evaluations)
    same = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for tuner in TUNERS:
            _, stopped = study(folder, tuner, (evaluations // 4, evaluations // 2))
            spec, whole = study(folder, tuner, (evaluations // 2,))
            same[tuner] = sum(a.arch_id != b.arch_id for a, b in zip(stopped, whole, strict=True))
        left = portal(folder, spec, whole)
    return verdict(rows, same, left)
