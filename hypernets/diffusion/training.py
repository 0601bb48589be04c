"""Training a diffusion hypernetwork on a zoo of networks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hypernets.diffusion.contrast import ContrastiveAlignment
from hypernets.diffusion.generator import DiffusionHyperNetwork

__all__ = ["Conditions", "fit_diffusion"]

Conditions = Callable[[int, torch.Generator], Mapping[str, Any]]


def fit_diffusion(
    hypernet: DiffusionHyperNetwork,
    tensors: Mapping[str, Tensor],
    tasks: Tensor,
    conditions: Conditions,
    *,
    steps: int = 3000,
    batch: int = 128,
    drawn: int = 16,
    lr: float = 1e-3,
    contrast: float = 0.0,
    seed: int = 0,
) -> list[float]:
    """Fit the codec to a zoo, then the prior and the encoder of conditions to its latents, by Adam with a cosine.

    Each step draws some tasks, one condition for each (fresh examples of its data set, say), and networks of these
    tasks.

    Args:
        hypernet: trained in place, and left in evaluation mode.
        tensors: name -> ``(N, *shape)``: the zoo, aligned.
        tasks: ``(N,)`` integers: which task each network was trained on.
        conditions: ``conditions(task, generator)`` returns one condition (K = 1) of a task; all of one shape.
        steps: of training the prior.
        batch: networks in a step.
        drawn: tasks in a step, at most.
        lr: highest learning rate.
        contrast: weight of the contrastive alignment of codes with latents, see :class:`ContrastiveAlignment`.
        seed: of everything random.

    Returns:
        The loss of every step.

    Raises:
        ValueError: the zoo does not fit the target, the codec or ``tasks``.
    """
    count = len(next(iter(tensors.values()), ()))
    if tasks.shape != (count,) or min(steps, batch, drawn) < 1 or contrast < 0:
        raise ValueError(
            f"tasks must hold one integer for each of {count} networks, got shape {tuple(tasks.shape)}; "
            f"steps, batch and drawn must be >= 1 and contrast >= 0, got {steps}, {batch}, {drawn}, {contrast}"
        )
    generator = torch.Generator().manual_seed(seed)
    hypernet.learn_codec(tensors, generator=generator)
    latents = hypernet.encode(tensors).detach()
    counts = torch.bincount(tasks)
    names = torch.nonzero(counts).flatten()
    counts = counts[names]
    order, first = tasks.argsort(stable=True), counts.cumsum(0) - counts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        alignment = ContrastiveAlignment(hypernet.encoder.width, hypernet.codec.width)
    parameters = [value for name, value in hypernet.named_parameters() if not name.startswith("codec.")]
    descent = torch.optim.Adam([*parameters, *alignment.parameters()], lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)

    def pick(places: Tensor) -> Tensor:
        """A random network of each of some tasks."""
        drawn_at = torch.rand(len(places), generator=generator) * counts[places]
        return order[first[places] + drawn_at.long()]

    hypernet.train()
    losses = []
    for _ in range(steps):
        chosen = torch.randperm(len(names), generator=generator)[:drawn]
        asked = [conditions(int(names[task]), generator) for task in chosen]
        rows = torch.randint(len(chosen), (batch,), generator=generator)
        networks = pick(chosen[rows])
        code = hypernet.encode_condition({key: torch.cat([one[key] for one in asked]) for key in asked[0]})
        loss = hypernet.prior.loss(latents[networks], code[rows], generator=generator)
        if contrast > 0:
            loss = loss + contrast * alignment(code, latents[pick(chosen)])
        descent.zero_grad()
        torch.autograd.backward(loss)
        descent.step()
        schedule.step()
        losses.append(loss.item())
    hypernet.eval()
    return losses
