"""Groups of channels that a width adds one after another, and how important each is."""

import itertools
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from search_spaces import Choice, Coupling, SearchSpace, Slicer, couplings, skeleton
from supernets.sorting import importance

__all__ = ["ChannelGroups"]


@final
class ChannelGroups:
    """What each candidate of a width adds to the one before it: a group of channels, pruned together.

    Args:
        space: the space; all other choices are taken at their largest.
        names: choices of widths.

    Raises:
        ValueError: the candidates of a choice open no channels, open the same ones, or open some whose order matters.
    """

    def __init__(self, space: SearchSpace, names: Sequence[str]) -> None:
        with torch.device("meta"):
            slicer = Slicer(space.superset(), space.rules())
        self._ends: dict[str, list[tuple[Coupling, tuple[int, ...]]]] = {}
        for name in names:
            sizes = [self._sizes(space, slicer, space.choice(name), k) for k in range(space.choice(name).size)]
            found = []
            for coupling in couplings(space).verified:
                site = next(site for site in coupling.sites if site.tensor in slicer.shapes)
                ends = tuple(size[site.tensor][site.dim] // site.blocks for size in sizes)
                if ends[0] < ends[-1]:
                    found.append((coupling, ends))
            if not found or any(len(set(ends)) < len(ends) for _, ends in found):
                what = "the same number of them for two candidates" if found else "none"
                raise ValueError(
                    f"choice {name!r} cannot be pruned by gates: each of its candidates must open further channels "
                    f"that may stand in any order, and it opens {what}; prune widths or expansions, and leave out "
                    "candidates that round to the same number"
                )
            self._ends[name] = found

    @staticmethod
    def _sizes(space: SearchSpace, slicer: Slicer, choice: Choice, position: int) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the tensors of a build by their names in the largest one."""
        chosen = space.architecture({**space.largest(), choice.name: choice.candidates[position]})
        with torch.device("meta"):
            return {part.source: part.shape for part in slicer.plan(skeleton(space, chosen), chosen)}

    def metrics(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return choice -> metric ``(K - 1,)`` of the groups that its candidates but the first add.

        ``m_j = mean_{i in group j} I_i / mean_i I_i`` with ``I_i`` the importance of a channel
        (:func:`supernets.sorting.importance`): 1 for a group that is worth as much as the others. The mean over all
        layers whose channels the choice opens.

        Args:
            tensors: of the largest build by name.
        """
        found = {}
        for name, parts in self._ends.items():
            rows = []
            for coupling, ends in parts:
                worth = importance(tensors, coupling)
                groups = [worth[a:b].mean() for a, b in itertools.pairwise(ends)]
                rows.append(torch.stack(groups) / worth[: ends[-1]].mean())
            found[name] = torch.stack(rows).mean(0)
        return found
