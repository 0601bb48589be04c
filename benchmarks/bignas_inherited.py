"""Is a searched subnetwork with the supernet's weights as good as the same architecture trained alone?

A supernet of small residual networks is trained by the sandwich rule on labels, on 6,000 images of MNIST and 3,000 of
CIFAR-10 at 16 x 16 pixels: few images and many epochs, so that both sides are trained to the end on two cores. (After
two epochs of all images a supernet is far behind: its step serves all subnetworks.) Evolution searches it on the
validation split under the limit of half the MACs of the largest network, and the architecture found is trained alone:
for the same number of steps, which decides, and for one seed four times as long, which is the number of forward passes
that the supernet has taken. All accuracies are those of the test split. Random search with equal evaluations is
reported beside evolution.
"""

import functools
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
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
    """One data set: its images, how many of them train, its space and the number of training steps."""

    name: str
    steps: int
    images: int

    def data(self) -> ImageData:
        if self.name == "mnist":
            return ImageData("mnist", batch_size=128, eval_batch_size=1000, train_limit=self.images)
        columns = {"image_column": "img", "label_column": "label"}
        sizes = {"batch_size": 128, "eval_batch_size": 1000, "train_limit": self.images}
        return ImageData("cifar10", **columns, size=16, flip=True, **sizes)

    def space(self) -> ConvNetSpace:
        def stage(*widths: int) -> Stage:
            return Stage(widths=widths, depths=(1, 2), kernels=(3, 5), expansions=(0.5, 1), stride=2, block="residual")

        if self.name == "mnist":
            stem = Stem(widths=(8, 12, 16), stride=2)
            stages = [stage(8, 12, 16, 24), stage(16, 24, 32, 48)]
            return ConvNetSpace(stages, 10, in_channels=1, resolutions=(28,), stem=stem)
        stem = Stem(widths=(8, 12, 16))
        return ConvNetSpace([stage(16, 24, 32), stage(32, 48, 64)], 10, resolutions=(16,), stem=stem)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of every run."""
    return torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.05)


def train(case: Case, space: ConvNetSpace, data: ImageData, seed: int) -> Supernet:
    """Train one supernet."""
    supernet = Supernet(
        space,
        Classification(10),
        source=functools.partial(SharedWeights, seed=seed),
        rule=SandwichRule(2, distillation=False),
        optimizer=adamw,
        schedule=Cosine(warmup=0.05),
        calibration=16,
        seed=seed,
    )
    return fit(supernet, data, case.steps)


def alone(supernet: Supernet, data: ImageData, steps: int) -> FromScratch:
    """The same training for one architecture."""
    recipe = Recipe(steps=steps, optimizer=adamw, schedule=Cosine(warmup=0.05))
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
    seconds /= time.perf_counter() - start
    longer = accuracy(alone(supernet, data, PASSES * case.steps), found) if seed == SEEDS[0] else None
    return {
        "data": case.name,
        "seed": seed,
        "inherited": accuracy(inherited, found),
        "alone, same steps": scratch,
        "training time, supernet / alone": seconds,
        f"alone, {PASSES} x the steps": longer,
        "found by random, inherited": accuracy(inherited, random),
        "largest, inherited": accuracy(inherited, space.largest()),
        "MACs found / largest": macs(found)["macs"] / (2 * half),
    }


def run(quick: bool = False) -> Result:
    """Three seeds of each data set side by side; ``quick`` takes one seed and a twentieth of the steps."""
    cases = [Case("mnist", 1000, 6000), Case("cifar10", 1500, 3000)]
    if quick:
        cases = [replace(case, steps=case.steps // 20) for case in cases]
    jobs = [(case, seed) for case in reversed(cases) for seed in SEEDS[: 1 if quick else None]]
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(functools.partial(row_of, trials=12 if quick else TRIALS), jobs))
    gaps = {
        case.name: statistics.mean(r["alone, same steps"] - r["inherited"] for r in found if r["data"] == case.name)
        for case in cases
    }
    rows = tuple(
        {k: f"{v:.2f}" if isinstance(v, float) else "" if v is None else v for k, v in row.items()} for row in found
    )
    text = ", ".join(f"{-gap:+.2f} points on {name}" for name, gap in gaps.items())
    return Result(
        rows,
        f"inherited against trained alone for the same number of steps: {text} (asked: >= -{ALLOWED} on each); means "
        f"of {len(rows) // len(cases)} seeds",
        all(gap <= ALLOWED for gap in gaps.values()),
    )
