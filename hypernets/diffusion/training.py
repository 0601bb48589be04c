"""Training a diffusion hypernetwork on a zoo of networks."""

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from hypernets.diffusion.contrast import ContrastiveAlignment
from hypernets.diffusion.generator import DiffusionHyperNetwork

__all__ = ["Conditions", "LatentObjective", "fit_diffusion"]

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
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    generator = torch.Generator().manual_seed(seed)
    check_zoo(tensors, tasks)
    hypernet.learn_codec(tensors, generator=generator)
    objective = LatentObjective(
        hypernet, tensors, tasks, conditions, batch=batch, drawn=drawn, contrast=contrast, seed=seed
    )
    descent = torch.optim.Adam(objective.learned(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    hypernet.train()
    losses = []
    for _ in range(steps):
        loss = objective(generator)
        descent.zero_grad()
        torch.autograd.backward(loss)
        descent.step()
        schedule.step()
        losses.append(loss.item())
    hypernet.eval()
    return losses


def check_zoo(tensors: Mapping[str, Tensor], tasks: Tensor) -> None:
    """Require one task for each network.

    Raises:
        ValueError: there are more or fewer.
    """
    count = len(next(iter(tensors.values()), ()))
    if tasks.shape != (count,):
        raise ValueError(f"tasks must hold one integer for each of {count} networks, got shape {tuple(tasks.shape)}")


@final
class LatentObjective:
    """The loss of prior and encoder on the latents of a zoo, which the codec has learned already.

    Each call draws some tasks, one condition for each, and networks of these tasks.

    Attributes:
        alignment: of codes and latents; learned where ``contrast`` is positive.

    Args:
        hypernet: whose codec has learned the zoo.
        tensors: see :func:`fit_diffusion`, as all that follows.
        tasks: of the networks.
        conditions: of the tasks.
        batch: networks in a step.
        drawn: tasks in a step, at most.
        contrast: weight of the contrastive alignment.
        seed: of the first weights of the alignment.

    Raises:
        ValueError: the zoo does not fit the target or ``tasks``, or a number is out of range.
    """

    def __init__(
        self,
        hypernet: DiffusionHyperNetwork,
        tensors: Mapping[str, Tensor],
        tasks: Tensor,
        conditions: Conditions,
        *,
        batch: int = 128,
        drawn: int = 16,
        contrast: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_zoo(tensors, tasks)
        if min(batch, drawn) < 1 or contrast < 0:
            raise ValueError(f"batch and drawn must be >= 1 and contrast >= 0, got {batch}, {drawn}, {contrast}")
        self.hypernet, self.conditions = hypernet, conditions
        self.batch, self.drawn, self.contrast = batch, drawn, contrast
        self.latents = hypernet.encode(tensors).detach()
        counts = torch.bincount(tasks)
        self.names = torch.nonzero(counts).flatten()
        self.counts = counts[self.names]
        self.order, self.first = tasks.argsort(stable=True), self.counts.cumsum(0) - self.counts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.alignment = ContrastiveAlignment(hypernet.encoder.width, hypernet.codec.width)

    def learned(self) -> list[nn.Parameter]:
        """Return what the loss trains: prior, encoder and alignment, not the codec."""
        own = [value for name, value in self.hypernet.named_parameters() if not name.startswith("codec.")]
        return [*own, *self.alignment.parameters()]

    def _pick(self, places: Tensor, generator: torch.Generator) -> Tensor:
        """A random network of each of some tasks."""
        drawn_at = torch.rand(len(places), generator=generator) * self.counts[places]
        return self.order[self.first[places] + drawn_at.long()]

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Return the loss of what ``generator`` draws."""
        chosen = torch.randperm(len(self.names), generator=generator)[: self.drawn]
        asked = [self.conditions(int(self.names[task]), generator) for task in chosen]
        rows = torch.randint(len(chosen), (self.batch,), generator=generator)
        networks = self._pick(chosen[rows], generator)
        code = self.hypernet.encode_condition({key: torch.cat([one[key] for one in asked]) for key in asked[0]})
        loss = self.hypernet.prior.loss(self.latents[networks].to(code), code[rows], generator=generator)
        if self.contrast > 0:
            close = self.latents[self._pick(chosen, generator)].to(code)
            loss = loss + self.contrast * self.alignment(code, close)
        return loss
