"""Two trained networks grown into one of twice the width: templates against random and zero (CIFAR-10 at 8 x 8).

Two members of half the width are trained in template form, put side by side by each mode of ``grow``, and the grown
network is trained for a few steps more: as plain weights, and as the mixtures of templates that it consists of, which
is how MixtureGrowth goes on and is judged; random new parts are free beside the mixtures. Beside it: the members'
ensemble, and the wide network trained from scratch for as many multiply-accumulates as members and tuning took
together. Judged is a perceptron of three hidden layers whose templates start normal with variance 2 / fan-in (He et
al., arXiv 1502.01852). Beside it, unjudged: the same perceptron with the smaller start that PyTorch gives its layers,
and a small residual network.
"""

import copy
import functools
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, Literal

import torch
from torch import nn

from benchmarks import Result
from benchmarks._training import fit
from nas import ImageData, MACs
from nas.costs import measure
from nas.objectives import prepare
from nas.standalone import Recipe, score, train
from search_spaces import ConvNetSpace, MLPSpace, SearchSpace, Stage, Stem
from supernets import (
    Classification,
    Ensemble,
    Member,
    SingleRule,
    Supernet,
    TemplateWeights,
    calibrate,
    calibration_batches,
    grow,
    grow_mixed,
    member_of,
)
from supernets.growth import Mode

SEEDS = (0, 1, 2)
STEPS, TUNING = 800, 200
TEMPLATES = 3
JUDGED = "perceptron"
MIXED: tuple[Literal["orthogonal", "random"], ...] = ("orthogonal", "random")
MODES: tuple[Mode, ...] = ("orthogonal", "random", "zero")


def spaces() -> dict[str, SearchSpace]:
    """Two architectures that matter in each: the smallest, and the largest with twice its width."""
    stages = [
        Stage((8, 16), (1,), block="residual"),
        Stage((16, 32), (2,), stride=2, block="residual"),
        Stage((32, 64), (1,), stride=2, block="residual"),
    ]
    perceptron = MLPSpace(192, 10, widths=(128, 256), depths=(3,))
    return {
        JUDGED: perceptron,
        "perceptron, small start": perceptron,
        "residual": ConvNetSpace(stages, 10, resolutions=(8,), stem=Stem((8, 16))),
    }


def sgd(parameters: Any, *, lr: float) -> torch.optim.Optimizer:
    """The optimiser of every run."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def linear(progress: float, *, steps: int) -> float:
    """Fifty steps of warm-up, then a straight line to 2 %."""
    return min(1.0, (progress * steps + 1) / 50) * max(0.02, 1 - progress)


def source(space: SearchSpace, *, seed: int, he: bool) -> TemplateWeights:
    """Return templates of every layer, started for the smallest architecture by He's rule or by the layers' own."""
    made = TemplateWeights(space, templates=TEMPLATES, share="layer", seed=seed)
    if he:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for bank in made.mixtures(space.smallest()).values():
                fan_in = bank.templates[0, 0].numel()
                bank.templates.copy_(torch.randn(bank.templates.shape, generator=generator) * math.sqrt(2 / fan_in))
    return made


def member(space: SearchSpace, data: ImageData, seed: int, steps: int, *, he: bool) -> Member:
    """Train one network of half the width, in template form."""
    supernet = Supernet(
        space,
        Classification(10),
        source=functools.partial(source, seed=seed, he=he),
        rule=SingleRule("smallest"),
        optimizer=functools.partial(sgd, lr=0.05),
        schedule=functools.partial(linear, steps=steps),
        decay_norms=True,
        seed=seed,
    )
    return member_of(fit(supernet, data, steps), space.smallest(), calibration_batches(data, 16))


def row_of(task: tuple[str, int], *, steps: int, tuning: int) -> dict[str, float]:
    """Everything measured for one network and seed: accuracy on the test split in percent, and a difference."""
    torch.set_num_threads(1)
    name, seed = task
    space = spaces()[name]
    data = functools.partial(ImageData, "cifar10", size=8, batch_size=128, train_limit=20_000)
    classification = Classification(10)
    fixed = data(seed=seed)
    prepare(fixed)
    calibration, test = calibration_batches(fixed, 16), list(fixed.test_dataloader())

    def accuracy(module: nn.Module, *, norms: bool = True) -> float:
        if norms:
            module = calibrate(copy.deepcopy(module), calibration, classification.inputs)
        return 100 * score(module, classification, test)["accuracy"]

    def tuned(module: nn.Module, count: int, lr: float, order: int) -> nn.Module:
        shuffled = data(seed=order)
        prepare(shuffled)
        recipe = Recipe(
            steps=count, optimizer=functools.partial(sgd, lr=lr), schedule=functools.partial(linear, steps=count)
        )
        return train(copy.deepcopy(module), classification, shuffled, recipe)

    members = [member(space, data(seed=seed + offset), seed + offset, steps, he=name == JUDGED) for offset in (0, 100)]
    ensemble = Ensemble([member.module for member in members])
    row = {
        "first": accuracy(members[0].module, norms=False),
        "second": accuracy(members[1].module, norms=False),
        "ensemble": accuracy(ensemble, norms=False),
    }
    for mode in MODES:
        grown = grow(space, members, space.largest(), mode=mode, seed=seed)
        if mode == "zero":
            images = torch.cat([images for images, _ in test[:4]]).double()
            doubled = [replace(each, module=copy.deepcopy(each.module).double()) for each in members]
            with torch.no_grad():
                exact = grow(space, doubled, space.largest(), mode=mode, seed=seed)(images)
                expected = Ensemble([each.module for each in doubled]).eval()(images)
            row["zero - ensemble"] = float((exact - expected).abs().max())
        row[f"{mode}, grown"] = accuracy(grown, norms=mode != "zero")
        row[f"{mode}, tuned"] = accuracy(tuned(grown, tuning, 0.01, seed + 7), norms=False)
    for mode in MIXED:
        mixed = grow_mixed(space, members, space.largest(), mode=mode, seed=seed)
        row[f"{mode}, tuned as templates"] = accuracy(tuned(mixed, tuning, 0.01, seed + 7), norms=False)
    costs = [measure([MACs(space)], space, each)["macs"] for each in (space.smallest(), space.largest())]
    equal = round((2 * steps * costs[0] + tuning * costs[1]) / costs[1])
    torch.manual_seed(seed)
    row["scratch, equal MACs"] = accuracy(tuned(space.build(space.largest()), equal, 0.05, seed), norms=False)
    return row


def run(quick: bool = False) -> Result:
    """Three networks, three seeds each, two runs at a time; ``quick`` takes one seed and an eighth of the steps."""
    tasks = [(name, seed) for name in spaces() for seed in SEEDS[: 1 if quick else None]]
    steps, tuning = (STEPS // 8, TUNING // 8) if quick else (STEPS, TUNING)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(tasks, pool.map(functools.partial(row_of, steps=steps, tuning=tuning), tasks), strict=True))
    rows = []
    columns = list(found[tasks[0]])
    for column in columns:
        row: dict[str, object] = {"": column}
        for name in spaces():
            values = [measured[column] for (network, _), measured in found.items() if network == name]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            exact = f"{max(values):.1e}"
            row[name] = exact if "-" in column else f"{statistics.mean(values):.2f} +- {spread:.2f}"
        rows.append(row)
    judged = [measured for (name, _), measured in found.items() if name == JUDGED]
    gain = statistics.mean(row["orthogonal, tuned as templates"] - row["random, tuned as templates"] for row in judged)
    gap = max(row["zero - ensemble"] for row in found.values())
    return Result(
        tuple(rows),
        f"perceptron, tuned as templates: {gain:+.2f} points from random (asked: >= +0.50); zero growth differs "
        f"from the ensemble by {gap:.1e} in float64 (asked: 0 but for rounding, <= 1e-10)",
        gain >= 0.5 and gap <= 1e-10,
    )
