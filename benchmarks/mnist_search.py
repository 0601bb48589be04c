"""Is the subnetwork that a search finds as good as a network trained alone, and does the supernet rank truthfully?

A supernet of small residual networks on MNIST, trained by the sandwich rule. (1) NSGA-II searches it on the validation
split under the limit of half the MACs of the largest network; the best subnetwork found keeps the supernet's weights
and is compared on the test split with the largest network trained alone for the same number of steps. (2) Twelve
architectures, evenly spread over MACs, are trained alone for a third of the steps; Kendall's tau compares their test
accuracies with those of the same architectures in the supernet. Random search with equal evaluations is reported
beside the search.
"""

import functools
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from scipy.stats import kendalltau

from benchmarks import Result
from benchmarks._training import fit
from nas import (
    Controller,
    EvolutionController,
    FromScratch,
    ImageData,
    MACs,
    Parameters,
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
STEPS = 1500
TRIALS = 60
RANKED, RANKED_STEPS = 12, 500


def make_space() -> ConvNetSpace:
    """Two residual stages on 28 x 28 images: 3,072 architectures."""

    def stage(*widths: int) -> Stage:
        return Stage(widths=widths, depths=(1, 2), kernels=(3, 5), expansions=(0.5, 1), stride=2, block="residual")

    return ConvNetSpace(
        [stage(8, 12, 16, 24), stage(16, 24, 32, 48)],
        10,
        in_channels=1,
        resolutions=(28,),
        stem=Stem(widths=(8, 12, 16), stride=2),
    )


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of every run."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def train(space: ConvNetSpace, data: ImageData, seed: int, steps: int) -> Supernet:
    """Train one supernet by the sandwich rule."""
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
    return fit(supernet, data, steps)


def spread(space: ConvNetSpace, count: int) -> list[Architecture]:
    """Return ``count`` architectures at even quantiles of MACs, the smallest and the largest among them."""
    generator = torch.Generator().manual_seed(0)
    drawn = {space.sample(generator) for _ in range(200)} | {space.smallest(), space.largest()}
    macs = MACs(space)
    ordered = sorted(drawn, key=lambda architecture: measure([macs], space, architecture)["macs"])
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def find(supernet: Supernet, data: ImageData, seed: int, trials: int, controller: Any, limit: float) -> Architecture:
    """Return the best architecture that one search finds within the limit on MACs.

    Best is the lowest validation loss: of sixty accuracies on 6,000 images the highest is often merely lucky.
    """
    settings = SearchSettings(
        study="mnist",
        trials=trials,
        objectives=["loss"],
        costs=[MACs, Parameters],
        limits={"max_macs": limit},
        controller=controller,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        kept = SearchSettings(**{**vars(settings), "storage": str(Path(folder) / "studies.journal")})
        with open_search(supernet, data, kept, runs=folder) as search:
            best = min(search.run(trials).front, key=lambda trial: trial.value("loss"))
        return supernet.space.architecture(best.architecture)


def nsga2(problem: Problem) -> Controller:
    """The search under test."""
    return EvolutionController(problem, population_size=16)


def row_of(seed: int, *, steps: int, ranked_steps: int, trials: int, ranked: int) -> dict[str, float]:
    """Everything measured for one seed, in percent."""
    torch.set_num_threads(1)
    data = ImageData("mnist", batch_size=128, eval_batch_size=1000)
    space = make_space()
    half = measure([MACs(space)], space, space.largest())["macs"] / 2
    supernet = train(space, data, seed, steps)
    inherited = WeightSharing(supernet, data, split="test")
    alone, briefly = (
        FromScratch(
            supernet,
            data,
            recipe=Recipe(steps=count, optimizer=sgd, schedule=Cosine(warmup=0.05), clip=1.0),
            split="test",
            calibration=16,
        )
        for count in (steps, ranked_steps)
    )

    def accuracy(objective: Any, architecture: Architecture) -> float:
        return 100 * float(objective(architecture, seed=seed).measurements["accuracy"])

    found = find(supernet, data, seed, trials, nsga2, half)
    random = find(supernet, data, seed, trials, RandomController, half)
    architectures = spread(space, ranked)
    truth = [accuracy(briefly, architecture) for architecture in architectures]
    estimate = [accuracy(inherited, architecture) for architecture in architectures]
    return {
        "seed": seed,
        "largest alone": accuracy(alone, space.largest()),
        "largest inherited": estimate[-1],
        "found, <= half the MACs": accuracy(inherited, found),
        "found by random": accuracy(inherited, random),
        "MACs found / largest": measure([MACs(space)], space, found)["macs"] / (2 * half),
        "lowest ranked, alone": min(truth),
        "highest ranked, alone": max(truth),
        "Kendall tau": float(kendalltau(truth, estimate).statistic),
    }


def run(quick: bool = False) -> Result:
    """Three seeds side by side; ``quick`` takes one seed, a tenth of the steps and four ranked architectures."""
    size = {"steps": STEPS, "ranked_steps": RANKED_STEPS, "trials": TRIALS, "ranked": RANKED}
    if quick:
        size = {"steps": 150, "ranked_steps": 100, "trials": 20, "ranked": 4}
    seeds = SEEDS[: 1 if quick else None]
    with ProcessPoolExecutor(len(seeds), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(functools.partial(row_of, **size), seeds))
    gap = statistics.mean(row["largest alone"] - row["found, <= half the MACs"] for row in found)
    tau = statistics.mean(row["Kendall tau"] for row in found)
    rows = tuple({k: v if k == "seed" else f"{v:.2f}" for k, v in row.items()} for row in found)
    return Result(
        rows,
        f"best subnetwork with at most half the MACs is {gap:.2f} points below the largest trained alone (asked: <= "
        f"0.30); Kendall tau over {size['ranked']} architectures {tau:.2f} (asked: >= 0.60); means of {len(rows)} "
        "seeds",
        gap <= 0.3 and tau >= 0.6,
    )
