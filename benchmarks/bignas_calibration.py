"""Batch-norm calibration and the sandwich rule against compute-matched uniform sampling (CIFAR-10 at 8 x 8).

One supernet of multi-layer perceptrons (1 to 4 layers of 32 to 512 units) on CIFAR-10 averaged down to 8 x 8 pixels.
Three ways of training it at equal numbers of subnetwork passes: uniform sampling (4,000 steps of one subnetwork), the
sandwich rule on labels and with in-place distillation (1,000 steps of four). Every trained supernet is then scored
twice: with calibrated batch norm, and with the running statistics that all subnetworks shared in training, which is
what a supernet without calibration would report.
"""

import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks import Result
from benchmarks._training import fit
from nas.data import ImageData
from nas.objectives import prepare
from nas.standalone import score
from search_spaces import Architecture, MLPSpace, SearchSpace
from supernets import (
    Classification,
    SandwichRule,
    SharedWeights,
    Supernet,
    UniformRule,
    WeightSource,
    calibrate,
    calibration_batches,
)

SEEDS = (0, 1, 2)
MIDDLE = ((2, (128, 64)), (3, (64, 256, 128)), (4, (256, 128, 64, 128)))
RULES = {
    "uniform, 4 x steps": (UniformRule(), 4),
    "sandwich, labels": (SandwichRule(2, distillation=False), 1),
    "sandwich, distilled": (SandwichRule(2), 1),
}


class SharedStatistics(WeightSource):
    """Shared weights whose subnetworks also share one set of running statistics: the mistake to measure."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        super().__init__(space)
        self.seed = seed
        self.weights = SharedWeights(space, seed=seed)
        self.statistics = {name: buffer.clone() for name, buffer in self.weights.largest.named_buffers()}

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return shared weights, and views into the shared statistics."""
        tensors = self.weights(architecture)
        for name, shared in self.statistics.items():
            if name in tensors:
                tensors[name] = shared[: len(tensors[name])] if shared.dim() else shared
        return tensors


def train(space: MLPSpace, data: ImageData, rule: str, seed: int, steps: int) -> Supernet:
    """Train one supernet."""
    sampling, factor = RULES[rule]
    total = steps * factor
    supernet = Supernet(
        space,
        Classification(10),
        source=lambda given: SharedStatistics(given, seed=seed),
        rule=sampling,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=lambda progress: min(1.0, (progress * total + 1) / 100) * max(0.02, 1 - progress),
        decay_norms=True,
        clip=1.0,
        clip_algorithm="value",
        seed=seed,
    )
    return fit(supernet, data, total)


def accuracies(supernet: Supernet, architectures: list[Architecture], calibration: list[Any], test: list[Any]) -> Any:
    """Return (calibrated, shared statistics) accuracies in percent."""
    scores: tuple[list[float], list[float]] = ([], [])
    for architecture in architectures:
        calibrated = calibrate(supernet.extract(architecture), calibration, supernet.task.inputs)
        for column, module in zip(scores, (calibrated, supernet.extract(architecture)), strict=True):
            column.append(100 * score(module, supernet.task, test)["accuracy"])
    return scores


def run(quick: bool = False) -> Result:
    """Train 3 rules x 3 seeds; ``quick`` takes one seed and a tenth of the steps."""
    data = ImageData("cifar10", size=8, batch_size=128, train_limit=20_000)
    prepare(data)
    space = MLPSpace(192, 10, widths=(32, 64, 128, 256, 512), depths=(1, 2, 3, 4))
    middle = [
        space.architecture({"depth": depth} | {f"layer{i + 1}.width": width for i, width in enumerate(widths)})
        for depth, widths in MIDDLE
    ]
    architectures = [space.smallest(), space.largest(), *middle]
    calibration, test = calibration_batches(data, 16), list(data.test_dataloader())
    rows: list[dict[str, object]] = []
    means: dict[str, list[float]] = {}
    for rule in RULES:
        runs = []
        for seed in SEEDS[: 1 if quick else None]:
            supernet = train(space, data, rule, seed, 100 if quick else 1000)
            own, shared = accuracies(supernet, architectures, calibration, test)
            runs.append((own[0], statistics.mean(own[2:]), own[1], shared[0], statistics.mean(shared[2:]), shared[1]))
        means[rule] = [statistics.mean(column) for column in zip(*runs, strict=True)]
        row: dict[str, object] = {"rule": rule}
        names = ("smallest", "middle", "largest", "smallest, shared BN", "middle, shared BN", "largest, shared BN")
        for name, column in zip(names, zip(*runs, strict=True), strict=True):
            spread = statistics.stdev(column) if len(column) > 1 else 0.0
            row[name] = f"{statistics.mean(column):.1f} +- {spread:.1f}"
        rows.append(row)
    uniform, sandwich = means["uniform, 4 x steps"], means["sandwich, labels"]
    gain, top, bottom = sandwich[1] - sandwich[4], sandwich[2] - uniform[2], sandwich[0] - uniform[0]
    return Result(
        tuple(rows),
        f"middle subnetworks gain {gain:.1f} points by calibration (asked: >= 5.0); sandwich against uniform: largest "
        f"{top:+.1f} (asked: >= +1.0), smallest {bottom:+.1f} (asked: >= 0.0); distillation reported, not judged",
        gain >= 5.0 and top >= 1.0 and bottom >= 0.0,
    )
