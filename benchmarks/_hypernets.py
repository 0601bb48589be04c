"""The deep target of the magnitude-invariance benchmarks, its data, and training it through a hypernetwork."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypernets import (
    ChunkedHyperNetwork,
    DenseHyperNetwork,
    HyperNetwork,
    ImplicitHyperNetwork,
    Parametrization,
    RecurrentHyperNetwork,
    Target,
    Unit,
    apply,
    diagnose,
)
from nas import ImageData

__all__ = ["GENERATORS", "OPTIMIZERS", "Outcome", "deep_target", "generator_of", "pooled_mnist", "train"]

BATCH = 128
GENERATORS: Mapping[str, Callable[..., HyperNetwork]] = {
    "dense": functools.partial(DenseHyperNetwork, hidden=(16, 128)),
    "chunked": functools.partial(ChunkedHyperNetwork, hidden=(16, 64)),
    "low rank": functools.partial(ChunkedHyperNetwork, hidden=(16, 64), low_rank_above=1000, rank=8),
    "recurrent": functools.partial(RecurrentHyperNetwork, width=64),
    "implicit": ImplicitHyperNetwork,
}

OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam 1e-3": functools.partial(torch.optim.Adam, lr=1e-3),
    "SGD 1e-2": functools.partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
}


@functools.cache
def pooled_mnist() -> Mapping[str, tuple[Tensor, Tensor]]:
    """Split -> flat 14 x 14 images, standardised, and labels."""
    data = ImageData("mnist")
    found = {}
    for name in ("train", "validation", "test"):
        split = getattr(data.splits, name)
        images = F.avg_pool2d(split.images.float() / 255, 2)
        found[name] = (((images - 0.13) / 0.31).flatten(1), split.labels.long())
    return found


def deep_target() -> nn.Module:
    """Six linear layers: deep enough that the scale of the weights decides whether they train."""
    sizes = [196, 48, 48, 48, 48, 48]
    layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.LeakyReLU())]
    return nn.Sequential(*layers, nn.Linear(48, 10))


@dataclass(frozen=True)
class Outcome:
    """What training one hypernetwork came to.

    Attributes:
        accuracy: on the test split, mean over 16 conditions.
        lowest: the worst of these conditions.
        shuffled: mean accuracy of every condition with the weights of another.
        early: mean training loss of steps 50 to 100.
        delta: norm of the deltas over that of the weights.
    """

    accuracy: float
    lowest: float
    shuffled: float
    early: float
    delta: float


def generator_of(name: str, parametrization: Parametrization, seed: int) -> HyperNetwork:
    """Return an untrained hypernetwork of the deep target."""
    torch.manual_seed(seed)
    return GENERATORS[name](Target.of(deep_target()), {"strength": Unit()}, parametrization=parametrization)


def move(labels: Tensor, strength: float) -> Tensor:
    """Move labels on by 0, 1 or 2 classes, by thirds of the condition."""
    return (labels + min(int(3 * strength), 2)) % 10


def train(
    hypernet: HyperNetwork,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    *,
    seed: int,
    steps: int,
    moved: bool = False,
) -> Outcome:
    """Train with one random condition a step, and test; ``moved`` makes the labels depend on it."""
    module = deep_target().to("meta")
    images, labels = pooled_mnist()["train"]
    descent = optimizer(hypernet.parameters())
    generator = torch.Generator().manual_seed(1000 + seed)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        condition = hypernet.draw(1, generator=generator)
        truth = move(labels[chosen], condition["strength"].item()) if moved else labels[chosen]
        weights = {name: value[0] for name, value in hypernet.generate(condition).items()}
        loss = F.cross_entropy(apply(module, weights, images[chosen]), truth)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    images, labels = pooled_mnist()["test"]
    condition = hypernet.draw(16, generator=torch.Generator().manual_seed(5))
    strengths = condition["strength"].tolist()
    hits: list[float] = []

    def accuracy(weights: Mapping[str, Tensor], k: int) -> float:
        truth = move(labels, strengths[k]) if moved else labels
        hits.append((apply(module, weights, images).argmax(1) == truth).float().mean().item())
        return hits[-1]

    found = diagnose(hypernet, condition, accuracy, generator=torch.Generator().manual_seed(6))
    early = losses[50:100]
    return Outcome(
        accuracy=found.matched or 0.0,
        lowest=min(hits[:16]),
        shuffled=found.shuffled or 0.0,
        early=sum(early) / len(early) if early else float("nan"),
        delta=found.delta,
    )
