"""A training step, generation and size of a chunked hypernetwork against a dense one, on an MLP of 79,510 weights.

The dense one is hyperlight's where that package is installed (``pip install hyperlight``, never needed otherwise), and
ours of the same layers (16, 64, 128), whose head has the same 129 weights per target weight, everywhere. All train with
the same Adam on the same batch of 64. Every round times three
calls of each in a row, in a new order; figures are medians, ratios medians over rounds.
"""

import importlib
import importlib.util
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks import Result
from hypernets import ChunkedHyperNetwork, DenseHyperNetwork, HyperNetwork, Target, Unit, apply

REPEATS = 3
CONDITION = torch.rand(1, 10, generator=torch.Generator().manual_seed(0))
DENSE = "dense, ours"
PEER = "dense, hyperlight"


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


class Step:
    """One optimiser step of the parameters that make the weights of the target, or of the target itself."""

    def __init__(self, module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(64, 784, generator=generator)
        self.labels = torch.randint(10, (64,), generator=generator)
        self.forward = forward
        self.size = sum(parameter.numel() for parameter in module.parameters())
        self.optimizer = torch.optim.Adam(module.parameters(), 1e-3)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.forward(self.inputs), self.labels).backward()
        self.optimizer.step()


def ours(hypernet: HyperNetwork) -> tuple[Step, Callable[[], Any]]:
    module = mlp().to("meta")
    condition = {"g": CONDITION}

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        weights = hypernet.generate(condition)
        return apply(module, {name: value[0] for name, value in weights.items()}, inputs)

    return Step(hypernet, forward), lambda: hypernet.generate(condition)


def peer() -> tuple[Step, Callable[[], Any]]:
    hyperlight = importlib.import_module("hyperlight")
    module = mlp()
    hypernet = hyperlight.HyperNet(
        input_shapes={"g": (10,)},
        output_shapes={name: tuple(value.shape) for name, value in module.named_parameters()},
        hidden_sizes=[16, 64, 128],
    )
    module.to("meta")

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return functional_call(module, hypernet(g=CONDITION[0]), (inputs,))

    return Step(hypernet, forward), lambda: hypernet(g=CONDITION[0])


def medians(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round."""
    order = list(calls)
    shuffle = random.Random(0).shuffle
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            calls[name]()  # the caches hold what this one needs, as they do in a loop of it alone
            start = time.process_time()
            for _ in range(REPEATS):
                calls[name]()
            found[name].append((time.process_time() - start) / REPEATS)
    return found


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))


def run(quick: bool) -> Result:
    """Twenty rounds; ``quick`` takes five."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    target = Target.of(mlp())
    conditions = {"g": Unit(10)}
    made = {
        "chunked, ours": ours(ChunkedHyperNetwork(target, conditions)),
        DENSE: ours(DenseHyperNetwork(target, conditions, hidden=(16, 64, 128))),
    }
    if importlib.util.find_spec("hyperlight"):
        made[PEER] = peer()
    plain = mlp()
    rounds = 5 if quick else 20
    steps = medians({"the target alone": Step(plain, plain), **{n: step for n, (step, _) in made.items()}}, rounds)
    with torch.no_grad():
        generation = medians({name: generate for name, (_, generate) in made.items()}, rounds)
    sizes = {name: step.size for name, (step, _) in made.items()}
    rows = tuple(
        {
            "weights from": name,
            "parameters": f"{sizes.get(name, target.numel):,}",
            "per target weight": f"{sizes.get(name, target.numel) / target.numel:.1f}",
            "Adam step, ms": f"{1e3 * statistics.median(steps[name]):.2f}",
            "generation, ms": f"{1e3 * statistics.median(generation[name]):.2f}" if name in generation else "",
        }
        for name in steps
    )
    slow = PEER if PEER in made else DENSE
    step, generate = ratio(steps, slow, "chunked, ours"), ratio(generation, slow, "chunked, ours")
    size = sizes["chunked, ours"] / target.numel
    return Result(
        rows,
        f"against {slow}, the chunked hypernetwork takes an Adam step {step:.0f} x faster (asked: >= 20) and generates "
        f"{generate:.0f} x faster (asked: >= 10), with {size:.1f} parameters per target weight (asked: <= 4)",
        step >= 20 and generate >= 10 and size <= 4,
    )
