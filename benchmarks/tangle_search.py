"""Does differentiable search with a cost term find architectures worth having?

CIFAR-10 at 16 x 16 pixels, two residual stages of elastic width, depth, kernel and expansion (2,592 architectures).
TangleNAS with the DrNAS sampler and the expected MACs as a cost, aiming at 40 % of the largest network's, selects one
architecture. It is trained alone and compared on the test split with networks trained alone by the same recipe for the
same number of steps: random search at equal cost (the best of four random architectures within 15 % of the MACs found,
by validation loss), these four on average, and the largest architecture at its own cost. The largest is also trained
for as many MACs as the one found took. The search itself sees the training and validation splits only.
"""

import functools
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import Result
from benchmarks._training import fit
from nas import ExpectedMACs, ImageData, MACs, Recipe
from nas.costs import measure
from nas.standalone import score, train
from search_spaces import Architecture, ConvNetSpace, Stage, Stem
from supernets import Classification, Cosine, DifferentiableRule, SharedWeights, Supernet

SEEDS = (0, 1, 2)
STEPS = 600
RANDOM = 4
SHARE, TOLERANCE = 0.4, 0.15


def make_space() -> ConvNetSpace:
    """Two residual stages at 8 x 8 and 4 x 4 features."""

    def stage(*widths: int, stride: int) -> Stage:
        return Stage(widths, (1, 2), (1, 3, 5), (0.5, 1), stride=stride, block="residual")

    stages = [stage(8, 16, 24, stride=1), stage(16, 32, 48, stride=2)]
    return ConvNetSpace(stages, 10, resolutions=(16,), stem=Stem((8, 12), stride=2))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of every run."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def search(data: ImageData, seed: int, steps: int) -> Supernet:
    """Train weights and alpha together."""
    space = make_space()
    largest = measure([MACs(space)], space, space.largest())["macs"]
    rule = DifferentiableRule(
        lr=0.02,
        weight_decay=0.0,
        warmup=steps // 5,
        cost=ExpectedMACs(),
        cost_weight=2.0,
        cost_target=SHARE * largest,
    )
    supernet = Supernet(
        space,
        Classification(10),
        source=functools.partial(SharedWeights, seed=seed),
        rule=rule,
        optimizer=sgd,
        schedule=Cosine(warmup=0.05),
        clip=1.0,
        clip_algorithm="value",
        seed=seed,
    )
    return fit(supernet, data, steps)


def near(space: ConvNetSpace, macs: float, count: int, seed: int) -> list[Architecture]:
    """Return random architectures of about ``macs``."""
    meter, generator = MACs(space), torch.Generator().manual_seed(seed)
    found: dict[Architecture, None] = {}
    while len(found) < count:
        drawn = space.sample(generator)
        if abs(measure([meter], space, drawn)["macs"] / macs - 1) <= TOLERANCE:
            found[drawn] = None
    return list(found)


def row_of(seed: int, *, steps: int, count: int) -> dict[str, Any]:
    """Everything measured for one seed, accuracies in percent on the test split."""
    torch.set_num_threads(1)
    data = ImageData("cifar10", size=16, batch_size=64, eval_batch_size=1000, flip=True)
    supernet = search(data, seed, steps)
    space, found = supernet.space, supernet.rule.selected()
    assert found is not None
    assert isinstance(space, ConvNetSpace)
    macs = {name: measure([MACs(space)], space, a)["macs"] for name, a in (("found", found), ("top", space.largest()))}
    share = macs["found"] / macs["top"]

    def alone(architecture: Architecture, budget: int = steps) -> tuple[float, float]:
        """Train by itself; validation loss and test accuracy."""
        torch.manual_seed(seed)
        module = space.build(architecture)
        train(module, supernet.task, data, Recipe(budget, optimizer=sgd, schedule=Cosine(warmup=0.05), clip=1.0))
        supernet.calibrated(module, data.calibration_batches(16))
        validation = score(module, supernet.task, data.val_dataloader())
        return validation["loss"], 100 * score(module, supernet.task, data.test_dataloader())["accuracy"]

    randoms = [alone(architecture) for architecture in near(space, macs["found"], count, seed)]
    return {
        "seed": seed,
        "found": ", ".join(f"{name} {value}" for name, value in found.items()),
        "MACs / largest": share,
        "found alone": alone(found)[1],
        "random search": min(randoms)[1],
        "random mean": statistics.mean(accuracy for _, accuracy in randoms),
        "largest": alone(space.largest())[1],
        "largest, as many MACs": alone(space.largest(), max(1, round(steps * share)))[1],
    }


def run(quick: bool = False) -> Result:
    """Three seeds, two at a time; ``quick`` takes one seed, two random architectures and a tenth of the steps."""
    size = {"steps": 60, "count": 2} if quick else {"steps": STEPS, "count": RANDOM}
    seeds = SEEDS[: 1 if quick else None]
    with ProcessPoolExecutor(min(2, len(seeds)), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(functools.partial(row_of, **size), seeds))

    def lead(name: str) -> float:
        return statistics.mean(row["found alone"] - row[name] for row in found)

    rows = tuple({k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in found)
    share = statistics.mean(row["MACs / largest"] for row in found)
    return Result(
        rows,
        f"the architecture found ({100 * share:.0f} % of the MACs of the largest) is {lead('random search'):+.2f} "
        f"points from random search at equal cost (asked: > 0; mean of the random ones {lead('random mean'):+.2f}) and "
        f"{lead('largest'):+.2f} from the largest at its own cost (asked: > 0; at equal training MACs "
        f"{lead('largest, as many MACs'):+.2f}); means of {len(rows)} seeds",
        lead("random search") > 0 and lead("largest") > 0,
    )
