"""How good are the cells that each controller finds in the table of NATS-Bench, after 100 and 200 evaluations?

Every evaluation is a look-up of the validation accuracy after 12 epochs (one run, so noisy) in
``nats_bench/topology.parquet`` below ``NAS_DATA_DIR``; what a search returns is judged by its test accuracy after 200
epochs. Two ways to return a cell: the one with the highest validation accuracy, and the one that a Gaussian process of
all that the search has seen believes best (``PredictorController.best``), which any controller's trials allow.
The space holds each network once. The bounds: the best cell there is, and what a search would return that had seen the
whole table. Optuna's Gaussian processes are left out: a proposal takes them longer than a whole search takes others.
"""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Literal

from scipy.stats import t

from benchmarks import Result
from examples.extending.controller import LocalSearchController
from nas import (
    CoarseToFineController,
    Controller,
    EvolutionController,
    OptunaController,
    PredictorController,
    Problem,
    RandomController,
    TabularObjective,
)
from nas.controllers import NNIController
from search_spaces import CellSpace
from trials import Measurement, Trial, TrialState

SEEDS = 50
Dataset = Literal["cifar10", "cifar100"]
BUDGETS: Mapping[Dataset, tuple[int, ...]] = {"cifar10": (100, 200), "cifar100": (100,)}
CONTROLLERS: Mapping[str, Callable[[Problem], Controller]] = {
    "random": RandomController,
    "regularised evolution": functools.partial(EvolutionController, method="regularized", population_size=20),
    "NSGA-II": functools.partial(EvolutionController, population_size=20),
    "local search": functools.partial(LocalSearchController, start=10),
    "coarse to fine": functools.partial(CoarseToFineController, coarse=20),
    "Optuna TPE": functools.partial(OptunaController, sampler="tpe"),
    "Optuna NSGA-II": functools.partial(OptunaController, sampler="nsga2", sampler_args={"population_size": 20}),
    "NNI TPE": functools.partial(NNIController, tuner="tpe"),
    "NNI evolution": functools.partial(NNIController, tuner="evolution"),
    "NNI regularized evolution": functools.partial(NNIController, tuner="regularized_evolution"),
    "predictor (ours)": PredictorController,
}
ASKED: Mapping[tuple[Dataset, int], float] = {("cifar10", 100): 94.20, ("cifar10", 200): 94.32, ("cifar100", 100): 72.6}

Found = tuple[int, float, float, float]
"""Evaluations; the highest validation accuracy, the test accuracy of its cell and of the one believed best; percent."""


@functools.cache
def tables(dataset: Dataset) -> tuple[CellSpace, TabularObjective, TabularObjective]:
    """Return the space, what a search sees, and what it is judged by; once a process."""
    space = CellSpace(10, equivalence="function")
    seen, judge = (TabularObjective(space, dataset=dataset, split=split) for split in ("val", "test"))
    return space, seen, judge


def search(job: tuple[str, Dataset, int]) -> list[Found]:
    """Return what one search has found after each of its budgets."""
    name, dataset, seed = job
    space, seen, judge = tables(dataset)
    metric = seen.metrics[0]
    problem = Problem(space, seen.metrics, seed=seed)
    controller = CONTROLLERS[name](problem)
    budgets = BUDGETS[dataset]
    trials: list[Trial] = []
    found: list[Found] = []
    for number in range(budgets[-1]):
        (architecture,) = controller.ask(1)
        accuracy = seen(architecture, seed=0).measurements["accuracy"]
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
        trials.append(trial)
        if len(trials) in budgets:
            highest = max(trials, key=lambda item: item.value("accuracy"))
            smoothed = PredictorController(problem)
            smoothed.tell(trials)
            choices = (space.architecture(highest.architecture), smoothed.best()[0])
            tests = [100 * judge(choice, seed=0).measurements["accuracy"] for choice in choices]
            found.append((len(trials), 100 * highest.value("accuracy"), tests[0], tests[1]))
    return found


def interval(values: Sequence[float]) -> str:
    """Mean and half the width of its 95 % confidence interval."""
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} +- {half:.2f}"


def bounds(dataset: Dataset) -> tuple[float, float]:
    """Return test accuracies in percent: of the best cell, and of the cell with the best validation accuracy."""
    space, seen, judge = tables(dataset)
    scores = [
        tuple(100 * table(architecture, seed=0).measurements["accuracy"] for table in (seen, judge))
        for architecture in space.architectures()
    ]
    return max(test for _, test in scores), max(scores)[1]


def run(quick: bool = False) -> Result:
    """Fifty seeds of eleven controllers; ``quick`` takes three seeds, on CIFAR-10."""
    datasets: tuple[Dataset, ...] = ("cifar10",) if quick else ("cifar10", "cifar100")
    seeds = 3 if quick else SEEDS
    jobs = [(name, dataset, seed) for dataset in datasets for name in CONTROLLERS for seed in range(seeds)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        answers = list(pool.map(search, jobs, chunksize=5))
    results: dict[tuple[str, Dataset, int], list[Found]] = {}
    for (name, dataset, _), answer in zip(jobs, answers, strict=True):
        for found in answer:
            results.setdefault((name, dataset, found[0]), []).append(found)
    return _result(results, datasets)


def _result(results: Mapping[tuple[str, Dataset, int], Sequence[Found]], datasets: Sequence[Dataset]) -> Result:
    rows: list[dict[str, object]] = []
    below: list[str] = []
    short: list[str] = []
    reached: list[str] = []
    for dataset in datasets:
        best, oracle = bounds(dataset)
        for budget in BUDGETS[dataset]:
            random = [found[2] for found in results["random", dataset, budget]]
            for name in CONTROLLERS:
                found = results[name, dataset, budget]
                gaps = [item[2] - other for item, other in zip(found, random, strict=True)]
                if statistics.mean(gaps) < 0:
                    below.append(f"{name} on {dataset} at {budget}")
                rows.append(
                    {
                        "data": dataset,
                        "evaluations": budget,
                        "controller": name,
                        "seeds": len(found),
                        "validation": interval([item[1] for item in found]),
                        "test of the highest": interval([item[2] for item in found]),
                        "above random": "" if name == "random" else interval(gaps),
                        "test of the believed best": interval([item[3] for item in found]),
                        "best cell / best by validation": f"{best:.2f} / {oracle:.2f}",
                    }
                )
            ours = results["predictor (ours)", dataset, budget]
            highest, believed = (statistics.mean(item[column] for item in ours) for column in (2, 3))
            asked = ASKED[dataset, budget]
            reached.append(
                f"{believed:.2f} believed best, {highest:.2f} highest on {dataset} at {budget} (asked {asked:.2f})"
            )
            if believed < asked:
                short.append(f"{dataset} at {budget}")
    return Result(
        tuple(rows),
        f"the predictor's test accuracy is {'; '.join(reached)}; controllers with a mean below random: "
        f"{', '.join(below) or 'none'} (asked: none)",
        not below and not short,
    )
