"""Progressive shrinking: the largest network first, then more and more of the space, stage by stage."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, final

import torch

from search_spaces import Architecture, Choice, SearchSpace, derive_seed
from supernets.rules import SamplingRule, Score, Slot
from supernets.weights import WeightSource

__all__ = ["ProgressiveRule", "ShrinkingStage"]


@dataclass(frozen=True)
class ShrinkingStage:
    """One stage of progressive shrinking.

    Args:
        until: training step at which the next stage begins; only the last stage leaves it out, and lasts to the end.
        elastic: glob over names of choices -> how many of their largest candidates are drawn, or ``"all"``. Choices
            that an earlier stage has opened stay as open as they were unless they are named again.
        n_random: random architectures per step.
        smallest: whether every step also trains the smallest architecture that the stage allows (the sandwich rule).
        distillation: whether the largest architecture teaches the others; otherwise all learn from labels.
        sort_channels: whether channels are put in order of importance as the stage begins, so that a prefix is the best
            subset of that many (Once-for-All, arXiv 1908.09791, section 3.2); with ``ImplicitWeights``, so that
            neighbours are alike. Meant for stages that open widths.

    Raises:
        ValueError: a number is out of range.
    """

    until: int | None = None
    elastic: Mapping[str, int | Literal["all"]] = field(default_factory=dict)
    n_random: int = 1
    smallest: bool = True
    distillation: bool = True
    sort_channels: bool = False

    def __post_init__(self) -> None:
        if self.until is not None and self.until < 1:
            raise ValueError(f"ShrinkingStage.until must be a step >= 1, got {self.until}")
        if self.n_random < 0:
            raise ValueError(f"ShrinkingStage.n_random must be >= 0, got {self.n_random}")
        for glob, count in self.elastic.items():
            if count != "all" and (isinstance(count, bool) or not isinstance(count, int) or count < 2):
                raise ValueError(
                    f"ShrinkingStage.elastic[{glob!r}] must be 'all' or the number of candidates to draw from, at "
                    f"least 2, got {count!r}; leave a choice out to keep it at its largest"
                )


@final
class ProgressiveRule(SamplingRule):
    """Progressive shrinking (Once-for-All, Cai et al., arXiv 1908.09791, section 3.3).

    Each step trains the largest architecture on labels, and then the smallest and some random architectures of those
    that the present stage allows: choices that no stage has opened so far are at their largest. The paper's order,
    kernels before depths before widths, is::

        stages:
        - {until: 1000}
        - {until: 2000, elastic: {"*.kernel": all}}
        - {until: 3000, elastic: {"*.depth": 2}}
        - {until: 4000, elastic: {"*.depth": all}}
        - {elastic: {"*": all}, sort_channels: true, n_random: 2}

    The last stage must open everything, so that nothing is searched later that was never trained.

    Differs from the paper: the teacher is the largest architecture in training, not a copy of it trained before, and
    the optimiser and its schedule run on (:class:`supernets.Restarts` is a schedule by stages).

    Args:
        stages: at least one, in order.

    Raises:
        ValueError: no stage, or their ends do not ascend.
    """

    def __init__(self, stages: Sequence[ShrinkingStage]) -> None:
        self.stages = tuple(stages)
        if not self.stages:
            raise ValueError("ProgressiveRule.stages must name at least one ShrinkingStage, got none")
        *ends, last = [stage.until for stage in self.stages]
        known = [end for end in ends if end is not None]
        if last is not None or len(known) < len(ends) or any(a >= b for a, b in itertools.pairwise(known)):
            raise ValueError(
                "ProgressiveRule.stages must have ascending 'until', and the last stage, which lasts to the end of "
                f"training, none; got {[*ends, last]}"
            )
        self._starts = (0, *known)

    def stage(self, step: int) -> int:
        """Return the position of the stage to which training step ``step`` belongs."""
        return sum(start <= step for start in self._starts) - 1

    def open(self, space: SearchSpace, stage: int) -> dict[str, int]:
        """Return choice -> how many of its largest candidates stage number ``stage`` draws from; 1 is its largest."""
        counts = {choice.name: 1 for choice in space.choices}
        for given in self.stages[: stage + 1]:
            for glob, count in given.elastic.items():
                for choice in space.choices:
                    if fnmatchcase(choice.name, glob):
                        counts[choice.name] = choice.size if count == "all" else min(count, choice.size)
        return counts

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return the largest, the smallest of the stage and random ones of the stage."""
        del score
        number = self.stage(step)
        stage, counts = self.stages[number], self.open(space, number)
        role: Literal["labels", "student"] = "student" if stage.distillation else "labels"
        first = Slot(space.largest(), "teacher" if stage.distillation else "labels")
        if max(counts.values(), default=1) == 1:
            return [Slot(space.largest(), "labels")]
        slots = [first]
        if stage.smallest:
            slots.append(Slot(_draw(space.choices, counts, space, None), role))
        for slot in range(stage.n_random):
            generator = torch.Generator().manual_seed(derive_seed(seed, "slot", step, slot))
            slots.append(Slot(_draw(space.choices, counts, space, generator), role))
        return slots

    def sorts(self, step: int) -> bool:
        """Return whether a stage that sorts channels begins at ``step``."""
        return step in self._starts and self.stages[self.stage(step)].sort_channels

    def check(self, space: SearchSpace, source: WeightSource) -> None:
        """Refuse globs without a choice, counts that no choice has, an unfinished opening, and nothing to sort."""
        for number, stage in enumerate(self.stages, 1):
            for glob, count in stage.elastic.items():
                matched = [choice for choice in space.choices if fnmatchcase(choice.name, glob)]
                where = f"ProgressiveRule.stages, stage {number}: elastic[{glob!r}]"
                if not matched:
                    raise ValueError(f"{where} matches no choice; give one of {[c.name for c in space.choices]}")
                if count == "all":
                    continue
                unordered = [choice.name for choice in matched if choice.kind == "categorical"]
                if unordered:
                    raise ValueError(f"{where}: {unordered} have no largest candidates, being categorical; use 'all'")
                if count > max(choice.size for choice in matched):
                    raise ValueError(
                        f"{where} asks for {count} candidates, but there are at most "
                        f"{max(choice.size for choice in matched)}; use 'all'"
                    )
        counts = self.open(space, len(self.stages) - 1)
        closed = [choice.name for choice in space.choices if counts[choice.name] < choice.size]
        if closed:
            raise ValueError(
                f"ProgressiveRule.stages never open all candidates of {closed}, which a search would then find "
                "untrained; give the last stage elastic: {'*': all}, or leave the candidates out of the space"
            )
        if any(stage.sort_channels for stage in self.stages):
            _check_sortable(space, source)

    def check_length(self, steps: float) -> None:
        """Refuse a training that ends before the last stage begins."""
        if math.isfinite(steps) and steps <= self._starts[-1]:
            raise ValueError(
                f"the last stage of ProgressiveRule begins at step {self._starts[-1]}, but training ends after "
                f"{steps:.0f}; give more epochs or steps, or lower 'until' of the stages"
            )


def _check_sortable(space: SearchSpace, source: WeightSource) -> None:
    """Refuse weights that cannot be reordered, and spaces without channels that can."""
    if not source.sortable:
        raise ValueError(
            f"ShrinkingStage.sort_channels reorders plain shared weights and cannot with {type(source).__name__}; "
            "use SharedWeights, by itself or in QuantizedWeights, or ImplicitWeights, or set sort_channels: false"
        )
    found = source.couplings()
    if not found.verified:
        left = [coupling.sites[0].tensor for coupling in found.left_out]
        reason = f"its networks compute something else when those of {left} are reordered" if left else "no width does"
        raise ValueError(
            f"ShrinkingStage.sort_channels needs a choice that opens channels of {type(space).__name__} which may "
            f"stand in any order, but {reason}; set sort_channels: false"
        )


def _draw(
    choices: Sequence[Choice], counts: Mapping[str, int], space: SearchSpace, generator: torch.Generator | None
) -> Architecture:
    """Draw each choice from its largest candidates; the first of them without a generator."""
    return space.architecture(
        {
            choice.name: choice.candidates[
                choice.size
                - counts[choice.name]
                + (0 if generator is None else int(torch.randint(counts[choice.name], (), generator=generator)))
            ]
            for choice in choices
        }
    )
