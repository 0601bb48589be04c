"""How good are the cells that each controller finds in the table of NATS-Bench, 200 evaluations each?

Every evaluation is a look-up of the validation accuracy after 12 epochs in ``nats_bench/topology.parquet`` below
``NAS_DATA_DIR``; the cell with the highest is judged by its test accuracy after 200 epochs. The space holds each
network once. Beside the controllers: the best cell there is (a bound that no search can know), and what a search would
return that had seen the whole table.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Literal

from scipy.stats import t

from benchmarks import Result
from nas import Controller, EvolutionController, OptunaController, Problem, RandomController, TabularObjective
from search_spaces import CellSpace
from trials import Measurement, Trial, TrialState

SEEDS, EVALUATIONS = 30, 200
DATASETS: tuple[Literal["cifar10", "cifar100"], ...] = ("cifar10", "cifar100")
CONTROLLERS: dict[str, Callable[[Problem], Controller]] = {
    "random": RandomController,
    "regularised evolution": functools.partial(EvolutionController, method="regularized", population_size=20),
    "NSGA-II": functools.partial(EvolutionController, population_size=20),
    "TPE": functools.partial(OptunaController, sampler="tpe"),
}


def search(seed: int, *, name: str, dataset: Literal["cifar10", "cifar100"], evaluations: int) -> tuple[float, float]:
    """Return (validation, test) accuracy in percent of the cell that one search finds."""
    space = CellSpace(10, equivalence="function")
    seen, judge = (TabularObjective(space, dataset=dataset, split=split) for split in ("val", "test"))
    metric = seen.metrics[0]
    controller = CONTROLLERS[name](Problem(space, seen.metrics, seed=seed))
    best, found = -1.0, space.smallest()
    for number in range(evaluations):
        (architecture,) = controller.ask(1)
        accuracy = seen(architecture, seed=0).measurements["accuracy"]
        if accuracy > best:
            best, found = accuracy, architecture
        trial = Trial(
            number=number,
            architecture=architecture,
            arch_id=architecture.arch_id,
            state=TrialState.COMPLETE,
            measurements={metric.name: Measurement(accuracy, metric.unit, metric.direction)},
            started=float(number),
            finished=float(number),
        )
        controller.tell([trial])
    return 100 * best, 100 * judge(found, seed=0).measurements["accuracy"]


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % confidence interval."""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} +- {half:.2f}"


def bounds(dataset: Literal["cifar10", "cifar100"]) -> tuple[float, float]:
    """Return test accuracies in percent: of the best cell, and of the cell with the best validation accuracy."""
    space = CellSpace(10, equivalence="function")
    seen, judge = (TabularObjective(space, dataset=dataset, split=split) for split in ("val", "test"))
    scores = [
        tuple(100 * table(architecture, seed=0).measurements["accuracy"] for table in (seen, judge))
        for architecture in space.architectures()
    ]
    return max(test for _, test in scores), max(scores)[1]


def run(quick: bool = False) -> Result:
    """Thirty seeds of four controllers on two data sets; ``quick`` takes three seeds and 50 evaluations."""
    seeds, evaluations = (3, 50) if quick else (SEEDS, EVALUATIONS)
    rows: list[dict[str, object]] = []
    gains: dict[str, float] = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for dataset in DATASETS:
            best, oracle = bounds(dataset)
            random: list[float] = []
            for name in CONTROLLERS:
                job = functools.partial(search, name=name, dataset=dataset, evaluations=evaluations)
                found = list(pool.map(job, range(seeds)))
                tests = [test for _, test in found]
                random = random or tests
                gaps = [ours - theirs for ours, theirs in zip(tests, random, strict=True)]
                if name != "random":
                    gains[f"{name} on {dataset}"] = statistics.mean(gaps)
                rows.append(
                    {
                        "data": dataset,
                        "controller": name,
                        "validation accuracy found": interval([val for val, _ in found]),
                        "its test accuracy": interval(tests),
                        "above random": "" if name == "random" else interval(gaps),
                        "best possible": f"{best:.2f}",
                        "best by validation": f"{oracle:.2f}",
                    }
                )
    least, most = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    return Result(
        tuple(rows),
        f"gain in test accuracy over random search from {gains[least]:+.2f} points ({least}) to {gains[most]:+.2f} "
        f"({most}), means of {seeds} seeds of {evaluations} evaluations (asked: every controller above random)",
        gains[least] > 0,
    )
