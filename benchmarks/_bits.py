"""A small convolutional network on CIFAR-10 in full precision, and the same network with bits to choose."""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks._training import fit
from nas.data import ImageData
from nas.objectives import prepare
from nas.standalone import score
from search_spaces import Architecture, ConvNetSpace, QuantizedSpace, Stage, Stem
from supernets import (
    Classification,
    Cosine,
    QuantizedWeights,
    SamplingRule,
    SharedWeights,
    SingleRule,
    Supernet,
    WeightQuantizer,
    calibration_batches,
    fit_scales,
)

__all__ = ["EPOCH", "accuracy", "cifar10", "full_precision", "quantized"]

EPOCH = 156  # steps over 20,000 images in batches of 128


def cifar10(seed: int = 0) -> ImageData:
    """20,000 training images, without augmentation; ``seed`` is that of their order."""
    data = ImageData("cifar10", batch_size=128, train_limit=20_000, seed=seed)
    prepare(data)
    return data


def space(expansions: tuple[float, ...] = (1,)) -> ConvNetSpace:
    """One residual network of 80 thousand parameters; eight of its layers have bits to choose, the ends have 8.

    Args:
        expansions: hidden channels of its blocks as a share of their width, 1 being the last.
    """
    stages = [
        Stage((16 * 2**i,), (1,), expansions=expansions, block="residual", stride=2 if i else 1) for i in range(3)
    ]
    return ConvNetSpace(stages, 10, stem=Stem((16,), stride=2))


def full_precision(data: ImageData, *, epochs: int = 12, seed: int = 0) -> Supernet:
    """The network trained in full precision from the initial weights of ``seed``."""
    supernet = Supernet(
        space(),
        Classification(10),
        source=lambda wanted: SharedWeights(wanted, seed=seed),
        rule=SingleRule("largest"),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=Cosine(),
        decay_norms=True,
        seed=seed,
    )
    torch.manual_seed(seed)
    return fit(supernet, data, epochs * EPOCH)


def quantized(
    trained: Supernet,
    data: ImageData,
    *,
    quantizer: WeightQuantizer,
    rule: SamplingRule,
    expansions: tuple[float, ...] = (1,),
) -> Supernet:
    """The trained network with bits to choose and scales of least squared error, to be fine-tuned by ``rule``."""
    given = QuantizedSpace(space(expansions))
    supernet = Supernet(
        given,
        trained.task,
        source=lambda wanted: QuantizedWeights(wanted, quantizer=quantizer),
        rule=rule,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=Cosine(),
        decay_norms=True,
    )
    source = supernet.source
    assert isinstance(source, QuantizedWeights)
    source.wrapped.load_state_dict(trained.source.state_dict())
    fit_scales(source, given.largest(), [trained.task.inputs(batch) for batch in calibration_batches(data, 4)])
    return supernet


def accuracy(supernet: Supernet, architecture: Architecture, data: ImageData, batches: Sequence[Any]) -> float:
    """Per cent of ``batches`` that a subnetwork gets right, batch norm calibrated for it."""
    module = supernet.calibrated(supernet.bind(architecture), calibration_batches(data, 8))
    return 100 * score(module, supernet.task, batches)["accuracy"]
