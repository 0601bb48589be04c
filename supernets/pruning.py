"""Groups of channels that a width adds one after another, and how important each is."""

import itertools
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from search_spaces import Choice, Coupling, SearchSpace, Slicer, couplings, skeleton
from supernets.sorting import importance

__all__ = ["ChannelGroups", "opened"]


@final
class ChannelGroups:
    """What each candidate of a width adds to the one before it: a group of channels, pruned together.

    Args:
        space: the space; all other choices are taken at their largest.
        names: choices of widths.

    Raises:
        ValueError: the candidates of a choice open no channels, open the same ones, or open some whose order matters;
            or two choices open the same channels.
    """

    def __init__(self, space: SearchSpace, names: Sequence[str]) -> None:
        self._ends: dict[str, list[tuple[Coupling, tuple[int, ...]]]] = {}
        owners: dict[int, str] = {}
        for name in names:
            found = opened(space, name)
            if not found or any(len(set(ends)) < len(ends) for _, ends in found):
                what = "the same number of them for two candidates" if found else "none"
                raise ValueError(
                    f"choice {name!r} cannot be pruned by gates: each of its candidates must open further channels "
                    f"that may stand in any order, and it opens {what}; prune widths or expansions, and leave out "
                    "candidates that round to the same number"
                )
            for coupling, _ in found:
                if owners.setdefault(id(coupling), name) != name:
                    raise ValueError(
                        f"choices {owners[id(coupling)]!r} and {name!r} open the same channels (of "
                        f"{coupling.sites[0].tensor!r}), so that neither has groups of its own; prune one of them"
                    )
            self._ends[name] = found

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


def opened(space: SearchSpace, name: str) -> list[tuple[Coupling, tuple[int, ...]]]:
    """Return the coupled channels that grow with a choice, each with how many of them every candidate has.

    Channels that only some candidates have, such as those of a deeper block, are not among them.

    Args:
        space: the space; all other choices are taken at their largest.
        name: of a choice.
    """
    with torch.device("meta"):
        slicer = Slicer(space.superset(), space.rules())
    choice = space.choice(name)
    sizes = [_sizes(space, slicer, choice, position) for position in range(choice.size)]
    found = []
    for coupling in couplings(space).verified:
        site = next(site for site in coupling.sites if site.tensor in slicer.shapes)
        if any(site.tensor not in shapes for shapes in sizes):
            continue
        ends = tuple(shapes[site.tensor][site.dim] // site.blocks for shapes in sizes)
        if ends[0] < ends[-1]:
            found.append((coupling, ends))
    return found


def _sizes(space: SearchSpace, slicer: Slicer, choice: Choice, position: int) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a build by their names in the largest one."""
    chosen = space.architecture({**space.largest(), choice.name: choice.candidates[position]})
    with torch.device("meta"):
        return {part.source: part.shape for part in slicer.plan(skeleton(space, chosen), chosen)}
