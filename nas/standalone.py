"""Training and scoring one static module, without a supernet and without a Trainer."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from supernets import Cosine, Task

__all__ = ["Recipe", "on_device", "score", "train"]


def _sgd(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)


def _cosine(progress: float) -> float:
    return Cosine(warmup=0.05)(progress)


@dataclass(frozen=True)
class Recipe:
    """How one module is trained.

    Args:
        steps: optimiser steps.
        optimizer: makes the optimiser from the parameters.
        schedule: factor on the learning rate as a function of progress in [0, 1].
        clip: bound on the absolute value of each gradient element, none by default.

    Raises:
        ValueError: ``steps < 1``, or ``clip`` is not above zero.
    """

    steps: int = 1000
    optimizer: OptimizerCallable = _sgd
    schedule: Callable[[float], float] = _cosine
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Recipe.steps must be >= 1, got {self.steps}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"Recipe.clip must be above 0, or null for no clipping, got {self.clip}")


def _forever(data: L.LightningDataModule, steps: int) -> Iterator[Any]:
    loader = data.train_dataloader()
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    done = 0
    for epoch in itertools.count():
        if callable(set_epoch):
            set_epoch(epoch)
        for batch in loader:
            yield batch
            done += 1
            if done == steps:
                return
        if done == 0:
            raise ValueError("the training split gives no batch; use more data or a smaller batch_size")


def on_device(module: nn.Module, batches: Iterable[Any]) -> Iterator[Any]:
    """Yield ``batches`` moved to the device of ``module``."""
    parameter = next(module.parameters(), None)
    for batch in batches:
        yield batch if parameter is None else move_data_to_device(batch, parameter.device)


def train(module: nn.Module, task: Task, data: L.LightningDataModule, recipe: Recipe) -> nn.Module:
    """Train ``module`` on the labels of the training split, in place, and return it in evaluation mode.

    Randomness (dropout) comes from torch's global state: seed it, or fork it, around the call.
    """
    optimizer = recipe.optimizer(list(module.parameters()))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.schedule(step / recipe.steps))
    module.train()
    for batch in on_device(module, _forever(data, recipe.steps)):
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(module(*task.inputs(batch)), batch, regularise=True))
        if recipe.clip is not None:
            nn.utils.clip_grad_value_(module.parameters(), recipe.clip)
        optimizer.step()
        scheduler.step()
    return module.eval()


def score(
    module: nn.Module,
    task: Task,
    batches: Iterable[Any],
    *,
    listen: Callable[[int, Any, Any], None] | None = None,
) -> dict[str, float]:
    """Return the task's metrics of ``module`` over ``batches``, in evaluation mode.

    Args:
        module: only its mode is changed.
        task: reads the batches.
        batches: read once.
        listen: told the number, the outputs and the batch itself of each.
    """
    parameter = next(module.parameters(), None)
    metrics = task.metrics() if parameter is None else task.metrics().to(parameter.device)
    module.eval()
    with torch.inference_mode():
        for number, batch in enumerate(on_device(module, batches)):
            outputs = module(*task.inputs(batch))
            task.update(metrics, outputs, batch)
            if listen is not None:
                listen(number, outputs, batch)
    return {name: float(value) for name, value in metrics.compute().items()}
