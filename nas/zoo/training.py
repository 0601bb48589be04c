"""Training many networks of one shape at the same time."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hypernets import Target, apply, apply_many, recalibrate

__all__ = ["accuracies", "starts", "train_many"]


def starts(module: nn.Module, count: int, *, shared: bool, seed: int) -> dict[str, Tensor]:
    """Return ordinary random weights.

    Args:
        module: of the shape wanted.
        count: number of networks.
        shared: all networks start alike.
        seed: of the weights.

    Returns:
        name -> ``(count, *shape)``.
    """
    target = Target.of(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [{spec.name: spec.initial() for spec in target} for _ in range(1 if shared else count)]
    return {
        name: torch.stack([one[name] for one in drawn]).expand(count, *shape).clone()
        for name, shape in target.shapes.items()
    }


def train_many(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
    *,
    of: Tensor | None = None,
    steps: int,
    batch: int = 64,
    lr: float = 5e-3,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Train K networks as classifiers by Adam, each on random batches of its own, in one batched pass where possible.

    Args:
        module: of their shape; it may lie on the meta device.
        tensors: name -> ``(K, *shape)``, which are not changed.
        inputs: ``(N, ...)`` for all, or, of several data sets, ``(T, N, ...)``.
        labels: ``(N,)`` or ``(T, N)``.
        of: ``(K,)``: which of several data sets each network is trained on; ``None`` where there is one.
        steps: number of steps.
        batch: examples of a step and network.
        lr: learning rate.
        seed: of the batches.

    Returns:
        The trained weights, name -> ``(K, *shape)``.
    """
    weights = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
    count = len(next(iter(weights.values())))
    own = None if of is None else of[:, None]
    generator = torch.Generator().manual_seed(seed)
    descent = torch.optim.Adam(weights.values(), lr)
    module = copy.deepcopy(module).train()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):  # keeps no statistics, so that all networks fit into one batched pass
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    for _ in range(steps):
        chosen = torch.randint(labels.shape[-1], (count, batch), generator=generator)
        given, truth = (each[chosen] if own is None else each[own, chosen] for each in (inputs, labels))
        outputs = apply_many(module, weights, given, shared=False)
        loss = F.cross_entropy(outputs.flatten(0, 1), truth.flatten()) * count  # the sum over networks of their means
        descent.zero_grad()
        torch.autograd.backward(loss)
        descent.step()
    return {name: value.detach() for name, value in weights.items()}


@torch.no_grad()
def accuracies(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
    *,
    calibration: Sequence[Tensor] = (),
) -> Tensor:
    """Return the accuracy of each of K networks on the same examples, ``(K,)``.

    Args:
        module: of their shape.
        tensors: name -> ``(K, *shape)``.
        inputs: ``(N, ...)``.
        labels: ``(N,)``.
        calibration: batches of inputs for the batch-norm statistics of modules that have any.
    """
    module.eval()
    if not any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        outputs: Tensor = apply_many(module, tensors, inputs)
    else:
        buffers = recalibrate(module, tensors, calibration)
        sets = range(len(next(iter(tensors.values()))))
        outputs = torch.stack([apply(module, _one(tensors, k), inputs, buffers=_one(buffers, k)) for k in sets])
    return (outputs.argmax(-1) == labels).float().mean(-1)


def _one(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    return {name: value[k] for name, value in tensors.items()}
