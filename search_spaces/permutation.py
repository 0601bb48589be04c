"""Permuting channels of the largest build, and whether that changes what it computes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from search_spaces.architecture import Architecture
from search_spaces.skeleton import skeleton
from search_spaces.slicing import Slicer
from search_spaces.space import SearchSpace

__all__ = ["STATISTICS", "PermutationCheck", "Site", "alone", "norm_homes", "permuted", "statistics_of"]

STATISTICS = ("running_mean", "running_var")
_TELLING = 8
_NOISE = 1e-4


@dataclass(frozen=True)
class Site:
    """One dimension of one tensor of the largest build.

    Attributes:
        tensor: name of a parameter, or of a running statistic of a norm.
        dim: the dimension.
        blocks: number of equal blocks that it packs, each permuted alike.
        role: ``"reads"`` where a matrix or kernel takes channels in along this dimension, ``"makes"`` where one gives
            them out, ``"keeps"`` for scales, biases, statistics and depthwise kernels.
    """

    tensor: str
    dim: int
    blocks: int = 1
    role: str = "keeps"


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


def statistics_of(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Prefix, name and value of every running statistic of a norm."""
    for prefix, layer in module.named_modules():
        if isinstance(layer, _NormBase):
            for leaf in STATISTICS:
                value = layer._buffers.get(leaf)
                if value is not None:
                    yield prefix, f"{prefix}.{leaf}" if prefix else leaf, value


def norm_homes(module: nn.Module, sources: Mapping[str, str]) -> dict[str, str]:
    """Norm of ``module`` -> norm of the largest build that it shares its scale with, or the one of its name."""
    return {
        prefix: sources.get(f"{prefix}.weight", f"{prefix}.weight").removesuffix("weight").removesuffix(".")
        for prefix, _, _ in statistics_of(module)
    }


def alone(space: SearchSpace) -> list[tuple[str, Architecture]]:
    """Architectures that differ from the largest in the value of one choice, with its name."""
    largest = space.largest()
    found = []
    for probe in space.probes():
        changed = [name for name, value in probe.items() if largest.get(name) != value]
        if len(changed) == 1:
            found.append((changed[0], probe))
    return found


class PermutationCheck:
    """Says whether permuting some sites leaves the outputs of random networks as they were."""

    def __init__(self, space: SearchSpace, slicer: Slicer, largest: nn.Module) -> None:
        self.slicer = slicer
        self.tensors = {name: _random(shape) for name, shape in slicer.shapes.items()}
        self.tensors |= {name: _random(value.shape, low=0.5) for _, name, value in statistics_of(largest)}
        kinds = {choice.name: choice.kind for choice in space.choices}
        probes = [space.largest(), *(probe for name, probe in alone(space) if kinds[name] == "categorical")]
        self.builds = [self._build(space, probe) for probe in probes]
        self.reference = self._outputs(self.tensors)

    def _build(
        self, space: SearchSpace, architecture: Architecture
    ) -> tuple[nn.Module, dict[str, str], tuple[Tensor, ...]]:
        """A network, the tensor of each of its names, and inputs that differ everywhere."""
        module = skeleton(space, architecture).eval()
        sources = {part.name: part.source for part in self.slicer.plan(module, architecture)}
        for prefix, home in norm_homes(module, sources).items():
            for leaf in STATISTICS:
                sources[f"{prefix}.{leaf}" if prefix else leaf] = f"{home}.{leaf}" if home else leaf
        inputs = tuple(
            torch.randn(given.shape) if given.is_floating_point() else torch.randint_like(given, 2)
            for given in space.inputs(architecture, 1)
        )
        return module, sources, inputs

    def _outputs(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        results: list[Tensor] = []
        for module, sources, inputs in self.builds:
            for name, value in (
                *module.named_parameters(),
                *((name, value) for _, name, value in statistics_of(module)),
            ):
                value.copy_(tensors[sources[name]])
            outputs = [leaf for leaf in tree_leaves(module(*inputs)) if isinstance(leaf, Tensor)]
            results.extend(outputs)
        return results

    def __call__(self, size: int, parts: Sequence[Sequence[Site]]) -> bool:
        """Return whether each of ``parts`` may be permuted by itself, in every way.

        Parts of one site may not, nor may what the outputs do not depend on. Several parts are first permuted each at
        random, so that those which are only coupled with each other fail.
        """
        if min(map(len, parts)) < 2 or (len(parts) > 1 and size < _TELLING):
            return False
        cycle = torch.arange(size).roll(1)
        other = torch.cat([cycle[:2].flip(0), cycle[2:]])  # the two make every permutation
        trials = [[cycle] * len(parts), [other] * len(parts)]
        if len(parts) > 1:
            trials.insert(0, [torch.randperm(size) for _ in parts])
        return all(self._harmless(list(zip(parts, orders, strict=True))) for orders in trials)

    def _harmless(self, changes: Sequence[tuple[Sequence[Site], Tensor]]) -> bool:
        """Whether permuting whole parts changes nothing, while permuting one site of each changes much more."""
        whole = self._difference(changes)
        if whole > _NOISE:
            return False
        broken = self._difference([(sites[:1], order) for sites, order in changes])
        return broken > _NOISE and whole < broken / 100

    def _difference(self, changes: Sequence[tuple[Sequence[Site], Tensor]]) -> float:
        """Largest change of an output, relative to the largest value of that output; infinite where not a number."""
        tensors = dict(self.tensors)
        for sites, order in changes:
            for site in sites:
                tensors[site.tensor] = permuted(tensors[site.tensor], site, order)
        worst = 0.0
        for before, after in zip(self.reference, self._outputs(tensors), strict=True):
            change = float((before - after).abs().max() / before.abs().max().clamp(min=1e-30))
            worst = max(worst, change if math.isfinite(change) else math.inf)
        return worst


def _random(shape: Sequence[int], low: float = 0.0) -> Tensor:
    """Weights that keep the size of activations; scales, biases and statistics away from zero."""
    if len(shape) < 2:
        values = 0.5 + torch.rand(*shape)
        return values if low else values * torch.where(torch.rand(*shape) < 0.5, -1.0, 1.0)
    return torch.randn(*shape) / math.sqrt(torch.Size(shape).numel() / shape[0])
