"""Soft prefix and ring masks: the weight of every position of a tensor under a distribution over sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from supernets.laws import Branch, joint

__all__ = ["Crop", "Mask", "make_masks"]


@dataclass(frozen=True)
class Crop:
    """How a dimension is cut: which dimension, its extent in the largest build, and the rule.

    Attributes:
        dim: the dimension.
        extent: its size in the largest build.
        blocks: equal blocks, each cut by itself.
        centred: whether the centre is kept, not the first part.
    """

    dim: int
    extent: int
    blocks: int = 1
    centred: bool = False

    def kept(self, sizes: Tensor) -> Tensor:
        """Return ``(*sizes, extent)``, 1 where a build of that size has the position and 0 elsewhere."""
        largest = self.extent // self.blocks
        lengths = sizes[..., None] // self.blocks
        start = (largest - lengths) // 2 if self.centred else torch.zeros_like(lengths)
        positions = torch.arange(largest)
        inside = (positions >= start) & (positions < start + lengths)
        return inside.repeat(*[1] * sizes.ndim, self.blocks).float()


@final
class Mask:
    """Position -> probability that a build has it: ``m_i = sum_k p_k [i inside size k]``.

    The choices being independent, ``p`` runs over the combinations of those that the size depends on. One product of
    the probabilities with a 0/1 matrix, never a pass over the network for each candidate.

    Args:
        terms: branch conditions, choices, and 0/1 matrix ``(combinations, positions)``; summed.
    """

    def __init__(self, terms: Sequence[tuple[tuple[tuple[str, int], ...], tuple[str, ...], Tensor]]) -> None:
        self.terms = tuple(terms)
        self._placed: dict[torch.device, list[Tensor]] = {}

    def __call__(self, relaxed: Mapping[str, Tensor]) -> Tensor:
        """Return the mask, flat."""
        device = next(iter(relaxed.values())).device
        if device not in self._placed:
            self._placed[device] = [matrix.to(device) for *_, matrix in self.terms]
        total: Tensor | None = None
        for (given, choices, _), matrix in zip(self.terms, self._placed[device], strict=True):
            part = joint([relaxed[name] for name in choices]) @ matrix if choices else matrix[0]
            for name, position in given:
                part = part * relaxed[name][position]
            total = part if total is None else total + part
        assert total is not None  # noqa: S101 - a law has a branch
        return total

    @property
    def choices(self) -> frozenset[str]:
        """Every choice that the mask depends on."""
        return frozenset(
            name for given, choices, _ in self.terms for name in (*choices, *(choice for choice, _ in given))
        )

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal masks."""
        return tuple((given, choices, matrix.numpy().tobytes()) for given, choices, matrix in self.terms)


def make_masks(
    laws: Sequence[tuple[Crop, tuple[Branch, ...]]], order: Sequence[str]
) -> list[tuple[tuple[int, ...], Mask]]:
    """Return (dimensions, mask over them) for the elastic dimensions of one tensor.

    Dimensions that depend on a choice in common (both sides of a kernel, say) are masked together, because a product
    of their masks would count its probability twice.

    Args:
        laws: how each dimension is cut, and its size.
        order: names of all choices of the space.
    """
    groups: list[list[tuple[Crop, tuple[Branch, ...]]]] = []
    for law in laws:
        own = set(law[1][0].choices)
        shared = [
            group
            for group in groups
            if len(law[1]) == 1
            and all(len(b) == 1 for _, b in group)
            and any(own & set(b[0].choices) for _, b in group)
        ]
        groups = [group for group in groups if not any(group is other for other in shared)]
        groups.append([other for group in shared for other in group] + [law])
    made: list[tuple[tuple[int, ...], Mask]] = []
    for group in groups:
        group = sorted(group, key=lambda law: law[0].dim)
        dims = tuple(crop.dim for crop, _ in group)
        if len(group) == 1:
            crop, branches = group[0]
            terms = [(b.given, b.choices, crop.kept(b.sizes).view(-1, crop.extent)) for b in branches]
        else:
            names = tuple(name for name in order if any(name in b[0].choices for _, b in group))
            counts = {name: n for _, (b,) in group for name, n in zip(b.choices, b.sizes.shape, strict=True)}
            shape = [counts[name] for name in names]
            matrix = torch.ones(shape)
            for crop, (branch,) in group:
                sizes = branch.sizes.view([counts[name] if name in branch.choices else 1 for name in names])
                kept = crop.kept(sizes.expand(shape))
                matrix = matrix[..., None] * kept.view(*kept.shape[:-1], *[1] * (matrix.ndim - len(names)), crop.extent)
            terms = [((), names, matrix.view(-1, matrix[(0,) * len(names)].numel()))]
        made.append((dims, Mask(terms)))
    return made
