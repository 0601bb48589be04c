"""Evolution: NSGA-II for any number of objectives, regularised evolution for one."""

import heapq
from collections.abc import Sequence
from typing import Literal, final

import numpy as np
import torch

from nas.controllers.base import Controller, Problem
from nas.controllers.history import History, Observation
from search_spaces import Architecture
from trials import Trial, crowding_distance, non_dominated

__all__ = ["EvolutionController"]


@final
class EvolutionController(Controller):
    """Breeds architectures from the best ones found so far.

    ``nsga2`` (Deb et al. 2002): survivors are the ``population_size`` best trials under constrained domination (Sec.
    VI: a feasible one beats an infeasible one, of two infeasible ones the smaller total violation wins, feasible ones
    compare by Pareto dominance), ordered by front and, within a front, by falling crowding distance (Sec. III). Parents
    win tournaments under that order; children come from uniform crossover and mutation.
    Differs from the paper: survivors are chosen among all trials told so far rather than once a generation, so workers
    never wait for each other, and no child repeats a known architecture.

    ``regularized`` (Real et al. 2019, Algorithm 1): the population is the ``population_size`` youngest trials, however
    good the older ones were; the best of a random sample of ``tournament`` of them is mutated in one choice.
    Differs from the paper: infeasible trials have a place, by rising violation, only while there are too few feasible
    ones to fill the population.

    Violations of different limits are added relative to their bounds. Until ``population_size`` architectures are
    known, proposals are random.

    Args:
        problem: what is searched for; exactly one objective for ``regularized``.
        population_size: number of survivors.
        method: ``nsga2`` or ``regularized``.
        mutation_probability: for each choice; at least one changes in a mutation. ``None``: one over the number of
            choices for ``nsga2``, exactly one choice for ``regularized``.
        crossover_probability: of a child having two parents (``nsga2`` only).
        tournament: how many survivors compete to be a parent. ``None``: 2 for ``nsga2``, a quarter of the population
            for ``regularized``, as in the papers.

    Raises:
        ValueError: a number is out of range, the method unknown, or ``regularized`` is given several objectives.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        population_size: int = 32,
        method: Literal["nsga2", "regularized"] = "nsga2",
        mutation_probability: float | None = None,
        crossover_probability: float = 0.9,
        tournament: int | None = None,
    ) -> None:
        if method not in ("nsga2", "regularized"):
            raise ValueError(f"method must be 'nsga2' or 'regularized', got {method!r}")
        if method == "regularized" and len(problem.objectives) != 1:
            raise ValueError(
                f"method 'regularized' needs exactly one objective, got {[m.name for m in problem.objectives]}; "
                "use method 'nsga2', or make limits of the others"
            )
        if population_size < 2:
            raise ValueError(f"population_size must be 2 or more, got {population_size}")
        for name, value in (("mutation", mutation_probability), ("crossover", crossover_probability)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}_probability must be between 0 and 1, got {value}")
        if tournament is not None and not 1 <= tournament <= population_size:
            raise ValueError(f"tournament must be between 1 and population_size={population_size}, got {tournament}")
        self.problem = problem
        self.population_size = population_size
        self.method: Literal["nsga2", "regularized"] = method
        self.mutation_probability = mutation_probability
        self.crossover_probability = crossover_probability
        self.tournament = tournament
        self._history = History(problem)
        self._revision = -1
        self._ranked: list[Architecture] = []

    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` children of the current survivors, or random ones while there are too few."""
        return self._history.propose(count, self._draw)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Let trials compete for a place among the survivors."""
        self._history.tell(trials)

    def survivors(self) -> list[Architecture]:
        """Return the architectures that parents are drawn from, best first."""
        if self._revision != self._history.revision:
            told = self._history.lessons()
            size = self.population_size
            feasible = [item for item in told if item.violation == 0.0 and item.costs is not None]
            if self.method == "regularized":
                feasible = feasible[-size:]
            if len(self.problem.objectives) == 1:
                best = heapq.nsmallest(size, feasible, key=lambda item: (item.costs, item.order))
            else:
                best = self._best_fronts(feasible)
            if len(best) < size:
                others = (item for item in told if item.violation > 0.0)
                best += heapq.nsmallest(size - len(best), others, key=lambda item: (item.violation, item.order))
            self._ranked = [item.architecture for item in best[:size]]
            self._revision = self._history.revision
        return list(self._ranked)

    def _best_fronts(self, feasible: list[Observation]) -> list[Observation]:
        """Peel non-dominated fronts until they fill the population."""
        best: list[Observation] = []
        directions = ("minimize",) * len(self.problem.objectives)
        points = np.array([item.costs for item in feasible])
        left = np.arange(len(feasible))
        while len(left) and len(best) < self.population_size:
            mask = non_dominated(points[left], directions)
            front = left[mask]
            distances = crowding_distance(points[front])
            best.extend(feasible[front[index]] for index in np.argsort(-distances, kind="stable"))
            left = left[~mask]
        return best

    def _draw(self, generator: torch.Generator) -> Architecture:
        space = self.problem.space
        ranked = self.survivors()
        if self._history.seen < self.population_size or len(ranked) < 2:
            return space.sample(generator)
        first = self._parent(ranked, generator)
        if self.method == "regularized":
            return space.mutate(first, generator, self.mutation_probability or 0.0)
        if float(torch.rand((), generator=generator)) >= self.crossover_probability:
            return space.mutate(first, generator, self.mutation_probability)
        child = space.crossover(first, self._parent(ranked, generator), generator)
        probability = 1 / len(space.choices) if self.mutation_probability is None else self.mutation_probability
        mutates = 1.0 - (1.0 - probability) ** len(space.choices)
        if float(torch.rand((), generator=generator)) < mutates:
            child = space.mutate(child, generator, probability)
        return child

    def _parent(self, ranked: Sequence[Architecture], generator: torch.Generator) -> Architecture:
        """Return the best of ``tournament`` survivors drawn with replacement; position is fitness."""
        size = self.tournament
        if size is None:
            size = 2 if self.method == "nsga2" else max(2, self.population_size // 4)
        return ranked[int(torch.randint(len(ranked), (size,), generator=generator).min())]
