"""What the benchmarks of implicit weights share: a small network in many widths, its training and its scores."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks._training import fit
from nas.data import ImageDataModule
from search_spaces import Architecture, FactorySpace
from supernets import Classification, Cosine, SamplingRule, Supernet, WeightSource, calibrate, calibration_batches

__all__ = ["Digits", "accuracies", "digit_space", "trained"]


class Digits(nn.Module):
    """Two convolutions and a linear layer on 14 x 14 images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``(B, 10)``."""
        hidden = F.avg_pool2d(self.first(images).relu(), 2)
        logits: torch.Tensor = self.head(self.second(hidden).relu().mean((2, 3)))
        return logits


def digit_space(widths: Sequence[int]) -> FactorySpace:
    """Return the space of :class:`Digits` of these widths."""
    return FactorySpace(Digits, {"width": list(widths)}, input_shape=(1, 14, 14))


def trained(
    source: WeightSource,
    rule: SamplingRule,
    data: ImageDataModule,
    *,
    steps: int,
    lr: float,
    classes: int = 10,
    seed: int = 0,
) -> Supernet:
    """Train a source under a rule with Adam, the learning rate rising to ``lr`` and falling to zero."""
    supernet = Supernet(
        source.space,
        Classification(classes),
        source=lambda space: source,
        rule=rule,
        optimizer=functools.partial(torch.optim.Adam, lr=lr),
        schedule=Cosine(warmup=0.3),
        seed=seed,
    )
    return fit(supernet, data, steps)


@torch.no_grad()
def accuracies(
    supernet: Supernet, architectures: Mapping[Any, Architecture], data: ImageDataModule, *, calibration: int = 0
) -> dict[Any, float]:
    """Return the accuracy of subnetworks on the test split, in percent."""
    found = {}
    batches = calibration_batches(data, calibration) if calibration else []
    for name, architecture in architectures.items():
        module = supernet.bind(architecture)
        if calibration:
            calibrate(module, batches, supernet.task.inputs)
        hits = count = 0
        for images, labels in data.test_dataloader():
            hits += int((module(images).argmax(1) == labels).sum())
            count += len(labels)
        found[name] = 100 * hits / count
    return found
