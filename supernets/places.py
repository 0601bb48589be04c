"""Where narrow networks lie in a wider one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces import Architecture, SearchSpace, Slicer, SlicingError, TensorSlice

__all__ = ["Geometry", "GrowthError", "measure"]


class GrowthError(ValueError):
    """Trained networks cannot be grown into the one that is asked for."""


@dataclass(frozen=True)
class Geometry:
    """Where the old and the new part of one tensor lie.

    Attributes:
        places: for the old and the new part, the indices along each dimension.
        growing: dimensions that have a new part.
        names: of the tensor in each member.
    """

    places: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    growing: tuple[int, ...]
    names: tuple[str, ...]

    def block(self, sides: Mapping[int, int]) -> tuple[Tensor, ...]:
        """Index of the block that lies on ``sides[dim]`` along each growing dimension, 0 for old and 1 for new."""
        chosen = [self.places[sides.get(dim, 0)][dim] for dim in range(len(self.places[0]))]
        return tuple(
            places.view([-1 if dim == at else 1 for at in range(len(chosen))]) for dim, places in enumerate(chosen)
        )

    def off_diagonal(self) -> Iterator[dict[int, int]]:
        """Yield the sides of every block that is neither wholly old nor wholly new."""
        for sides in itertools.product((0, 1), repeat=len(self.growing)):
            if len(set(sides)) > 1:
                yield dict(zip(self.growing, sides, strict=True))


def _kept(part: TensorSlice, dim: int, size: int) -> Tensor:
    """Indices along one dimension of the largest tensor that a part keeps."""
    cuts = tuple((0, start, length, blocks) for d, start, length, blocks in part.cuts if d == dim)
    return TensorSlice(part.name, part.source, (size,), cuts)(torch.arange(size))


def _centred(*parts: TensorSlice) -> set[int]:
    """Dimensions cut from the centre: kernels, not widths."""
    return {dim for part in parts for dim, start, *_ in part.cuts if start > 0}


def measure(space: SearchSpace, members: Sequence[Architecture], to: Architecture) -> dict[str, Geometry]:
    """Return tensor of ``to`` -> where the members lie in it.

    The first member lies where weight sharing would cut it from; the rest of every width is new.

    Args:
        space: of all architectures.
        members: one, or two whose widths add up to those of ``to``.
        to: the wider architecture.

    Raises:
        GrowthError: widths do not add up, or depths differ.
    """
    with torch.device("meta"):
        slicer = Slicer(space.superset(), space.rules())
        try:
            wide, *plans = (slicer.plan(space.build(architecture), architecture) for architecture in (to, *members))
        except SlicingError as error:
            raise GrowthError(str(error)) from error
    parts = [{part.source: part for part in plan} for plan in plans]
    wanted = {part.source for part in wide}
    odd = sorted(set().union(*(wanted ^ given.keys() for given in parts)))
    if odd:
        raise GrowthError(
            f"growth is in width alone, but the tensors {odd[:6]} are not in all networks; give architectures of equal "
            "depth and equal operations"
        )
    return {
        part.name: _locate(part, [given[part.source] for given in parts], slicer.shapes[part.source]) for part in wide
    }


def _locate(part: TensorSlice, given: Sequence[TensorSlice], shape: tuple[int, ...]) -> Geometry:
    old, new = given[0], given[1] if len(given) == 2 else None
    centred = _centred(part, *given)
    first: list[Tensor] = []
    second: list[Tensor] = []
    growing = []
    for dim, size in enumerate(shape):
        whole = _kept(part, dim, size)
        inside = torch.isin(whole, _kept(old, dim, size))
        if int(inside.sum()) < old.shape[dim]:
            raise GrowthError(
                f"{part.name} is {part.shape} in the network to grow into and {old.shape} in the trained one, which "
                "must not be larger in any dimension; choose a wider architecture"
            )
        first.append(inside.nonzero().flatten())
        rest = (~inside).nonzero().flatten()
        if dim in centred:
            second.append(first[-1] if new is None else torch.isin(whole, _kept(new, dim, size)).nonzero().flatten())
        elif len(rest):
            second.append(rest)
            growing.append(dim)
        else:
            second.append(first[-1])
        if new is not None and len(second[-1]) != new.shape[dim]:
            raise GrowthError(
                f"widths must add up: dimension {dim} of {part.name} is {part.shape[dim]}, and the trained networks "
                f"have {old.shape[dim]} and {new.shape[dim]}; choose architectures whose widths add up, or grow one "
                "network"
            )
    return Geometry((tuple(first), tuple(second)), tuple(growing), tuple(slice_.name for slice_ in given))
