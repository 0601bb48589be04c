"""Sampling rules: which architectures a training step sees, and what each learns from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from search_spaces import Architecture, RelaxedArchitecture, SearchSpace, derive_seed
from supernets.weights import WeightSource

__all__ = ["SamplingRule", "SandwichRule", "Score", "SingleRule", "Slot", "UniformRule"]

Score = Callable[[Architecture], float]
"""Loss of an architecture on the labels of the present batch, without gradients."""


@dataclass(frozen=True)
class Slot:
    """One architecture of a training step.

    Attributes:
        architecture: what is trained; a relaxed one is the superposition of all architectures.
        role: ``"labels"`` learns from labels; ``"teacher"`` does too and its outputs teach the students after it;
            ``"student"`` learns from the teacher alone, without regularisation (in-place distillation).
    """

    architecture: Architecture | RelaxedArchitecture
    role: Literal["labels", "teacher", "student"]


class SamplingRule(ABC):
    """Chooses the architectures of each training step.

    The supernet calls :meth:`slots` once per step, trains each slot in order and adds up the gradients. The answer
    depends on the arguments alone, so resumed runs and reruns see the same architectures, and so do ranks where
    ``score`` is not used.

    Attributes:
        whole: whether subnetworks other than :meth:`selected` are trained too, and so may be scored and searched.
    """

    whole: bool = True

    @abstractmethod
    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return the slots of training step ``step``; a teacher comes before its students."""

    def check(self, space: SearchSpace, source: WeightSource) -> None:
        """Refuse a space or a weight source that this rule cannot train, before training; default: take any.

        Raises:
            ValueError: saying what does not go together and what to use instead.
        """
        del space, source

    def check_length(self, steps: float) -> None:
        """Refuse a training of ``steps`` optimiser steps (infinite where unknown), before it; default: take any.

        Raises:
            ValueError: saying what would be left out and how to change that.
        """
        del steps

    def sorts(self, step: int) -> bool:
        """Return whether channels are put in order of importance before training step ``step``; default: never."""
        del step
        return False

    # For rules that learn something themselves ------------------------------------------------------------------------

    def prepare(self, space: SearchSpace, source: WeightSource, *, seed: int) -> None:
        """Make what the rule learns, once :meth:`check` has passed; default: nothing.

        A rule that learns is an ``nn.Module`` too, so that its parameters move and are saved with the supernet.
        """
        del space, source, seed

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Return a new optimiser of the rule's own parameters; default: there is none."""
        return None

    def held_out_rows(self, step: int) -> int:
        """Return about how many held-out examples the rule learns from before the weights do; default: none, 0."""
        del step
        return 0

    def held_out_slot(self, *, seed: int, step: int) -> Slot:
        """Return what runs on these examples.

        Raises:
            ValueError: the rule does not learn from held-out examples.
        """
        del seed, step
        raise ValueError(f"{type(self).__name__} does not learn from held-out examples")

    def loss(self, step: int) -> Tensor | None:
        """Return the rule's own term of the loss it learns from; ``None`` where it does not learn in this step.

        It is added to the loss of the held-out slot or, without one, of the first slot.
        """
        del step
        return None

    def selected(self) -> Architecture | None:
        """Return the architecture that the rule has found; default: none."""
        return None

    def learned(self) -> Mapping[str, list[float]]:
        """Return what the rule has learned, to be written as JSON; default: nothing."""
        return {}

    def restore(self, learned: Mapping[str, list[float]]) -> None:
        """Take over what :meth:`learned` returned.

        Raises:
            ValueError: it belongs to another rule or space.
        """
        if learned:
            raise ValueError(f"{type(self).__name__} learns nothing, got {sorted(learned)}; use the rule that wrote it")

    def diagnostics(self) -> Mapping[str, float]:
        """Return numbers on what is learned, logged at every validation as ``val/rule/NAME``; default: none."""
        return {}


def _draw(space: SearchSpace, seed: int, step: int, slot: int) -> Architecture:
    return space.sample(torch.Generator().manual_seed(derive_seed(seed, "slot", step, slot)))


class UniformRule(SamplingRule):
    """Uniform sampling: ``count`` random architectures a step, each learning from labels (single-path one-shot).

    Args:
        count: architectures per step.

    Raises:
        ValueError: ``count < 1``.
    """

    def __init__(self, count: int = 1) -> None:
        if count < 1:
            raise ValueError(f"UniformRule.count must be >= 1, got {count}")
        self.count = count

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return ``count`` independent draws."""
        del score
        return [Slot(_draw(space, seed, step, slot), "labels") for slot in range(self.count)]


class SandwichRule(SamplingRule):
    """The sandwich rule with in-place distillation (Yu & Huang, arXiv 1903.05134; BigNAS, arXiv 2003.11142).

    Each step trains the largest architecture on labels, then the smallest and ``n_random`` random ones on the
    largest one's outputs.

    Args:
        n_random: random architectures per step.
        distillation: ``False`` trains every architecture on labels instead.

    Raises:
        ValueError: ``n_random < 0``.
    """

    def __init__(self, n_random: int = 2, *, distillation: bool = True) -> None:
        if n_random < 0:
            raise ValueError(f"SandwichRule.n_random must be >= 0, got {n_random}")
        self.n_random = n_random
        self.distillation = distillation

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return largest, smallest, then the random architectures."""
        del score
        role: Literal["labels", "student"] = "student" if self.distillation else "labels"
        randoms = [Slot(_draw(space, seed, step, slot), role) for slot in range(self.n_random)]
        first = Slot(space.largest(), "teacher" if self.distillation else "labels")
        return [first, Slot(space.smallest(), role), *randoms]


class SingleRule(SamplingRule):
    """One architecture alone, on labels: retrains what a search has found, in the supernet's own format and tracking.

    Starts from new weights, or from inherited ones with ``nas fit --ckpt_path``. Nothing else is trained, so validation
    reports this architecture only and a search of the result is refused.

    Args:
        architecture: choice -> value, or one of ``"smallest"``, ``"middle"`` and ``"largest"``.

    Raises:
        ValueError: it is neither.
    """

    whole = False

    def __init__(self, architecture: dict[str, Any] | Literal["smallest", "middle", "largest"]) -> None:
        if isinstance(architecture, str) and architecture not in ("smallest", "middle", "largest"):
            raise ValueError(
                "SingleRule.architecture must be a mapping of choices, or one of smallest, middle and largest; got "
                f"{architecture!r}"
            )
        self.architecture = architecture
        self._found: Architecture | None = None

    def _of(self, space: SearchSpace) -> Architecture:
        if isinstance(self.architecture, str):
            ends = {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}
            return ends[self.architecture]()
        return space.architecture(self.architecture)

    def check(self, space: SearchSpace, source: WeightSource) -> None:
        """Refuse what is no architecture of the space.

        Raises:
            InvalidArchitectureError: naming the choice.
        """
        del source
        self._of(space)

    def prepare(self, space: SearchSpace, source: WeightSource, *, seed: int) -> None:
        """Keep the architecture."""
        del source, seed
        self._found = self._of(space)

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return one slot."""
        del seed, step, score
        return [Slot(self._of(space), "labels")]

    def selected(self) -> Architecture | None:
        """Return the architecture."""
        return self._found
