"""How much of what weight sharing costs does Mixture-of-Supernets give back, on a task where widths interfere?

A random two-layer teacher (12 inputs, 24 tanh units, 4 outputs) is learned by one-hidden-layer networks of 4, 8, 16, 32
and 64 units: alone, in a plain supernet, and in mixtures of experts. All widths are trained in every step, 3,000 steps
on fresh data, from normal weights and zero biases. The gap is the normalised squared error above that of the same
network trained alone, averaged over widths; a mixture closes a part of the plain supernet's gap. Experts behind a
router that sees no architecture are the authors' own control: more parameters, no routing.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks import Result
from search_spaces import Architecture, MLPSpace, SearchSpace
from supernets import MixtureWeights, SharedWeights, WeightSource

SEEDS = (0, 1, 2, 3, 4, 5)
STEPS = 3000
INPUTS, OUTPUTS, TEACHER = 12, 4, 24
ASKED = {"2 experts, by layer": 20.0, "4 experts, by layer": 30.0}
CONTROL, CONTROL_BOUND = "2 experts, constant encoding", 10.0
SOURCES: Mapping[str, Callable[..., WeightSource]] = {
    "plain sharing": SharedWeights,
    "2 experts, by layer": partial(MixtureWeights, hidden=32),
    "4 experts, by layer": partial(MixtureWeights, hidden=32, experts=4),
    "2 experts, by neuron": partial(MixtureWeights, hidden=32, routing="neuron"),
    CONTROL: partial(MixtureWeights, hidden=32, encoding="constant"),
}


def make_space() -> MLPSpace:
    return MLPSpace(INPUTS, OUTPUTS, widths=(4, 8, 16, 32, 64), depths=(1,), batch_norm=False)


class Teacher:
    """``T2 tanh(1.5 (T1 x + b))`` with normal weights."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(TEACHER, INPUTS, generator=generator) / INPUTS**0.5 * 1.5
        self.bias = torch.randn(TEACHER, generator=generator) * 0.5
        self.second = torch.randn(OUTPUTS, TEACHER, generator=generator) / TEACHER**0.5

    def __call__(self, inputs: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(inputs, self.first, self.bias) * 1.5), self.second)


def initialise(source: WeightSource, seed: int) -> WeightSource:
    """Draw all versions of the four tensors from one distribution: normal weights, zero biases."""
    scales = {"linear1.weight": INPUTS**-0.5, "linear1.bias": 0.0, "head.weight": 0.5 * 64**-0.5, "head.bias": 0.0}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            tensor = name.rpartition("largest.")[2].rpartition("/")[2]
            if tensor in scales:
                parameter.normal_(0, scales[tensor], generator=generator)
    return source


def answer(source: WeightSource, architecture: Architecture, inputs: Tensor) -> Tensor:
    module = source.skeletons.borrow(architecture, source.device)
    outputs: Tensor = functional_call(module, source(architecture), (inputs,))
    return outputs


def train(source: WeightSource, architectures: Sequence[Architecture], teacher: Teacher, seed: int, steps: int) -> None:
    optimizer = torch.optim.Adam(source.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed + 2)
    for _ in range(steps):
        inputs = torch.randn(256, INPUTS, generator=generator)
        targets = teacher(inputs)
        optimizer.zero_grad()
        torch.stack([F.mse_loss(answer(source, a, inputs), targets) for a in architectures]).sum().backward()
        optimizer.step()
        schedule.step()


def errors(space: SearchSpace, source: WeightSource, teacher: Teacher, seed: int) -> dict[Architecture, float]:
    """Squared error over the variance of the targets, on 4,000 new examples."""
    inputs = torch.randn(4000, INPUTS, generator=torch.Generator().manual_seed(seed + 1))
    targets = teacher(inputs)
    variance = targets.var(0).mean()
    with torch.no_grad():
        return {a: float(F.mse_loss(answer(source, a, inputs), targets) / variance) for a in space.architectures()}


def gaps(seed: int, steps: int) -> dict[str, float]:
    """Mean error above networks trained alone, by way of sharing; and the diagnostics of the mixture by layer."""
    torch.set_num_threads(1)
    space, teacher = make_space(), Teacher(seed)
    architectures = list(space.architectures())
    alone = {}
    for architecture in architectures:
        source = initialise(SharedWeights(space), seed)
        train(source, [architecture], teacher, seed, steps)
        alone[architecture] = errors(space, source, teacher, seed)[architecture]
    print(f"seed {seed}: networks alone are trained", flush=True)
    found = {"alone": statistics.fmean(alone.values())}
    for name, make in SOURCES.items():
        shared = initialise(make(space, seed=seed), seed)
        train(shared, architectures, teacher, seed, steps)
        reached = errors(space, shared, teacher, seed)
        found[name] = statistics.fmean(reached[a] - alone[a] for a in architectures)
        print(f"seed {seed}, {name}: {found[name]:.4f} above them", flush=True)
    return found


def run(quick: bool) -> Result:
    steps, seeds = (200, SEEDS[:2]) if quick else (STEPS, SEEDS)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(gaps, steps=steps), seeds))
    closed = {name: [100 * (1 - result[name] / result["plain sharing"]) for result in found] for name in SOURCES}
    rows = tuple(
        {
            "weights": name,
            "gap to networks alone": f"{statistics.fmean(result[name] for result in found):.4f}",
            "gap closed, %": f"{statistics.fmean(parts):.1f}",
            "sd over seeds": f"{statistics.stdev(parts):.1f}",
        }
        for name, parts in closed.items()
    )
    mean = {name: statistics.fmean(parts) for name, parts in closed.items()}
    return Result(
        rows,
        f"{len(seeds)} seeds; networks alone have errors of {statistics.fmean(r['alone'] for r in found):.4f}; of "
        "the gap that plain sharing leaves, "
        + ", ".join(f"{name} close {mean[name]:.1f} % (asked: >= {asked:g})" for name, asked in ASKED.items())
        + f", {CONTROL} {mean[CONTROL]:.1f} % (asked: <= {CONTROL_BOUND:g})",
        all(mean[name] >= asked for name, asked in ASKED.items()) and mean[CONTROL] <= CONTROL_BOUND,
    )
