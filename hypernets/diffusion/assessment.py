"""What sampled networks are worth on a data set, beside what must never be left out of such a claim."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hypernets.base import Condition
from hypernets.diffusion.generator import DiffusionHyperNetwork

__all__ = ["Assessment", "assess"]

Score = Callable[[Mapping[str, Tensor]], Tensor]


@final
@dataclass(frozen=True)
class Assessment:
    """Scores on the examples kept for the end; whatever was chosen was chosen on others.

    Attributes:
        mean: of all sampled networks: what one sample is worth.
        deviation: between them.
        best: the sampled network that is best where choices are made.
        wrong: mean of networks sampled for another condition. Where it is as good as ``mean``, the condition decides
            nothing.
        nearest: the network of the zoo that is best where choices are made. Where ``best`` is no better, looking up a
            trained network would do.
    """

    mean: float
    deviation: float
    best: float
    wrong: float
    nearest: float


@torch.no_grad()
def assess(
    hypernet: DiffusionHyperNetwork,
    condition: Condition,
    other: Condition,
    zoo: Mapping[str, Tensor],
    *,
    choose: Score,
    score: Score,
    count: int = 20,
    generator: torch.Generator,
) -> Assessment:
    """Sample networks for a data set and compare them with the zoo and with those for another one.

    Args:
        hypernet: trained.
        condition: of the data set, K = 1.
        other: a condition that does not go with it, K = 1.
        zoo: name -> ``(N, *shape)``: the networks it was trained on.
        choose: scores ``(K,)`` of weight sets, higher is better, on the examples that choices are made on.
        score: the same on examples that nothing is chosen on.
        count: networks to sample.
        generator: of the samples.

    Raises:
        ValueError: ``count`` is below 2.
    """
    if count < 2:
        raise ValueError(f"count must be >= 2 networks, got {count}")
    made = hypernet.sample(condition, count, generator=generator)
    scores = score(made)
    chosen = int(choose(made).argmax())
    known = int(choose(zoo).argmax())
    return Assessment(
        mean=scores.mean().item(),
        deviation=scores.std().item(),
        best=scores[chosen].item(),
        wrong=score(hypernet.sample(other, count, generator=generator)).mean().item(),
        nearest=score({name: value[known : known + 1] for name, value in zoo.items()})[0].item(),
    )
