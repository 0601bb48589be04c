"""Zoos of small perceptrons on MNIST, and conditions that are a few labelled examples of a task."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypernets import LabelledExamples
from nas import ImageData
from nas.zoo import starts, train_many

__all__ = ["Split", "Zoo", "bank", "from_banks", "mnist", "perceptron", "pooled", "train_zoo"]

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Zoo:
    """Networks ``(N, *shape)`` by name, and the position of each one's task ``(N,)``."""

    tensors: Mapping[str, Tensor]
    tasks: Tensor


@functools.cache
def mnist() -> Mapping[str, Split]:
    """Split -> images ``(N, 1, 14, 14)`` in [0, 1] and labels; every fourth image to train on."""
    splits = ImageData("mnist").splits
    found = {}
    for name, step in (("train", 4), ("validation", 3), ("test", 1)):
        split = getattr(splits, name)
        images = F.avg_pool2d(split.images[::step].float() / 255, 2)
        found[name] = (images, split.labels[::step].long())
    return found


def pooled(images: Tensor) -> Tensor:
    """``(N, 1, 14, 14)`` as standardised vectors ``(N, 49)``."""
    return ((F.avg_pool2d(images, 2) - 0.13) / 0.25).flatten(1)


def perceptron(classes: int) -> nn.Module:
    """49-24-classes."""
    return nn.Sequential(nn.Linear(49, 24), nn.ReLU(), nn.Linear(24, classes))


def train_zoo(module: nn.Module, splits: Sequence[Split], *, networks: int, steps: int, shared: bool, seed: int) -> Zoo:
    """Train ``networks`` on each task; ``shared`` lets all of all tasks start alike."""
    parts = []
    for task, (inputs, labels) in enumerate(splits):
        start = starts(module, networks, shared=shared, seed=1000 * seed + (0 if shared else 1 + task))
        parts.append(train_many(module, start, inputs, labels, steps=steps, seed=1000 * seed + task))
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Zoo(tensors, torch.arange(len(splits)).repeat_interleave(networks))


def bank(field: LabelledExamples, split: Split, *, shots: int, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` conditions of ``shots`` random examples of every class, ``(count, shots * classes, ...)``."""
    inputs, labels = split
    chosen = []
    for label in range(field.classes):
        members = torch.nonzero(labels == label).flatten()
        chosen.append(members[torch.randint(len(members), (count, shots), generator=generator)])
    rows = torch.cat(chosen, dim=1)
    return field.of(inputs[rows], labels[rows])


def from_banks(banks: Sequence[Tensor]) -> Callable[[int, torch.Generator], Mapping[str, Any]]:
    """Return what draws one condition of a task out of its bank."""

    def draw(task: int, generator: torch.Generator) -> Mapping[str, Any]:
        place = int(torch.randint(len(banks[task]), (), generator=generator))
        return {"data": banks[task][place : place + 1]}

    return draw
