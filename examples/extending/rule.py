"""A sampling rule for when only a few fixed sizes will ever be shipped: small, medium and large."""

from collections.abc import Sequence
from typing import final

from search_spaces import Architecture, SearchSpace
from supernets import SamplingRule, Score, Slot


@final
class FixedSizes(SamplingRule):
    """Train the same few sizes in every step (slimmable networks, Yu et al., arXiv 1812.08928).

    A size takes every choice at the same fraction of its list of candidates: 0 is the smallest architecture, 1 the
    largest. The first one learns from labels and teaches the others.

    Differs from the paper: one set of shared batch-norm scales, calibrated statistics instead of switchable norms, and
    in-place distillation (arXiv 1903.05134).

    Args:
        fractions: one per size, the first being the teacher's.

    Raises:
        ValueError: no fraction, or one outside [0, 1].
    """

    def __init__(self, fractions: Sequence[float] = (1.0, 0.5, 0.0)) -> None:
        if not fractions or not all(0 <= fraction <= 1 for fraction in fractions):
            raise ValueError(f"FixedSizes.fractions must be one or more numbers in [0, 1], got {list(fractions)}")
        self.fractions = tuple(fractions)

    def sizes(self, space: SearchSpace) -> list[Architecture]:
        """Return the architectures, without repeats."""
        tables = (
            {choice.name: choice.candidates[round(fraction * (choice.size - 1))] for choice in space.choices}
            for fraction in self.fractions
        )
        return list(dict.fromkeys(space.architecture(table) for table in tables))

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return the same slots in every step."""
        del seed, step, score
        teacher, *students = self.sizes(space)
        return [Slot(teacher, "teacher"), *(Slot(student, "student") for student in students)]
