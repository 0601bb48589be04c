"""Exact batch-norm statistics for one subnetwork."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from supernets.noise import seed_all

__all__ = ["UncalibratedError", "calibrate", "calibration_batches", "norms", "uncalibrated"]


class UncalibratedError(RuntimeError):
    """A subnetwork is used although its batch-norm statistics were never computed."""


def norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers that keep running statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def uncalibrated(module: nn.Module) -> list[str]:
    """Return the batch-norm layers whose statistics were never computed (``num_batches_tracked`` is 0)."""
    return [
        name
        for name, layer in norms(module).items()
        if layer.num_batches_tracked is None or int(layer.num_batches_tracked) == 0
    ]


class _Pool:
    """Mean and variance of everything one layer has seen, merged batch by batch in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.batches = 0
        self.mean: Tensor | float = 0.0
        self.deviation: Tensor | float = 0.0

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        del output
        assert isinstance(layer, _BatchNorm)  # noqa: S101 - registered on these alone
        count = inputs[0].numel() // layer.num_features
        mean = layer.running_mean.double()  # type: ignore[union-attr]
        deviation = layer.running_var.double() * (count - 1)  # type: ignore[union-attr]
        total = self.count + count
        shift = mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.deviation = self.deviation + deviation + shift**2 * (self.count * count / total)
        self.count = total
        self.batches += 1


def calibrate(
    module: nn.Module, batches: Iterable[Any], inputs: Callable[[Any], tuple[Tensor, ...]] = lambda batch: (batch,)
) -> nn.Module:
    """Set every batch norm of ``module`` to the exact pooled statistics over ``batches``, in place.

    With ``n_b``, ``mu_b`` and ``v_b`` the count, mean and biased variance of batch ``b`` at a layer,
    ``mean = sum_b n_b mu_b / N`` and ``var = sum_b n_b (v_b + mu_b^2) / N - mean^2``: what one batch holding all the
    data would have given that layer, so unequal and small batches are weighted rightly. Batch norm runs on batch
    statistics meanwhile and all else (dropout) in evaluation mode, which is where the module is left. Layers that no
    batch reaches stay uncalibrated.

    Args:
        module: one subnetwork with batch-norm buffers of its own.
        batches: read once.
        inputs: batch -> positional arguments of ``module``.

    Returns:
        ``module``, in evaluation mode.
    """
    layers = norms(module)
    module.eval()
    if not layers:
        return module
    pools = {name: _Pool() for name in layers}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    handles = [layer.register_forward_hook(pools[name]) for name, layer in layers.items()]
    try:
        for layer in layers.values():
            layer.train()
            layer.momentum = 1.0  # running statistics then hold those of the last batch
        with torch.no_grad():
            for batch in batches:
                module(*inputs(batch))
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
            layer.eval()
            _settle(layer, pools[name])
    return module


def _settle(layer: _BatchNorm, pool: _Pool) -> None:
    with torch.no_grad():
        if pool.count:
            layer.running_mean.copy_(torch.as_tensor(pool.mean))  # type: ignore[union-attr]
            layer.running_var.copy_(torch.as_tensor(pool.deviation) / pool.count)  # type: ignore[union-attr]
        else:
            layer.reset_running_stats()
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(pool.batches)


def calibration_batches(data: Any, count: int) -> list[Any]:
    """Return ``count`` training batches for :func:`calibrate`, the same ones at every call.

    A data module may offer ``calibration_batches(count)`` (un-augmented, in fixed order), as ours do; of any other
    the first batches of ``train_dataloader()`` are taken, under a fixed seed of the global random states of Python,
    NumPy and torch, which are left as they were.
    """
    offered = getattr(data, "calibration_batches", None)
    if callable(offered):
        return list(offered(count))
    with isolate_rng(include_cuda=False):
        seed_all(0)
        return list(itertools.islice(iter(data.train_dataloader()), count))
