"""Which dimensions of the largest build may be permuted together without changing what it computes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves

from search_spaces.architecture import Architecture
from search_spaces.skeleton import skeleton
from search_spaces.slicing import Slicer
from search_spaces.space import SearchSpace

__all__ = ["Coupling", "Couplings", "Site", "couplings", "permuted"]

_REACH = 8
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Site:
    """One dimension of one tensor of the largest build.

    Attributes:
        tensor: name of a parameter, or of a running statistic of a norm.
        dim: the dimension.
        blocks: number of equal blocks that it packs, each permuted alike.
        role: ``"reads"`` where a matrix or kernel takes channels in along this dimension, ``"makes"`` where one gives
            them out, ``"keeps"`` for the scales, biases and statistics between.
    """

    tensor: str
    dim: int
    blocks: int = 1
    role: str = "keeps"


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


def permuted(tensor: Tensor, site: Site, order: Tensor) -> Tensor:
    """Return ``tensor`` with position ``i`` of ``site`` taken from position ``order[i]``, in every block.

    Args:
        tensor: of the largest build.
        site: one of its dimensions.
        order: permutation ``(size,)`` of the channels of one block.
    """
    order = order.to(tensor.device)
    starts = torch.arange(site.blocks, device=tensor.device)[:, None] * len(order)
    return tensor.index_select(site.dim, (starts + order).flatten())


def couplings(space: SearchSpace, *, seed: int = 0) -> Couplings:
    """Find the coupled channels of a space.

    Dimensions that shrink alike whichever choice is made smaller form a class, which is coupled wherever a part of it
    is. Classes are split along the order of modules where a part proves to be coupled by itself. Proof is numerical:
    weights and statistics are drawn at random, the sites are permuted by a transposition and by a full cycle, which
    between them make every permutation, and the outputs of the largest build in evaluation mode must not change, nor
    those of builds with another candidate of a categorical choice. Cropped dimensions of kernels are no channels.

    Costs some forward passes of the largest build for each layer.

    Args:
        space: the search space.
        seed: of the random weights. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        largest = space.superset()
        slicer = Slicer(largest, space.rules())
        preserves = _Verifier(space, slicer, largest)
        verified: list[Coupling] = []
        left_out: list[Coupling] = []
        for size, sites in _classes(space, slicer, largest):
            rest = list(sites)
            for reach in range(1, _REACH + 1):
                start = 0
                while sum(site.role == "makes" for site in rest) > 1 and start < len(rest):
                    run = _run(rest, start, reach)
                    if 0 < len(run) < len(rest) and preserves(size, run):
                        verified.append(Coupling(size, run))
                        del rest[start : start + len(run)]
                    else:
                        start += 1
            if rest:
                (verified if preserves(size, rest) else left_out).append(Coupling(size, tuple(rest)))
        return Couplings(tuple(verified), tuple(left_out))


def _run(sites: Sequence[Site], start: int, readers: int) -> tuple[Site, ...]:
    """Return the sites from a maker at ``start`` to the last of so many readers after it; nothing if there is none."""
    if sites[start].role != "makes":
        return ()
    ends = [position for position in range(start, len(sites)) if sites[position].role == "reads"]
    return tuple(sites[start : ends[readers - 1] + 1]) if len(ends) >= readers else ()


def _statistics(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Prefix, name and value of every running statistic of a norm."""
    for prefix, layer in module.named_modules():
        if isinstance(layer, _NormBase):
            for leaf in _STATISTICS:
                value = layer._buffers.get(leaf)
                if value is not None:
                    yield prefix, f"{prefix}.{leaf}" if prefix else leaf, value


def _prefixes(module: nn.Module, sources: Mapping[str, str]) -> dict[str, str]:
    """Norm of ``module`` -> norm of the largest build that it shares its scale with, or the one of its name."""
    return {
        prefix: sources.get(f"{prefix}.weight", f"{prefix}.weight").removesuffix("weight").removesuffix(".")
        for prefix, _, _ in _statistics(module)
    }


def _alone(space: SearchSpace) -> list[tuple[str, Architecture]]:
    """Architectures that differ from the largest in the value of one choice, with its name."""
    largest = space.largest()
    found = []
    for probe in space.probes():
        changed = [name for name, value in probe.items() if largest.get(name) != value]
        if len(changed) == 1:
            found.append((changed[0], probe))
    return found


def _classes(space: SearchSpace, slicer: Slicer, largest: nn.Module) -> list[tuple[int, list[Site]]]:
    """Sites that shrink alike, in module order, with the number of their channels."""
    shapes = {name: tuple(shape) for name, shape in slicer.shapes.items()}
    shapes |= {name: tuple(value.shape) for _, name, value in _statistics(largest)}
    blocks: dict[tuple[str, int], int] = {}
    cropped: set[tuple[str, int]] = set()
    seen: list[dict[str, tuple[int, ...]]] = []
    for _, probe in _alone(space):
        with torch.device("meta"):
            module = skeleton(space, probe)
        plan = slicer.plan(module, probe)
        sizes = {part.source: part.shape for part in plan}
        for part in plan:
            for dim, start, _, count in part.cuts:
                blocks[part.source, dim] = count
                if start:
                    cropped.add((part.source, dim))
        prefixes = _prefixes(module, {part.name: part.source for part in plan})
        for prefix, name, value in _statistics(module):
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
        for leaf in (*layer._parameters, *(_STATISTICS if isinstance(layer, _NormBase) else ())):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if name not in shapes or name in done:
                continue
            done.add(name)
            reads = _reading(layer, leaf)
            dims = range(len(shapes[name]))
            for dim in sorted(dims, key=lambda dim: dim != reads):
                yield name, dim, "keeps" if len(dims) < 2 else "reads" if dim == reads else "makes"


def _reading(layer: nn.Module, leaf: str) -> int | None:
    """Return the dimension along which a weight reads channels."""
    if isinstance(layer, _ConvTransposeNd):
        return 0 if leaf == "weight" else None
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention):
        return 1 if "weight" in leaf else None
    return 1 if isinstance(layer, nn.Linear | _ConvNd) and leaf == "weight" else None


class _Verifier:
    """Says whether permuting some sites leaves the outputs of random networks as they were."""

    def __init__(self, space: SearchSpace, slicer: Slicer, largest: nn.Module) -> None:
        self.slicer = slicer
        self.tensors = {name: _random(shape) for name, shape in slicer.shapes.items()}
        self.tensors |= {name: _random(value.shape, low=0.5) for _, name, value in _statistics(largest)}
        kinds = {choice.name: choice.kind for choice in space.choices}
        probes = [space.largest(), *(probe for name, probe in _alone(space) if kinds[name] == "categorical")]
        self.builds = [self._build(space, probe) for probe in probes]
        self.reference = self._outputs(self.tensors)

    def _build(
        self, space: SearchSpace, architecture: Architecture
    ) -> tuple[nn.Module, dict[str, str], tuple[Tensor, ...]]:
        """A network in double precision, the tensor of each of its names, and inputs that differ everywhere."""
        module = skeleton(space, architecture).double().eval()
        sources = {part.name: part.source for part in self.slicer.plan(module, architecture)}
        for prefix, home in _prefixes(module, sources).items():
            for leaf in _STATISTICS:
                sources[f"{prefix}.{leaf}" if prefix else leaf] = f"{home}.{leaf}" if home else leaf
        inputs = tuple(
            torch.randn(given.shape, dtype=torch.float64) if given.is_floating_point() else torch.randint_like(given, 2)
            for given in space.inputs(architecture, 2)
        )
        return module, sources, inputs

    def _outputs(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        results: list[Tensor] = []
        for module, sources, inputs in self.builds:
            for name, value in (*module.named_parameters(), *((name, value) for _, name, value in _statistics(module))):
                value.copy_(tensors[sources[name]])
            outputs = [leaf for leaf in tree_leaves(module(*inputs)) if isinstance(leaf, Tensor)]
            results.extend(output.double() for output in outputs)
        return results

    def __call__(self, size: int, sites: Sequence[Site]) -> bool:
        """Return whether every permutation of ``sites`` preserves the function; never for a single site.

        A part of the sites must not, lest the outputs do not depend on them at all.
        """
        cycle = torch.arange(size).roll(1)
        swap = torch.arange(size)
        swap[:2] = torch.tensor([1, 0])
        return (
            len(sites) > 1 and self._same(sites, swap) and self._same(sites, cycle) and not self._same(sites[:1], cycle)
        )

    def _same(self, sites: Sequence[Site], order: Tensor) -> bool:
        tensors = dict(self.tensors)
        for site in sites:
            tensors[site.tensor] = permuted(tensors[site.tensor], site, order)
        given = self._outputs(tensors)
        return all(
            float((one - other).abs().max()) <= 1e-9 * float(one.abs().max().clamp(min=1e-30))
            for one, other in zip(self.reference, given, strict=True)
        )


def _random(shape: Sequence[int], low: float = 0.0) -> Tensor:
    """Weights that keep the size of activations; scales, biases and statistics away from zero."""
    if len(shape) < 2:
        values = 0.5 + torch.rand(*shape, dtype=torch.float64)
        return values if low else values * torch.where(torch.rand(*shape) < 0.5, -1.0, 1.0)
    return torch.randn(*shape, dtype=torch.float64) / math.sqrt(torch.Size(shape).numel() / shape[0])
