"""Learning-rate schedules as functions of training progress, so that one YAML fits any number of steps."""

import math

__all__ = ["ConstantEnding", "Cosine"]


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
