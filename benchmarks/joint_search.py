"""Are architecture and bitwidths better searched together than one after the other?

One supernet of residual networks with 2, 4 or 8 bits for the weights and the input of every layer, trained by the
sandwich rule, on digits and on MNIST at 14 x 14 pixels. NSGA-II seeks accuracy and bit operations three times with
equal evaluations of that supernet: jointly; half of them for the architecture at 8 bits and half for the bits of the
most accurate one; and, a stronger rival than is usual, half for the bits of any architecture on the front of the first
half. Fronts on the validation split are judged by hypervolume on the test split: over error, up to a tenth, and the
logarithm of bit operations, from the smallest to the largest network of the space, as a part of the whole rectangle.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import Result
from benchmarks._training import fit
from nas import BitOps, DigitsData, EvolutionController, ImageData, Problem, WeightSharing
from nas.costs import CostMeter
from search_spaces import Architecture, Choice, ConvNetSpace, QuantizedSpace, SearchSpace, Stage, Stem
from supernets import Classification, Cosine, QuantizedWeights, SharedWeights, Supernet
from trials import Measurement, Metric, Trial, TrialState
from trials.pareto import hypervolume, non_dominated

SEEDS = (0, 1, 2)
DATA = ("digits", "mnist")
STEPS = {"digits": 600, "mnist": 600}
TRIALS = 160
WORST = 0.1  # error at which a front counts for nothing
WAYS = ("jointly", "then bits of the best", "then bits of the front")
ACCURACY, BOPS = Metric("accuracy", "fraction", "maximize"), Metric("bops_product", "bit operation", "minimize")
Point = tuple[float, float]


class Bits(SearchSpace):
    """The bits of a few given architectures of a space.

    Args:
        space: with bits.
        networks: without bits; more than one is a choice of its own.
    """

    def __init__(self, space: QuantizedSpace, networks: Sequence[Architecture]) -> None:
        self.space, self.networks = space, tuple(networks)
        largest = [space.quantized(network, 8) for network in networks]
        own = space.choices[len(space.space.choices) :]
        bits = [Choice(c.name, c.candidates) for c in own if any(c.name in architecture for architecture in largest)]
        several = [Choice("network", tuple(range(len(networks))), "categorical")] if len(networks) > 1 else []
        self.choices = (*several, *bits)

    def whole(self, architecture: Architecture) -> Architecture:
        """Return the architecture with its network; bits of layers that it lacks are dropped."""
        network = self.networks[int(architecture.get("network", 0))]
        known = {name: value for name, value in architecture.items() if name != "network"}
        return self.space.architecture({**network, **known})

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the network."""
        return self.space.build(self.whole(architecture))

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return what it takes."""
        return self.space.inputs(self.whole(architecture), batch_size)


def make(name: str, seed: int) -> tuple[L.LightningDataModule, QuantizedSpace]:
    """Return data and space."""
    data: L.LightningDataModule
    if name == "digits":
        data = DigitsData(crop_padding=1, seed=seed)
    else:
        data = ImageData("mnist", size=14, train_limit=20_000, eval_batch_size=1000, seed=seed)
    first = Stage((8, 12, 16), (1, 2), (3, 5), (0.5, 1), stride=1 if name == "digits" else 2, block="residual")
    second = Stage((16, 24, 32), (1, 2), (3, 5), (0.5, 1), stride=2, block="residual")
    networks = ConvNetSpace(
        [first, second], 10, in_channels=1, resolutions=(8 if name == "digits" else 14,), stem=Stem((8, 12))
    )
    return data, QuantizedSpace(networks)


def optimizer(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """That of the example configurations."""
    return torch.optim.AdamW(parameters, lr=0.005, weight_decay=0.05)


def search(
    space: SearchSpace,
    whole: Callable[[Architecture], Architecture],
    score: Callable[[Architecture], Point],
    *,
    trials: int,
    seed: int,
) -> dict[Architecture, Point]:
    """Return what one search evaluates; a network met again is not evaluated, and not counted, again."""
    controller = EvolutionController(Problem(space, (ACCURACY, BOPS), seed=seed), population_size=20)
    seen: dict[Architecture, Point] = {}
    for number in itertools.count():
        asked = controller.ask(1) if len(seen) < trials and number < 20 * trials else []
        if not asked:
            return seen
        architecture = whole(asked[0])
        if architecture not in seen:
            seen[architecture] = score(architecture)
        values = zip((ACCURACY, BOPS), seen[architecture], strict=True)
        trial = Trial(
            number=number,
            architecture=asked[0],
            arch_id=asked[0].arch_id,
            state=TrialState.COMPLETE,
            measurements={m.name: Measurement(value, m.unit, m.direction) for m, value in values},
            started=float(number),
            finished=float(number),
        )
        controller.tell([trial])
    return seen


def best(seen: dict[Architecture, Point]) -> list[Architecture]:
    """Return the front, most accurate first."""
    points = list(seen.values())
    kept = non_dominated(points, ["maximize", "minimize"])
    front = [architecture for architecture, on in zip(seen, kept, strict=True) if on]
    return sorted(front, key=lambda architecture: -seen[architecture][0])


def volume(points: Sequence[Point], low: float, high: float) -> float:
    """Return the part of the rectangle of error and logarithmic bit operations that is dominated."""
    places = [[(1 - a) / WORST, math.log(bops / low) / math.log(high / low)] for a, bops in points]
    return float(hypervolume(np.minimum(places, 1.0), [1.0, 1.0], ["minimize", "minimize"]))


def row_of(case: tuple[str, int], *, steps: dict[str, int], trials: int) -> dict[str, object]:
    """Train one supernet, search it in three ways, judge the fronts."""
    torch.set_num_threads(1)
    name, seed = case
    data, space = make(name, seed)
    supernet = Supernet(
        space,
        Classification(10, label_smoothing=0.1),
        source=functools.partial(QuantizedWeights, source=functools.partial(SharedWeights, seed=seed)),
        optimizer=optimizer,
        schedule=Cosine(warmup=0.1),
        seed=seed,
    )
    fit(supernet, data, steps[name])
    meter = CostMeter(space, [BitOps(space)])
    on_val, on_test = (WeightSharing(supernet, data, split=split) for split in ("val", "test"))

    def score(architecture: Architecture, objective: WeightSharing = on_val) -> Point:
        return objective(architecture, seed=0).measurements["accuracy"], meter(architecture)["bops_product"]

    def bits_of(networks: Sequence[Architecture]) -> dict[Architecture, Point]:
        view = Bits(space, networks)
        return search(view, view.whole, score, trials=trials // 2, seed=seed)

    at_8_bits = functools.partial(space.quantized, weight_bits=8)
    first = search(space.space, at_8_bits, score, trials=trials // 2, seed=seed)
    networks = list(dict.fromkeys(space.base(architecture) for architecture in best(first)))
    seen = {
        WAYS[0]: search(space, lambda architecture: architecture, score, trials=trials, seed=seed),
        WAYS[1]: first | bits_of(networks[:1]),
        WAYS[2]: first | bits_of(networks),
    }
    low, high = (meter(end)["bops_product"] for end in (space.smallest(), space.largest()))
    row: dict[str, object] = {"data": name, "seed": seed, "largest, 8 bits": 100 * score(space.largest(), on_test)[0]}
    row["smallest, 2 bits"] = 100 * score(space.smallest(), on_test)[0]
    for way, found in seen.items():
        row[f"{way}: evaluations"] = len(found)
        row[way] = volume([score(architecture, on_test) for architecture in best(found)], low, high)
    return row


def run(quick: bool = False) -> Result:
    """Three seeds on two data sets; ``quick`` takes one seed of the digits, a quarter of the steps and 40 trials."""
    steps = {name: count // 4 for name, count in STEPS.items()} if quick else STEPS
    cases = [(name, seed) for seed in SEEDS for name in DATA][: 1 if quick else None]
    job = functools.partial(row_of, steps=steps, trials=40 if quick else TRIALS)
    with ProcessPoolExecutor(min(2, len(cases)), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(job, cases))
    verdicts, passed = [], True
    for name in dict.fromkeys(name for name, _ in cases):
        rows = [row for row in found if row["data"] == name]
        means = {way: statistics.mean(float(str(row[way])) for row in rows) for way in WAYS}
        wins = sum(float(str(row[WAYS[0]])) > float(str(row[WAYS[1]])) for row in rows)
        passed &= wins == len(rows)
        verdicts.append(
            f"{name}: {means[WAYS[0]]:.3f} jointly, {means[WAYS[1]]:.3f} with the bits of the best architecture after "
            f"it (below in {wins} of {len(rows)} seeds), {means[WAYS[2]]:.3f} with those of any on the front"
        )
    table = tuple({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in found)
    return Result(
        table,
        f"hypervolume on the test split, means: {'; '.join(verdicts)} (asked: joint search above "
        "architecture-then-bits in every seed)",
        passed,
    )
