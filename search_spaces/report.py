"""What a space shares: which tensors are elastic, and whether a subnetwork reads them in place or copies them."""

from dataclasses import dataclass
from typing import Literal

import torch

from search_spaces.slicing import Slicer
from search_spaces.space import SearchSpace

__all__ = ["SharingReport", "TensorSharing", "sharing_report"]


@dataclass(frozen=True)
class TensorSharing:
    """How one tensor of the largest build is used over a space.

    Attributes:
        name: its name.
        largest: its shape.
        smallest: the smallest size of each dimension among the probed architectures that have it.
        how: ``"fixed"`` (always whole), ``"view"`` (parts share storage with it), ``"copy"`` (some parts are joined
            from several blocks, so they are copied).
        optional: whether some architectures do without it.
    """

    name: str
    largest: tuple[int, ...]
    smallest: tuple[int, ...]
    how: Literal["fixed", "view", "copy"]
    optional: bool

    @property
    def size(self) -> int:
        """Number of elements of the whole tensor."""
        return torch.Size(self.largest).numel()


@dataclass(frozen=True)
class SharingReport:
    """What is elastic, what is shared as a view, what is copied, and what is fixed; ``str()`` gives a table.

    Attributes:
        tensors: one entry per tensor of the largest build, in its order.
        changed_by: choice -> number of tensors that it shrinks or removes by itself, starting from the largest.
        architectures: size of the space.
    """

    tensors: tuple[TensorSharing, ...]
    changed_by: dict[str, int]
    architectures: int

    def share(self, how: Literal["fixed", "view", "copy"]) -> float:
        """Return the fraction of all parameters that is used in the given way."""
        total = sum(tensor.size for tensor in self.tensors)
        return sum(tensor.size for tensor in self.tensors if tensor.how == how) / max(total, 1)

    def __str__(self) -> str:
        width = max((len(tensor.name) for tensor in self.tensors), default=6)
        total = sum(tensor.size for tensor in self.tensors)
        lines = [
            f"{self.architectures:,} architectures; {total:,} shared parameters: "
            f"{self.share('view'):.0%} cut as views, {self.share('copy'):.0%} as copies, "
            f"{self.share('fixed'):.0%} fixed",
            *(f"  choice {name}: changes {count} tensors" for name, count in self.changed_by.items()),
            f"  {'tensor':{width}}  use    smallest -> largest",
        ]
        for t in self.tensors:
            shapes = f"{t.largest}" if t.how == "fixed" else f"{t.smallest} -> {t.largest}"
            lines.append(f"  {t.name:{width}}  {t.how:5}  {'absent or ' if t.optional else ''}{shapes}")
        return "\n".join(lines)


def sharing_report(space: SearchSpace) -> SharingReport:
    """Derive the plans of the probes of ``space`` and say what they share; builds on ``meta`` only.

    Raises:
        SlicingError: a plan cannot be derived.
    """
    largest = space.largest()
    with torch.device("meta"):
        big = space.build(largest)
    slicer = Slicer(big, space.rules())
    smallest = {name: list(shape) for name, shape in slicer.shapes.items()}
    copied: set[str] = set()
    optional: set[str] = set()
    changed_by: dict[str, int] = {choice.name: 0 for choice in space.choices}
    for probe in space.probes():
        with torch.device("meta"):
            plan = slicer.plan(space.build(probe), probe)
        parts = {part.source: part for part in plan}
        optional |= slicer.shapes.keys() - parts.keys()
        copied |= {part.source for part in plan if not part.is_view}
        for part in plan:
            smallest[part.source] = [min(pair) for pair in zip(smallest[part.source], part.shape, strict=True)]
        changed = len(slicer.shapes) - sum(not part.cuts for part in parts.values())
        differing = [c.name for c in space.choices if probe.get(c.name) != largest.get(c.name)]
        own = [name for name in differing if name in probe]
        if len(own) == 1:
            changed_by[own[0]] = max(changed_by[own[0]], changed)
    return SharingReport(
        tuple(
            TensorSharing(
                name,
                shape,
                tuple(smallest[name]),
                "copy" if name in copied else "fixed" if tuple(smallest[name]) == shape else "view",
                name in optional,
            )
            for name, shape in slicer.shapes.items()
        ),
        changed_by,
        space.size(),
    )
