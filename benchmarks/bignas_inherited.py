"""Is a searched subnetwork with the supernet's weights as good as the same architecture trained alone?

A supernet of small residual networks is trained the BigNAS way (sandwich rule, in-place distillation) on MNIST and on
CIFAR-10 of 16 x 16 pixels. Evolution searches it on the validation split under the limit of half the MACs of the
largest network, and the architecture found is trained alone: for the same number of steps, which decides, and for four
times as many, which is the number of forward passes that the supernet has taken. All accuracies are those of the test
split. Random search with equal evaluations is reported beside evolution.
"""

import functools
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import Result
from benchmarks._training import fit
from nas import (
    Controller,
    EvolutionController,
    FromScratch,
    ImageData,
    MACs,
    Problem,
    RandomController,
    Recipe,
    SearchSettings,
    WeightSharing,
    open_search,
)
from nas.costs import measure
from search_spaces import Architecture, ConvNetSpace, Stage, Stem
from supernets import Classification, Cosine, SandwichRule, SharedWeights, Supernet

SEEDS = (0, 1, 2)
TRIALS = 30
PASSES = 4
ALLOWED = 0.5


@dataclass(frozen=True)
class Case:
    """One data set: its images, its space and the number of training steps."""

    name: str
    steps: int

    def data(self) -> ImageData:
        if self.name == "mnist":
            return ImageData("mnist", batch_size=128, eval_batch_size=1000)
        columns = {"image_column": "img", "label_column": "label"}
        return ImageData("cifar10", **columns, size=16, flip=True, batch_size=128, eval_batch_size=1000)

    def space(self) -> ConvNetSpace:
        def stage(*widths: int) -> Stage:
            return Stage(widths=widths, depths=(1, 2), kernels=(3, 5), expansions=(0.5, 1), stride=2, block="residual")

        if self.name == "mnist":
            stem = Stem(widths=(8, 12, 16), stride=2)
            stages = [stage(8, 12, 16, 24), stage(16, 24, 32, 48)]
            return ConvNetSpace(stages, 10, in_channels=1, resolutions=(28,), stem=stem)
        stem = Stem(widths=(8, 12, 16))
        return ConvNetSpace([stage(16, 24, 32), stage(32, 48, 64)], 10, resolutions=(16,), stem=stem)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of every run."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def train(case: Case, space: ConvNetSpace, data: ImageData, seed: int) -> Supernet:
    """Train one supernet."""
    supernet = Supernet(
        space,
        Classification(10),
        source=functools.partial(SharedWeights, seed=seed),
        rule=SandwichRule(2),
        optimizer=sgd,
        schedule=Cosine(warmup=0.05),
        clip=1.0,
        clip_algorithm="value",
        calibration=16,
        seed=seed,
    )
    return fit(supernet, data, case.steps)


def alone(supernet: Supernet, data: ImageData, steps: int) -> FromScratch:
    """The same training for one architecture."""
    recipe = Recipe(steps=steps, optimizer=sgd, schedule=Cosine(warmup=0.05), clip=1.0)
    return FromScratch(supernet, data, recipe=recipe, split="test", calibration=16)


def find(supernet: Supernet, data: ImageData, seed: int, trials: int, controller: Any, limit: float) -> Architecture:
    """Return the architecture of the lowest validation loss that one search finds within the limit on MACs."""
    with tempfile.TemporaryDirectory() as folder:
        settings = SearchSettings(
            study="inherited",
            trials=trials,
            objectives=["loss"],
            costs=[MACs],
            limits={"max_macs": limit},
            controller=controller,
            storage=str(Path(folder) / "studies.journal"),
            seed=seed,
        )
        with open_search(supernet, data, settings, runs=folder) as search:
            best = min(search.run(trials).front, key=lambda trial: trial.value("loss"))
        return supernet.space.architecture(best.architecture)


def evolution(problem: Problem) -> Controller:
    """The search under test."""
    return EvolutionController(problem, population_size=12)


def row_of(job: tuple[Case, int], *, trials: int) -> dict[str, Any]:
    """Everything measured for one data set and seed, in percent."""
    case, seed = job
    torch.set_num_threads(1)
    data, space = case.data(), case.space()
    macs = functools.partial(measure, [MACs(space)], space)
    start = time.perf_counter()
    supernet = train(case, space, data, seed)
    seconds = time.perf_counter() - start
    inherited = WeightSharing(supernet, data, split="test")

    def accuracy(objective: Any, architecture: Architecture) -> float:
        return 100 * float(objective(architecture, seed=seed).measurements["accuracy"])

    half = macs(space.largest())["macs"] / 2
    found = find(supernet, data, seed, trials, evolution, half)
    random = find(supernet, data, seed, trials, RandomController, half)
    start = time.perf_counter()
    scratch = accuracy(alone(supernet, data, case.steps), found)
    return {
        "data": case.name,
        "seed": seed,
        "inherited": accuracy(inherited, found),
        "alone, same steps": scratch,
        "training time, supernet / alone": seconds / (time.perf_counter() - start),
        f"alone, {PASSES} x the steps": accuracy(alone(supernet, data, PASSES * case.steps), found),
        "found by random, inherited": accuracy(inherited, random),
        "largest, inherited": accuracy(inherited, space.largest()),
        "MACs found / largest": macs(found)["macs"] / (2 * half),
    }


def run(quick: bool = False) -> Result:
    """Three seeds of each data set side by side; ``quick`` takes one seed and a tenth of the steps."""
    cases = [Case("mnist", 800), Case("cifar10", 800)]
    if quick:
        cases = [Case(case.name, case.steps // 10) for case in cases]
    jobs = [(case, seed) for case in reversed(cases) for seed in SEEDS[: 1 if quick else None]]
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(functools.partial(row_of, trials=12 if quick else TRIALS), jobs))
    gaps = {
        case.name: statistics.mean(r["alone, same steps"] - r["inherited"] for r in found if r["data"] == case.name)
        for case in cases
    }
    rows = tuple({k: v if k in ("data", "seed") else f"{v:.2f}" for k, v in row.items()} for row in found)
    text = ", ".join(f"{-gap:+.2f} points on {name}" for name, gap in gaps.items())
    return Result(
        rows,
        f"inherited against trained alone for the same number of steps: {text} (asked: >= -{ALLOWED} on each); means "
        f"of {len(rows) // len(cases)} seeds",
        all(gap <= ALLOWED for gap in gaps.values()),
    )
