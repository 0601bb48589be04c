"""Learning-rate schedules as functions of training progress, so that one YAML fits any number of steps."""

import math
from collections.abc import Callable, Sequence
from typing import final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["ConstantEnding", "Cosine", "Restarts", "scheduled"]


def scheduled(optimizer: Optimizer, schedule: Callable[[float], float] | None, total: float) -> LambdaLR:
    """Return the scheduler that multiplies learning rates by ``schedule`` of training progress, by 1 without one.

    Args:
        optimizer: whose learning rates they are.
        schedule: progress in [0, 1] -> factor.
        total: steps of the whole training, infinite where nobody knows.

    Raises:
        ValueError: there is a schedule and no end of training.
    """
    if schedule is None:
        return LambdaLR(optimizer, lambda step: 1.0)
    if not math.isfinite(total):
        raise ValueError(
            "model.schedule needs to know when training ends; set trainer.max_epochs or trainer.max_steps, or "
            "leave the schedule out"
        )
    return LambdaLR(optimizer, lambda step: schedule(min(1.0, step / max(1.0, total))))


def _warmed(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup > 0 else 1.0


class ConstantEnding:
    """Exponential decay with a constant ending (BigNAS, arXiv 2003.11142).

    ``factor(p) = max(floor, gamma ** floor(decays * p))`` after a linear warm-up. The defaults are the published 0.97
    every 2.4 of 360 epochs and 5 %: large subnetworks have converged while small ones still improve.

    Args:
        decays: number of decay steps in the whole training.
        gamma: factor of one decay step.
        floor: smallest factor.
        warmup: share of the training that ramps up from 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, decays: int = 150, gamma: float = 0.97, floor: float = 0.05, warmup: float = 3 / 360) -> None:
        if decays < 0 or not 0 < gamma <= 1 or not 0 <= floor <= 1 or not 0 <= warmup < 1:
            raise ValueError(
                "ConstantEnding needs decays >= 0, 0 < gamma <= 1, 0 <= floor <= 1 and 0 <= warmup < 1, got "
                f"{decays=}, {gamma=}, {floor=}, {warmup=}"
            )
        self.decays = decays
        self.gamma = gamma
        self.floor = floor
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        """Return the factor on the base learning rate at ``progress`` in [0, 1]."""
        return _warmed(progress, self.warmup) * max(self.floor, self.gamma ** math.floor(self.decays * progress))


class Cosine:
    """Half a cosine from 1 down to ``floor`` after a linear warm-up.

    Args:
        floor: last factor.
        warmup: share of the training that ramps up from 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, floor: float = 0.0, warmup: float = 0.0) -> None:
        if not 0 <= floor <= 1 or not 0 <= warmup < 1:
            raise ValueError(f"Cosine needs 0 <= floor <= 1 and 0 <= warmup < 1, got {floor=}, {warmup=}")
        self.floor = floor
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        """Return the factor on the base learning rate at ``progress`` in [0, 1]."""
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return _warmed(progress, self.warmup) * (self.floor + (1 - self.floor) * cosine)


@final
class Restarts:
    """One schedule for each stage of a training, e.g. those of :class:`supernets.ProgressiveRule`.

    ``factor(p) = peaks[i] * each(q)`` in stage ``i``, where ``q`` runs from 0 to 1 over that stage. Once-for-All
    (arXiv 1908.09791) starts every stage anew, at a lower peak.

    Args:
        ends: share of the training at which each stage ends but the last, ascending in (0, 1).
        peaks: factor of each stage, one more than there are ends.
        each: schedule within a stage; default a cosine.

    Raises:
        ValueError: the ends do not ascend within (0, 1), or the peaks are not one more or not above 0.
    """

    def __init__(
        self, ends: Sequence[float], peaks: Sequence[float], *, each: Callable[[float], float] | None = None
    ) -> None:
        self.ends = tuple(ends)
        self.peaks = tuple(peaks)
        self.each = Cosine() if each is None else each
        if list(self.ends) != sorted(set(self.ends)) or any(not 0 < end < 1 for end in self.ends):
            raise ValueError(f"Restarts.ends must ascend between 0 and 1, got {list(ends)}")
        if len(self.peaks) != len(self.ends) + 1 or min(self.peaks) <= 0:
            raise ValueError(
                f"Restarts.peaks must be one more number than ends, {len(self.ends) + 1}, each > 0; got {list(peaks)}"
            )

    def __call__(self, progress: float) -> float:
        """Return the factor on the base learning rate at ``progress`` in [0, 1]."""
        stage = sum(progress >= end for end in self.ends)
        start, end = (0.0, *self.ends)[stage], (*self.ends, 1.0)[stage]
        return self.peaks[stage] * self.each((progress - start) / (end - start))
