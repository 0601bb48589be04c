"""Is the hypernetwork used at all, or would its residual alone do as well?"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypernets.base import Condition, HyperNetwork

__all__ = ["Diagnosis", "diagnose"]


@final
@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found.

    Attributes:
        delta: norm of the deltas over the norm of the weights, mean over the conditions.
        spread: norm of what differs between conditions (weights less their mean) over the norm of the weights. Near 0
            the hypernetwork gives everyone the same weights, whatever ``delta`` says.
        matched: mean score of each condition with its own weights.
        shuffled: mean score of each condition with the weights of another one. Where it is as good as ``matched``, the
            condition decides nothing that matters.
    """

    delta: float
    spread: float
    matched: float | None = None
    shuffled: float | None = None


@torch.no_grad()
def diagnose(
    hypernet: HyperNetwork,
    condition: Condition,
    score: Callable[[Mapping[str, Tensor], int], float] | None = None,
    *,
    generator: torch.Generator,
) -> Diagnosis:
    """Measure how much conditions decide.

    Args:
        hypernet: trained.
        condition: two or more conditions.
        score: ``score(weights, k)`` is the quality of weights, without K, at what condition k asks for (on the data of
            task k, say).
        generator: decides which conditions change places; every one gets another's weights. Also the source of
            randomness of stochastic generators, which get the same for weights and deltas.

    Raises:
        ValueError: there are fewer than two conditions.
    """
    state = generator.get_state()
    weights = hypernet.generate(condition, generator=generator)
    generator.set_state(state)
    deltas = hypernet.deltas(condition, generator=generator)
    sets = len(next(iter(weights.values())))
    if sets < 2:
        raise ValueError(f"conditions can change places only where there are two or more, got K = {sets}")
    centred = {name: value - value.mean(dim=0) for name, value in weights.items()}
    whole = _norms(weights)
    order = torch.randperm(sets, generator=generator)
    other = torch.empty_like(order)
    other[order] = order.roll(1)  # one cycle, so that none keeps its own
    matched = shuffled = None
    if score is not None:
        matched = statistics.fmean(score(_one(weights, k), k) for k in range(sets))
        shuffled = statistics.fmean(score(_one(weights, int(other[k])), k) for k in range(sets))
    return Diagnosis(
        delta=float((_norms(deltas) / whole).mean()),
        spread=float(_norms(centred).square().mean().sqrt() / whole.square().mean().sqrt()),
        matched=matched,
        shuffled=shuffled,
    )


def _norms(tensors: Mapping[str, Tensor]) -> Tensor:
    """Norm of each weight set, ``(K,)``."""
    return torch.stack([value.float().flatten(1).square().sum(1) for value in tensors.values()]).sum(0).sqrt()


def _one(weights: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    return {name: value[k] for name, value in weights.items()}
