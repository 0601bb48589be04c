"""Implicit weights (NeuMeta) on a residual network with batch norm, every block elastic (CIFAR-10 at 8 x 8).

The largest network is trained, its channels are put in order, along shortcuts too, and resampled weights are trained on
at random widths, depths and expansions. Tested are the smallest, the middle and the largest candidate and one network
between the candidates, all with batch-norm statistics of their own. Beside it: resampling the trained network without
more training; weights shared by prefix, trained as long from the same network; and each of these networks trained
alone for as many steps.
"""

import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks import Result
from benchmarks._neumeta import accuracies, trained
from nas import ImageData
from search_spaces import Architecture, ConvNetSpace, Stage, Stem
from supernets import (
    Classification,
    ImplicitWeights,
    SandwichRule,
    SharedWeights,
    SingleRule,
    Supernet,
    UniformRule,
    WeightSource,
)

SEEDS = (0, 1)
TEACHER, JOINT = 1000, 1000
RATE, JOINT_RATE = 5e-3, 3e-3
CALIBRATION = 8
BETWEEN = {
    "stem.width": 14,
    "stage1.width": 15,
    "stage1.depth": 2,
    "stage1.expansion": 0.6,
    "stage2.width": 30,
    "stage2.depth": 2,
    "stage2.expansion": 0.7,
}


def make_space() -> ConvNetSpace:
    """Two residual stages: 648 networks."""

    def stage(*widths: int, stride: int) -> Stage:
        return Stage(widths, (1, 2), expansions=(0.5, 0.75, 1), stride=stride, block="residual")

    return ConvNetSpace(
        [stage(12, 18, 24, stride=1), stage(24, 36, 48, stride=2)], 10, resolutions=(8,), stem=Stem(widths=(12, 16))
    )


def only(architecture: Architecture) -> ConvNetSpace:
    """Return the space of one network."""

    def stage(name: str, stride: int) -> Stage:
        width, depth = architecture.integer(f"{name}.width"), architecture.integer(f"{name}.depth")
        expansion = float(architecture[f"{name}.expansion"])
        return Stage((width,), (depth,), expansions=(expansion,), stride=stride, block="residual")

    stem = Stem(widths=(architecture.integer("stem.width"),))
    return ConvNetSpace([stage("stage1", 1), stage("stage2", 2)], 10, resolutions=(8,), stem=stem)


def one_seed(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """Everything for one seed: method -> network -> accuracy."""
    torch.set_num_threads(1)
    scale = 20 if quick else 1
    data = ImageData("cifar10", size=8, batch_size=128, flip=True, crop_padding=1, seed=seed)
    data.setup("fit")
    space = make_space()
    teacher = SharedWeights(space, seed=seed)
    trained(teacher, SingleRule("largest"), data, steps=TEACHER // scale, lr=RATE, seed=seed)
    implicit = ImplicitWeights(space, layers=2, seed=seed)
    implicit.shared.largest.load_state_dict(teacher.largest.state_dict())
    unordered = ImplicitWeights(space, layers=2, seed=seed)
    unordered.shared.largest.load_state_dict(teacher.largest.state_dict())
    implicit.sort()
    candidates = {"smallest": space.smallest(), "middle": space.middle(), "largest": space.largest()}
    networks = {**candidates, "between": implicit.sized(BETWEEN)}

    def score(source: WeightSource, chosen: dict[str, Architecture]) -> dict[str, float]:
        supernet = Supernet(source.space, Classification(10), source=lambda _: source).eval()
        return accuracies(supernet, chosen, data, calibration=CALIBRATION)

    def joint(source: WeightSource) -> WeightSource:
        trained(source, SandwichRule(1), data, steps=JOINT // scale, lr=JOINT_RATE, seed=seed)
        return source

    found = {"resampling alone, unordered": score(unordered, networks), "resampling alone": score(implicit, networks)}
    found["implicit, trained"] = score(joint(implicit), networks)
    teacher.sort()
    found["shared by prefix, trained"] = score(joint(teacher), candidates)
    found["trained alone"] = {}
    for name, architecture in networks.items():
        alone = SharedWeights(only(architecture), seed=seed)
        trained(alone, UniformRule(), data, steps=(TEACHER + JOINT) // scale, lr=RATE, seed=seed)
        found["trained alone"][name] = score(alone, {name: alone.space.largest()})[name]
    return found


def run(quick: bool) -> Result:
    """Train every method and compare."""
    seeds = SEEDS[:1] if quick else SEEDS
    with ProcessPoolExecutor(len(seeds), mp_context=get_context("spawn")) as pool:
        outcomes = list(pool.map(one_seed, seeds, [quick] * len(seeds)))
    networks = ("smallest", "middle", "between", "largest")
    mean = {
        method: {name: statistics.mean(found[method][name] for found in outcomes) for name in scores}
        for method, scores in outcomes[0].items()
    }
    rows = tuple(
        {"accuracy, %": method, **{name: f"{scores[name]:.1f}" if name in scores else "" for name in networks}}
        for method, scores in mean.items()
    )
    smaller = networks[:3]
    gain = min(mean["implicit, trained"][name] - mean["resampling alone"][name] for name in smaller)
    behind = {name: mean["trained alone"][name] - mean["implicit, trained"][name] for name in networks}
    gaps = ", ".join(f"{behind[name]:.1f} ({name})" for name in networks)
    verdict = (
        f"trained implicit weights are at least {gain:.1f} points above resampling alone (asked > 0) and behind "
        f"networks trained alone by {gaps}; published for a full network: about 24"
    )
    return Result(rows, verdict, gain > 0)
