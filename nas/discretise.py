"""What a differentiable search has found, and whether it is still worth anything when it is trained by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import lightning as L
import torch

from nas.controllers.base import Problem
from nas.objectives import Evaluation, FromScratch, Objective, WeightSharing
from nas.seeds import Seeds
from nas.standalone import Recipe
from search_spaces import Architecture
from supernets import Supernet
from trials import Limit, Metric

__all__ = ["GAP", "DiscretisationGap", "DiscretisationGapError", "Discretised", "SelectedArchitecture"]

GAP = "gap/discretise"
SEARCHED = "searched"


class DiscretisationGapError(ValueError):
    """The score of a search is not the score of its result."""


@dataclass(frozen=True)
class DiscretisationGap:
    """The headline score of one architecture, twice.

    Attributes:
        searched: with the weights of the search.
        trained: trained by itself.
    """

    searched: float
    trained: float

    @property
    def size(self) -> float:
        """How far they are apart."""
        return abs(self.searched - self.trained)

    def check(self, tolerance: float = 0.05) -> None:
        """Refuse a result whose two scores differ by more than ``tolerance``.

        Raises:
            DiscretisationGapError: they do.
        """
        if self.size > tolerance:
            raise DiscretisationGapError(
                f"the result of a search must score within {100 * tolerance:.1f} points of itself when it is trained "
                f"alone, got {100 * self.searched:.1f} % with the weights of the search and {100 * self.trained:.1f} % "
                "alone; search with a sensitivity table, straight-through at the end, or more bits to choose from"
            )


@final
class Discretised(Objective):
    """The score of an architecture trained by itself under hard rounding, and how far the search's weights are from it.

    Measures what :class:`nas.FromScratch` does, further ``searched``, the headline with the weights of the supernet,
    and ``gap/discretise``, the difference of the two. A mixture of roundings is far more benign than any single one,
    so the score of a search over mixtures means nothing until this gap is small: a limit on it must be set, and what
    exceeds it is infeasible, with both numbers on record.

    For spaces that round inside their modules, as :class:`search_spaces.GraphSpace` does.

    Args:
        supernet: trained; only read.
        data: trained on its training split, scored on ``split``.
        recipe: of the training.
        split: ``"val"`` or ``"test"``.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: L.LightningDataModule,
        *,
        recipe: Recipe | None = None,
        split: Literal["val", "test"] = "val",
    ) -> None:
        self.supernet = supernet
        self.data = data
        self.split = split
        self._alone = FromScratch(supernet, data, recipe=recipe, split=split)
        self._shared = WeightSharing(supernet, data, split=split)
        self.recipe = self._alone.recipe
        headline = self._alone.metrics[0]
        extra = (Metric(SEARCHED, headline.unit, headline.direction), Metric(GAP, headline.unit, "minimize"))
        self.metrics = (*self._alone.metrics, *extra)

    def identity(self) -> str:
        """Return what both scores depend on."""
        return f"discretised:{self._alone.identity()}:{self._shared.identity()}"

    def check(self, objectives: Sequence[Metric], limits: Sequence[Limit]) -> None:
        """Refuse a search without a limit on the gap.

        Raises:
            ValueError: there is none.
        """
        del objectives
        if not any(limit.metric == GAP for limit in limits):
            raise ValueError(
                f"search.limits must say how far the weights of the search may be from the truth; set max_{GAP}: 0.05"
            )

    def gap(self, architecture: Architecture, *, seed: int) -> DiscretisationGap:
        """Return both headline scores of ``architecture``."""
        values = self(architecture, seed=seed).measurements
        return DiscretisationGap(values[SEARCHED], values[self.metrics[0].name])

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Train and score ``architecture`` by itself, and score it with the weights of the search."""
        alone = self._alone(architecture, seed=seed)
        with torch.no_grad():
            searched = self._shared(architecture, seed=seed)
        headline = self.metrics[0].name
        gap = DiscretisationGap(searched.measurements[headline], alone.measurements[headline])
        values = {**alone.measurements, SEARCHED: gap.searched, GAP: gap.size}
        return Evaluation(values, {**alone.provenance, "searched": searched.provenance["weights"]})


@final
class SelectedArchitecture(Seeds):
    """What the sampling rule of the supernet has found: the result of a differentiable search, as an ordinary trial."""

    def __call__(self, problem: Problem, supernet: Supernet, data: L.LightningDataModule) -> Sequence[Architecture]:
        """Return the one architecture.

        Raises:
            ValueError: the rule finds none.
        """
        del problem, data
        selected = supernet.rule.selected()
        if selected is None:
            raise ValueError(
                f"search.seeds: SelectedArchitecture needs a rule that finds one, and {type(supernet.rule).__name__} "
                "does not; train with LPGNASRule or DifferentiableRule, or leave the seed out"
            )
        return [selected]
