"""Which dimensions of the largest build may be permuted together without changing what it computes."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from search_spaces.permutation import STATISTICS, PermutationCheck, Site, alone, norm_homes, statistics_of
from search_spaces.skeleton import skeleton
from search_spaces.slicing import Slicer
from search_spaces.space import SearchSpace

__all__ = ["Coupling", "Couplings", "couplings"]

_READERS = 3
_MANY = 6


@dataclass(frozen=True)
class Coupling:
    """Sites that hold the same channels: permuting all of them alike changes no output of the largest build.

    Attributes:
        size: number of channels.
        sites: in module order.
    """

    size: int
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Couplings:
    """What was found in a space.

    Attributes:
        verified: elastic channels that may be permuted, as a check on random weights has shown.
        left_out: elastic dimensions for which that is not so, e.g. heads packed beside each other.
    """

    verified: tuple[Coupling, ...]
    left_out: tuple[Coupling, ...]

    def summary(self) -> str:
        """Return how many classes of channels may be permuted, and the first tensor of each that may not."""
        left = ", ".join(coupling.sites[0].tensor for coupling in self.left_out) or "none"
        return f"{len(self.verified)} classes of elastic channels, left out: {left}"


def couplings(space: SearchSpace, *, seed: int = 0) -> Couplings:
    """Find the coupled channels of a space.

    Dimensions that shrink alike whichever choice is made smaller form a class, which is coupled wherever a part of it
    is. Classes are split along the order of modules where a part proves to be coupled by itself. Proof is numerical:
    weights and statistics are drawn at random, the sites are permuted in two ways that between them make every
    permutation, and the outputs of the largest build in evaluation mode must not change, nor those of builds with
    another candidate of a categorical choice. Cropped dimensions of kernels are no channels.

    Costs some forward passes of one example through the largest build for each block, at the first call for a space.

    Args:
        space: the search space.
        seed: of the random weights. The global random state is left as it was.
    """
    known: dict[int, Couplings] = vars(space).setdefault("_couplings", {})
    if seed not in known:
        known[seed] = _found(space, seed)
    return known[seed]


def _found(space: SearchSpace, seed: int) -> Couplings:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        largest = space.superset()
        slicer = Slicer(largest, space.rules())
        preserves = PermutationCheck(space, slicer, largest)
        verified: list[Coupling] = []
        left_out: list[Coupling] = []
        for size, sites in _classes(space, slicer, largest):
            rest = list(sites)
            for readers in range(1, _READERS + 1):
                for part in _parts(rest, readers, functools.partial(preserves, size)):
                    verified.append(Coupling(size, part))
                    rest = [site for site in rest if site not in part]
            if rest:
                (verified if preserves(size, [rest]) else left_out).append(Coupling(size, tuple(rest)))
        return Couplings(tuple(verified), tuple(left_out))


def _parts(
    sites: Sequence[Site], readers: int, preserves: Callable[[Sequence[Sequence[Site]]], bool]
) -> list[tuple[Site, ...]]:
    """Return parts of a class that are coupled by themselves: from a maker to the last of so many readers after it.

    Blocks repeat, so all such stretches side by side are tried together before each is tried alone. In a class of many
    layers only those within one block are tried.
    """
    starts = [position for position, site in enumerate(sites) if site.role == "makes"]
    runs = {start: run for start in starts if (run := _run(sites, start, readers)) and len(run) < len(sites)}
    if len(starts) > _MANY:
        runs = {start: run for start, run in runs.items() if _home(run) > _home(sites)}
    together = _side_by_side(runs, lambda _: True)
    if len(together) > 1 and preserves(together):
        return together
    return _side_by_side(runs, lambda run: preserves([run]))


def _side_by_side(
    runs: Mapping[int, tuple[Site, ...]], accept: Callable[[tuple[Site, ...]], bool]
) -> list[tuple[Site, ...]]:
    """Return the accepted runs that do not overlap, by rising start."""
    chosen: list[tuple[Site, ...]] = []
    after = 0
    for start, run in runs.items():
        if start >= after and accept(run):
            chosen.append(run)
            after = start + len(run)
    return chosen


def _run(sites: Sequence[Site], start: int, readers: int) -> tuple[Site, ...]:
    """Return the sites from ``start`` to the last of so many readers after it; nothing if there are fewer."""
    ends = [position for position in range(start, len(sites)) if sites[position].role == "reads"]
    return tuple(sites[start : ends[readers - 1] + 1]) if len(ends) >= readers else ()


def _home(sites: Sequence[Site]) -> int:
    """Return how deep the innermost module lies that holds all the sites."""
    paths = [site.tensor.split(".")[:-1] for site in sites]
    return sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False)))


def _classes(space: SearchSpace, slicer: Slicer, largest: nn.Module) -> list[tuple[int, list[Site]]]:
    """Sites that shrink alike, in module order, with the number of their channels."""
    shapes = {name: tuple(shape) for name, shape in slicer.shapes.items()}
    shapes |= {name: tuple(value.shape) for _, name, value in statistics_of(largest)}
    blocks: dict[tuple[str, int], int] = {}
    cropped: set[tuple[str, int]] = set()
    seen: list[dict[str, tuple[int, ...]]] = []
    for _, probe in alone(space):
        with torch.device("meta"):
            module = skeleton(space, probe)
        plan = slicer.plan(module, probe)
        sizes = {part.source: part.shape for part in plan}
        for part in plan:
            for dim, start, _, count in part.cuts:
                blocks[part.source, dim] = count
                if start:
                    cropped.add((part.source, dim))
        prefixes = norm_homes(module, {part.name: part.source for part in plan})
        for prefix, name, value in statistics_of(module):
            leaf = name.rpartition(".")[2]
            home = prefixes[prefix]
            sizes[f"{home}.{leaf}" if home else leaf] = tuple(value.shape)
        seen.append(sizes)
    classes: dict[tuple[int, ...], list[Site]] = {}
    for name, dim, role in _places(largest, shapes):
        scale = name if name in slicer.shapes else f"{name.rpartition('.')[0]}.weight".removeprefix(".")
        count = blocks.get((scale, dim), 1)
        full = shapes[name][dim]
        signature = (full // count, *(sizes.get(name, shapes[name])[dim] // count for sizes in seen))
        if len(set(signature)) > 1 and (name, dim) not in cropped:
            classes.setdefault(signature, []).append(Site(name, dim, count, role))
    return [(signature[0], sites) for signature, sites in classes.items()]


def _places(largest: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int, str]]:
    """Every dimension of every tensor, layer by layer, those that channels are read along first."""
    done: set[str] = set()
    for prefix, layer in largest.named_modules():
        for leaf in (*layer._parameters, *(STATISTICS if isinstance(layer, _NormBase) else ())):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if name not in shapes or name in done:
                continue
            done.add(name)
            reads = _reading(layer, leaf)
            keeps = isinstance(layer, _ConvNd) and layer.groups == layer.out_channels > 1
            dims = range(len(shapes[name]))
            for dim in sorted(dims, key=lambda dim: dim != reads):
                yield name, dim, "keeps" if keeps or len(dims) < 2 else "reads" if dim == reads else "makes"


def _reading(layer: nn.Module, leaf: str) -> int | None:
    """Return the dimension along which a weight reads channels."""
    if isinstance(layer, _ConvTransposeNd):
        return 0 if leaf == "weight" else None
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return 1 if "weight" in leaf else None
    return 1 if isinstance(layer, nn.Linear | _ConvNd) and leaf == "weight" else None
