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
    """Return the most accurate architecture that one search finds within the limit on MACs."""
    settings = SearchSettings(
        study="mnist",
        trials=trials,
        objectives=["accuracy"],
        costs=[MACs, Parameters],
        limits={"max_macs": limit},
        controller=controller,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        kept = SearchSettings(**{**vars(settings), "storage": str(Path(folder) / "studies.journal")})
        with open_search(supernet, data, kept, runs=folder) as search:
            best = max(search.run(trials).front, key=lambda trial: trial.value("accuracy"))
        return supernet.space.architecture(best.architecture)


def nsga2(problem: Problem) -> Controller:
    """The search under test."""
    return EvolutionController(problem, population_size=16)


def run(quick: bool = False) -> Result:
    """Three seeds; ``quick`` takes one seed, a tenth of the steps and four ranked architectures."""
    data = ImageData("mnist", batch_size=128, eval_batch_size=1000)
    space = make_space()
    steps, ranked_steps, trials, ranked = (150, 100, 20, 4) if quick else (STEPS, RANKED_STEPS, TRIALS, RANKED)
    half = measure([MACs(space)], space, space.largest())["macs"] / 2
    rows: list[dict[str, object]] = []
    gaps, taus = [], []
    for seed in SEEDS[: 1 if quick else None]:
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

        def accuracy(objective: Any, architecture: Architecture, seed: int = seed) -> float:
            return 100 * float(objective(architecture, seed=seed).measurements["accuracy"])

        found = find(supernet, data, seed, trials, nsga2, half)
        random = find(supernet, data, seed, trials, RandomController, half)
        architectures = spread(space, ranked)
        truth = [accuracy(briefly, architecture) for architecture in architectures]
        estimate = [accuracy(inherited, architecture) for architecture in architectures]
        largest = accuracy(alone, space.largest())
        tau = float(kendalltau(truth, estimate).statistic)
        best = accuracy(inherited, found)
        gaps.append(largest - best)
        taus.append(tau)
        rows.append(
            {
                "seed": seed,
                "largest alone %": f"{largest:.2f}",
                "largest inherited %": f"{estimate[-1]:.2f}",
                "found, <= half the MACs %": f"{best:.2f}",
                "found by random %": f"{accuracy(inherited, random):.2f}",
                "MACs found / largest": f"{measure([MACs(space)], space, found)['macs'] / (2 * half):.2f}",
                "ranked, alone %": f"{min(truth):.2f} .. {max(truth):.2f}",
                "Kendall tau": f"{tau:.2f}",
            }
        )
    gap, tau = statistics.mean(gaps), statistics.mean(taus)
    return Result(
        tuple(rows),
        f"best subnetwork with at most half the MACs is {gap:.2f} points below the largest trained alone (asked: <= "
        f"0.30); Kendall tau over {ranked} architectures {tau:.2f} (asked: >= 0.60); means of {len(rows)} seeds",
        gap <= 0.3 and tau >= 0.6,
    )
