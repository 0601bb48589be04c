"""What a controller has asked for and been told, as every controller needs it."""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from nas.controllers.base import Problem
from search_spaces import Architecture, derive_seed
from trials import Limit, Trial, TrialState

__all__ = ["History", "Observation"]

_TRIES = 64
_ENUMERABLE = 4096


@dataclass(frozen=True)
class Observation:
    """One trial as a controller reads it.

    Args:
        order: sorting key, the time at which the trial finished, then its number; running trials come last.
        architecture: the candidate.
        costs: objective values with the sign that makes smaller better; ``None`` when there are none to learn from.
        margins: for each limit, by how much it is broken (positive) or held (negative) relative to its bound, 0 where
            the metric is unknown; ``None`` where the trial teaches nothing (failed or running).
        pending: whether the trial is running.
    """

    order: tuple[float, int]
    architecture: Architecture
    costs: tuple[float, ...] | None = None
    margins: tuple[float, ...] | None = None
    pending: bool = False

    @cached_property
    def violation(self) -> float:
        """Total violation of the limits; 0 is feasible, infinity unknown."""
        return math.inf if self.margins is None else math.fsum(max(0.0, margin) for margin in self.margins)


def _order(item: Observation) -> tuple[float, int]:
    return item.order


def _margin(limit: Limit, trial: Trial) -> float:
    measured = trial.measurements.get(limit.metric)
    return 0.0 if measured is None else limit.violation(measured.value) / (abs(limit.bound) or 1.0)


def _observe(problem: Problem, trial: Trial, architecture: Architecture) -> Observation:
    if trial.state is TrialState.RUNNING:
        return Observation((math.inf, trial.number), architecture, pending=True)
    order = (trial.finished or 0.0, trial.number)
    complete = trial.state is TrialState.COMPLETE
    missing = any(metric.name not in trial.measurements for metric in problem.objectives)
    if trial.state is TrialState.FAILED or (complete and missing):
        return Observation(order, architecture)
    margins = tuple(_margin(limit, trial) for limit in problem.limits)
    if not complete and max(margins, default=0.0) <= 0.0:
        return Observation(order, architecture)  # infeasible for a reason that the problem does not know
    costs = None
    if not missing:
        costs = tuple(
            trial.value(metric.name) * (1.0 if metric.direction == "minimize" else -1.0)
            for metric in problem.objectives
        )
    return Observation(order, architecture, costs, margins)


@final
class History:
    """Asked and told architectures of one controller, in the order in which trials finished however they arrived.

    Attributes:
        revision: grows whenever trials tell something new.

    Args:
        problem: what is searched for.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.revision = 0
        self._told: dict[int, Observation] = {}
        self._lessons: list[Observation] = []
        self._scored: list[Observation] = []
        self._running: dict[int, Observation] = {}
        self._asked: dict[Architecture, None] = {}
        self._seen: set[Architecture] = set()

    @property
    def seen(self) -> int:
        """How many distinct architectures have been asked for or told."""
        return len(self._seen)

    def __contains__(self, architecture: Architecture) -> bool:
        """Return whether ``architecture`` has been asked for or told."""
        return architecture in self._seen

    def known(self) -> list[Architecture]:
        """Return every architecture that has been asked for or told, by ``arch_id``."""
        return sorted(self._seen, key=lambda architecture: architecture.arch_id)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Record trials; what is known already changes nothing.

        Raises:
            InvalidArchitectureError: a trial belongs to another space; nothing has been recorded.
        """
        space = self.problem.space
        read = {t.number: _observe(self.problem, t, space.architecture(t.architecture)) for t in trials}
        for number, item in read.items():
            old = self._told.get(number)
            if item == old:
                continue
            if old is not None:
                self._forget(old)
            if item.margins is not None:
                bisect.insort(self._lessons, item, key=_order)
            if item.costs is not None:
                bisect.insort(self._scored, item, key=_order)
            self._running.pop(number, None)
            if item.pending:
                self._running[number] = item
            self._told[number] = item
            self._seen.add(item.architecture)
            self._asked.pop(item.architecture, None)
            self.revision += 1

    def _forget(self, item: Observation) -> None:
        for lessons in (self._lessons, self._scored):
            place = bisect.bisect_left(lessons, item.order, key=_order)
            if lessons[place : place + 1] == [item]:
                del lessons[place]

    def lessons(self) -> list[Observation]:
        """Return the finished trials that teach something, in the order in which they finished."""
        return list(self._lessons)

    def learnt(self, *, scored: bool = False) -> int:
        """Return how many lessons there are, or how many that have objective values."""
        return len(self._scored if scored else self._lessons)

    def newest(self, memory: int, *, scored: bool = False) -> list[Observation]:
        """Return the last lessons, at most ``memory``, from a place that moves on by a seventh of that at a time.

        Args:
            memory: how many, at least 1.
            scored: only those that have objective values.
        """
        lessons, step = self._scored if scored else self._lessons, max(1, memory // 7)
        return lessons[max(0, -((memory - len(lessons)) // step) * step) :]

    def pending(self) -> list[Architecture]:
        """Return what is being evaluated: running trials by number, then asked architectures that are in no trial."""
        running = sorted(self._running.values(), key=_order)
        return [*(item.architecture for item in running), *self._asked]

    def generator(self) -> torch.Generator:
        """Return a fresh generator for the next proposal, seeded by the problem and by how much has been seen."""
        return torch.Generator().manual_seed(derive_seed(self.problem.seed, "ask", self.seen))

    def room(self, count: int) -> int:
        """Return how many of ``count`` architectures the space still has.

        Raises:
            ValueError: ``count`` is negative.
        """
        if count < 0:
            raise ValueError(f"count must be 0 or more, got {count}")
        return min(count, self.problem.space.size() - self.seen)

    def propose(
        self, count: int, draw: Callable[[torch.Generator], Architecture], *, redraws: int = 4
    ) -> list[Architecture]:
        """Return ``count`` unseen architectures made by ``draw``, fewer only when the space has no more.

        What ``draw`` returns is replaced by something unseen where it repeats: after ``redraws`` tries a mutation of
        it, then a random architecture, then whatever enumeration of the space finds.

        Raises:
            ValueError: ``count`` is negative.
        """
        proposed: list[Architecture] = []
        for _ in range(self.room(count)):
            architecture = self._unseen(draw, self.generator(), redraws)
            self._seen.add(architecture)
            self._asked[architecture] = None
            proposed.append(architecture)
        return proposed

    def _unseen(
        self, draw: Callable[[torch.Generator], Architecture], generator: torch.Generator, redraws: int
    ) -> Architecture:
        space = self.problem.space
        architecture = draw(generator)
        for _ in range(redraws):
            if architecture not in self:
                return architecture
            architecture = draw(generator)
        for _ in range(_TRIES // 4):
            if architecture not in self:
                return architecture
            architecture = space.mutate(architecture, generator)
        for _ in range(_TRIES):
            if architecture not in self:
                return architecture
            architecture = space.sample(generator)
        unseen = (candidate for candidate in space.architectures() if candidate not in self)
        if space.size() > _ENUMERABLE:
            return next(unseen)
        rest = list(unseen)
        return rest[int(torch.randint(len(rest), (), generator=generator))]
