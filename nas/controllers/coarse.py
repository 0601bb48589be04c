"""Coarse-to-fine selection: a grid over a few presets first, then the details of the best of them."""

import itertools
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import final

import numpy as np
import torch

from nas.controllers.base import Controller, Problem
from nas.controllers.history import History, Observation
from search_spaces import Architecture, Choice, derive_seed
from trials import Trial, crowding_distance, non_dominated

__all__ = ["CoarseToFineController"]

_LARGEST_GRID = 4096


@final
class CoarseToFineController(Controller):
    """Selects in two phases (BigNAS, Yu et al., arXiv 2003.11142, section 3.4).

    *Coarse*: choices are set in groups, all of a group at the same place between their first and their last candidate:
    with three presets small, middle or large. The architectures of the grid over all groups are proposed in random
    order, until ``coarse`` of them that hold the limits are known or the grid is used up. *Fine*: each proposal mutates
    one of the ``skeletons`` best architectures of the grid, which one by chance.

    Grid points that break a limit on a cost are never evaluated (a search screens them), so they take no time.
    Skeletons are ranked by the objective, several objectives by Pareto front and crowding; while none holds the limits,
    by violation.

    Differs from the paper: the size of the coarse phase is bounded, and the mutated copies do not have to keep the
    structure of their skeleton.

    Args:
        problem: what is searched for.
        groups: glob over names of choices -> number of presets; a choice belongs to the first glob that matches it, and
            one that none matches stays at its largest in the grid. Default: a group for each last part of a name
            (``width``, ``depth``, ``kernel``), with three presets.
        coarse: grid points within the limits at which the fine phase begins.
        skeletons: grid points that are mutated.
        mutation_probability: for each choice; at least one changes. ``None``: one over the number of choices.

    Raises:
        ValueError: a number is out of range, a glob matches no choice, or the grid is too large.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        groups: Mapping[str, int] | None = None,
        coarse: int = 64,
        skeletons: int = 4,
        mutation_probability: float | None = None,
    ) -> None:
        if min(coarse, skeletons) < 1:
            raise ValueError(f"coarse and skeletons must be 1 or more, got {coarse=} and {skeletons=}")
        if mutation_probability is not None and not 0.0 <= mutation_probability <= 1.0:
            raise ValueError(f"mutation_probability must be between 0 and 1, got {mutation_probability}")
        self.problem = problem
        self.groups = groups
        self.coarse = coarse
        self.skeletons = skeletons
        self.mutation_probability = mutation_probability
        self._history = History(problem)
        self._grid = dict.fromkeys(self._make_grid())

    def _levels(self) -> dict[str, int]:
        """Glob -> presets, checked."""
        names = [choice.name for choice in self.problem.space.choices]
        groups = self.groups
        if groups is None:
            groups = {f"*.{name.rpartition('.')[2]}" if "." in name else name: 3 for name in names}
        for glob, count in groups.items():
            if not any(fnmatchcase(name, glob) for name in names):
                raise ValueError(f"groups[{glob!r}] matches no choice; choices are {names}")
            if count < 1:
                raise ValueError(f"groups[{glob!r}] must be 1 or more presets, got {count}")
        size = int(np.prod([float(count) for count in groups.values()]))
        if size > _LARGEST_GRID:
            raise ValueError(
                f"the grid over {list(groups)} has {size} points, more than {_LARGEST_GRID}; give groups with fewer "
                "presets, or globs that put more choices into one group"
            )
        return dict(groups)

    def _make_grid(self) -> list[Architecture]:
        """Return the distinct architectures of the grid in the order in which they are proposed."""
        space, levels = self.problem.space, self._levels()
        member = {
            choice.name: next((g for g, glob in enumerate(levels) if fnmatchcase(choice.name, glob)), None)
            for choice in space.choices
        }

        def index(choice: Choice, point: Sequence[float]) -> int:
            group = member[choice.name]
            return round((1.0 if group is None else point[group]) * (choice.size - 1))

        places = [[level / (count - 1) if count > 1 else 1.0 for level in range(count)] for count in levels.values()]
        grid = list(
            dict.fromkeys(
                space.architecture({choice.name: choice.candidates[index(choice, point)] for choice in space.choices})
                for point in itertools.product(*places)
            )
        )
        generator = torch.Generator().manual_seed(derive_seed(self.problem.seed, "grid"))
        return [grid[i] for i in torch.randperm(len(grid), generator=generator).tolist()]

    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` grid points, or mutated skeletons."""
        return self._history.propose(count, self._draw)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from trials."""
        self._history.tell(trials)

    def best(self) -> list[Architecture]:
        """Return the skeletons, best first; empty while no grid point is known."""
        known = [item for item in self._history.lessons() if item.architecture in self._grid]
        feasible = [item for item in known if item.violation == 0.0 and item.costs is not None]
        broken = sorted((item for item in known if item.violation > 0.0), key=lambda item: (item.violation, item.order))
        return [item.architecture for item in (_ranked(feasible) or broken)[: self.skeletons]]

    def _draw(self, generator: torch.Generator) -> Architecture:
        space = self.problem.space
        broken = {item.architecture for item in self._history.lessons() if item.violation > 0.0}
        known = sum(point in self._history and point not in broken for point in self._grid)
        if known < self.coarse:
            fresh = next((point for point in self._grid if point not in self._history), None)
            if fresh is not None:
                return fresh
        best = self.best()
        if not best:
            return space.sample(generator)
        parent = best[int(torch.randint(len(best), (), generator=generator))]
        return space.mutate(parent, generator, self.mutation_probability)


def _ranked(feasible: Sequence[Observation]) -> list[Observation]:
    """Observations by their one objective, or by front and falling crowding distance."""
    if not feasible or len(feasible[0].costs or ()) == 1:
        return sorted(feasible, key=lambda item: (item.costs or (), item.order))
    ranked: list[Observation] = []
    left = list(feasible)
    while left:
        points = np.array([item.costs for item in left])
        mask = non_dominated(points, ("minimize",) * points.shape[1])
        front = [item for item, chosen in zip(left, mask, strict=True) if chosen]
        ranked.extend(front[i] for i in np.argsort(-crowding_distance(points[mask]), kind="stable"))
        left = [item for item, chosen in zip(left, mask, strict=True) if not chosen]
    return ranked
