"""Subnetworks that are scored beside each other, batch by batch."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from supernets.calibration import norms
from supernets.tasks import Task

__all__ = ["Anchors"]


@final
class Anchors:
    """Modules by name, and the metrics of each.

    Args:
        modules: name -> what is scored.
        task: whose metrics are taken.
        device: of the metrics.
    """

    def __init__(self, modules: Mapping[str, nn.Module], task: Task, device: torch.device) -> None:
        self.modules = modules
        self._task = task
        self._metrics = {name: task.metrics().to(device) for name in modules}

    @property
    def normalise(self) -> bool:
        """Whether some module has statistics that must be calibrated first."""
        return any(norms(module) for module in self.modules.values())

    def update(self, batch: Any) -> None:
        """Score every module on one batch."""
        for name, module in self.modules.items():
            self._task.update(self._metrics[name], module(*self._task.inputs(batch)), batch)

    def compute(self) -> dict[str, Tensor]:
        """Return ``NAME/METRIC`` -> value over all batches."""
        return {
            f"{name}/{key}": value
            for name, metrics in self._metrics.items()
            for key, value in metrics.compute().items()
        }
