"""Learning tasks one after another without forgetting: keep what the hypernetwork generates for earlier ones."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import final

import torch
from torch import Tensor

from hypernets.base import Condition, HyperNetwork

__all__ = ["OutputRegularizer", "importance"]


@final
class OutputRegularizer:
    """Penalises changes of the weights generated for earlier conditions (von Oswald et al., arXiv 1906.00695, Eq. 2).

    Made when a new task begins, it keeps the weights ``theta*`` of the earlier ones as they are now; called in every
    training step, it returns

        strength / J * sum_j sum_i F_ji (theta_ji - theta*_ji)^2    over J earlier conditions,

    with F = 1, or the importance of each weight.

    Differs from the paper: the weights are those of the present step, without the look-ahead along the optimiser's
    next step.

    Args:
        hypernet: trained on the earlier conditions.
        condition: the earlier conditions, K of them.
        strength: the paper's beta.
        weights: the F of each generated value, name -> ``(K, *shape)``; see :func:`importance`.
        count: how many conditions, drawn anew in every step, stand for all; ``None`` for all.
        generator: of that draw; needed with ``count``.

    Raises:
        ValueError: an argument is out of range, or ``weights`` do not fit.
    """

    def __init__(
        self,
        hypernet: HyperNetwork,
        condition: Condition,
        *,
        strength: float = 0.1,
        weights: Mapping[str, Tensor] | None = None,
        count: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        like = next(hypernet.parameters())
        self.hypernet, self.strength, self.weights = hypernet, strength, weights
        self.count, self.generator = count, generator
        self.condition = {name: value.detach() for name, value in hypernet.encoder.read(condition, like=like).items()}
        sets = len(next(iter(self.condition.values())))
        if not 0 <= strength < math.inf or sets < 1 or (count is not None and not 1 <= count <= sets):
            raise ValueError(
                f"0 <= strength < inf, K >= 1 and 1 <= count <= K must hold, got strength={strength}, {sets=}, {count=}"
            )
        if count is not None and generator is None:
            raise ValueError("count draws conditions in every step: pass the generator to draw them with")
        if weights is not None:
            hypernet.target.check(weights, sets=sets)
        with torch.no_grad():
            self.kept = hypernet.generate(self.condition)

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar, of the hypernetwork as it is now."""
        sets = len(next(iter(self.condition.values())))
        chosen = torch.arange(sets)
        if self.count is not None:
            chosen = torch.randperm(sets, generator=self.generator)[: self.count]
        now = self.hypernet.generate({name: value[chosen] for name, value in self.condition.items()})
        total = torch.zeros((), device=next(iter(now.values())).device)
        for name, value in now.items():
            squares = (value - self.kept[name][chosen]).square()
            total = total + (squares if self.weights is None else squares * self.weights[name][chosen]).sum()
        return self.strength / len(chosen) * total


def importance(
    hypernet: HyperNetwork,
    condition: Condition,
    losses: Iterable[Callable[[Mapping[str, Tensor]], Tensor]],
    *,
    floor: float = 0.1,
) -> dict[str, Tensor]:
    """Return how much each generated weight matters: the mean squared gradient of the loss with respect to it.

    The values are scaled to a mean of 1 over all weights of a set, and ``floor`` of that is given to all alike, so
    that no weight is free: ``floor + (1 - floor) * g / mean(g)``.

    Args:
        hypernet: trained on the condition.
        condition: one condition.
        losses: one function per batch: generated weights, without K, to the loss.
        floor: between 0 and 1.

    Returns:
        name -> ``(1, *shape)``; concatenate those of several tasks for :class:`OutputRegularizer`.

    Raises:
        ValueError: ``floor`` is out of range, there are no losses or K is not 1.
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must lie in [0, 1], got {floor}")
    with torch.no_grad():
        generated = hypernet.generate(condition)
    if any(len(value) != 1 for value in generated.values()):
        raise ValueError(f"importance is that of one condition, got K = {len(next(iter(generated.values())))}")
    weights = {name: value[0].requires_grad_() for name, value in generated.items()}
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    batches = 0
    for loss in losses:
        gradients = torch.autograd.grad(loss(weights), list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
        batches += 1
    if not batches:
        raise ValueError("importance needs the loss of at least one batch")
    mean = sum(float(value.sum()) for value in total.values()) / hypernet.target.numel
    scale = (1 - floor) / mean if mean > 0 else 0.0
    return {name: (floor + value * scale)[None] for name, value in total.items()}
