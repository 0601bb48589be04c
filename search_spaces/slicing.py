"""Where each tensor of a small build lies in the largest build."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from search_spaces.architecture import Architecture

__all__ = ["SlicePlan", "Slicer", "SlicingError", "TensorRule", "TensorSlice"]

_PACKED = re.compile(
    r"(^|[._])(w?qkv|in_proj|c_attn|kv|gate_up|query_key_value)([._]|_proj|$)",
    re.IGNORECASE,
)


class SlicingError(ValueError):
    """A tensor of a small build has no well-defined place in the largest build."""


@dataclass(frozen=True)
class TensorRule:
    """How the tensors that match a name pattern are cut from the largest build, where a plain prefix is wrong.

    Args:
        blocks: dimension -> number of equal blocks, each cut by itself and joined again: 3 for a packed
            query-key-value matrix, the scale of a Res2 layer, the number of groups of a grouped convolution.
        crop: dimension -> ``"prefix"`` (the default) or ``"center"`` (spatial dimensions of a kernel).
        source: name of the tensor in the largest build, when it differs: the full name, or a function of
            (architecture, name) for depth mapped otherwise than by leaving out the last blocks.
    """

    blocks: Mapping[int, int] = field(default_factory=dict)
    crop: Mapping[int, Literal["prefix", "center"]] = field(default_factory=dict)
    source: str | Callable[[Architecture, str], str] | None = None

    def __post_init__(self) -> None:
        for field_name in ("blocks", "crop"):  # keys read from JSON are text
            given = getattr(self, field_name)
            object.__setattr__(self, field_name, {int(dim): value for dim, value in given.items()})
        for dim, count in self.blocks.items():
            if dim < 0 or count < 1:
                raise ValueError(f"TensorRule.blocks maps dimension >= 0 to count >= 1, got {{{dim}: {count}}}")
        for dim, crop in self.crop.items():
            if dim < 0 or crop not in ("prefix", "center"):
                raise ValueError(
                    f"TensorRule.crop maps dimension >= 0 to 'prefix' or 'center', got {{{dim}: {crop!r}}}"
                )


@dataclass(frozen=True)
class TensorSlice:
    """One tensor of a small build as a part of one tensor of the largest build.

    Attributes:
        name: tensor of the small build.
        source: tensor of the largest build.
        shape: shape of the small tensor.
        cuts: ``(dimension, start, length, blocks)`` for every dimension that shrinks; start and length are per block.
        kernel: whether this is the centre of a larger convolution kernel.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    cuts: tuple[tuple[int, int, int, int], ...]
    kernel: bool = False

    @property
    def is_view(self) -> bool:
        """Whether the part shares storage with its source (no cut is made of several blocks)."""
        return all(blocks == 1 for _, _, _, blocks in self.cuts)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Cut the part out of ``tensor``; a view where possible, differentiable always."""
        for dim, start, length, blocks in self.cuts:
            if blocks == 1:
                tensor = tensor.narrow(dim, start, length)
            else:
                head, tail = tensor.shape[:dim], tensor.shape[dim + 1 :]
                parts = tensor.reshape(*head, blocks, -1, *tail).narrow(dim + 1, start, length)
                tensor = parts.reshape(*head, blocks * length, *tail)
        return tensor


@dataclass(frozen=True)
class SlicePlan:
    """Immutable: where each parameter of one small build lies in the largest build.

    Made by :meth:`Slicer.plan`, which has checked it.
    """

    slices: tuple[TensorSlice, ...]

    def __iter__(self) -> Iterator[TensorSlice]:
        return iter(self.slices)

    def __call__(
        self, tensors: Mapping[str, Tensor], cut: Callable[[TensorSlice, Tensor], Tensor] = TensorSlice.__call__
    ) -> dict[str, Tensor]:
        """Cut every tensor of the small build out of the tensors of the largest build, tied ones once.

        Args:
            tensors: of the largest build, by name.
            cut: (part, tensor of the largest build) -> tensor of the small build, for those that need more than a cut.
        """
        done: dict[tuple[str, tuple[tuple[int, int, int, int], ...]], Tensor] = {}
        result: dict[str, Tensor] = {}
        for part in self.slices:
            key = part.source, part.cuts
            if key not in done:
                done[key] = cut(part, tensors[part.source])
            result[part.name] = done[key]
        return result


@dataclass(frozen=True)
class _Site:
    """What is known about one tensor of the largest build before any small build is seen."""

    source: str
    shape: tuple[int, ...]
    blocks: Mapping[int, int]
    crop: Mapping[int, str]
    packed: bool
    per_group: tuple[int, int] | None
    groups: int


def _grouping(layer: nn.Module) -> tuple[int, tuple[int, int] | None]:
    """Groups of a convolution and (outputs, inputs) of each; 1 and None for anything else."""
    if not isinstance(layer, _ConvNd):
        return 1, None
    return layer.groups, (layer.out_channels // layer.groups, layer.in_channels // layer.groups)


def _layer_defaults(layer: nn.Module, leaf: str, ndim: int) -> tuple[dict[int, int], dict[int, str]]:
    """Blocks and crops that follow from the kind of layer that owns the tensor."""
    if isinstance(layer, _ConvNd) and leaf == "weight":
        return {}, dict.fromkeys(range(2, ndim), "center")
    if isinstance(layer, nn.MultiheadAttention) and leaf.startswith("in_proj"):
        return {0: 3}, {}
    gates = 4 if isinstance(layer, nn.LSTM | nn.LSTMCell) else 3 if isinstance(layer, nn.GRU | nn.GRUCell) else 1
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase) and leaf.startswith(("weight", "bias")):
        blocks = {0: 1 if "_hr" in leaf else gates}
        if getattr(layer, "bidirectional", False) and leaf.startswith("weight_ih") and "_l0" not in leaf:
            blocks[1] = 2  # the layer below hands over forward and backward features, side by side
        return blocks, {}
    return {}, {}


class Slicer:
    """Derives slice plans against one largest build.

    Sharing is by name, then by prefix of the built shape; spatial dimensions of convolutions are centre-cropped, and
    the packed matrices of ``nn.MultiheadAttention``, ``nn.LSTM`` and ``nn.GRU`` are cut block by block. Rules say the
    rest. Tied tensors of the largest build stay tied.

    Args:
        largest: the largest build; may be on ``meta``.
        rules: glob over tensor names -> rule; the first match wins.

    Raises:
        SlicingError: a rule matches no tensor of the largest build.
    """

    def __init__(self, largest: nn.Module, rules: Mapping[str, TensorRule]) -> None:
        self._rules = tuple((re.compile(translate(glob)), glob, rule) for glob, rule in rules.items())
        self._sites: dict[str, _Site] = {}
        self._matched: dict[str, TensorRule | None] = {}
        first: dict[int, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for prefix, layer in largest.named_modules(remove_duplicate=False):
            for leaf, parameter in layer._parameters.items():
                if parameter is None:
                    continue
                name = f"{prefix}.{leaf}" if prefix else leaf
                source = first.setdefault(id(parameter), name)
                shape = tuple(parameter.shape)
                blocks, crop = _layer_defaults(layer, leaf, parameter.ndim)
                groups, per_group = _grouping(layer)
                packed = 0 not in blocks and bool(_PACKED.search(name))
                self._sites[name] = _Site(source, shape, blocks, crop, packed, per_group, groups)
                self.shapes.setdefault(source, shape)
        unmatched = [g for pattern, g, rule in self._rules if not any(pattern.match(n) for n in self._sites)]
        if unmatched:
            raise SlicingError(
                f"rules {unmatched} match no tensor of the largest build; tensors are {sorted(self._sites)[:20]} ..."
            )

    def _rule(self, name: str) -> TensorRule | None:
        if name not in self._matched:
            self._matched[name] = next((rule for pattern, _, rule in self._rules if pattern.match(name)), None)
        return self._matched[name]

    def plan(self, module: nn.Module, architecture: Architecture) -> SlicePlan:
        """Derive and check the plan of one small build.

        Args:
            module: the small build; only names, shapes and layer types are read.
            architecture: passed to rules whose source is a function.

        Raises:
            SlicingError: a tensor is missing from the largest build, is larger there is than allowed, does not divide
                into blocks, or cannot be cut safely without a rule. All such tensors are named with the rule that
                would help.
        """
        slices: list[TensorSlice] = []
        problems: list[str] = []
        for prefix, layer in module.named_modules(remove_duplicate=False):
            start = f"{prefix}." if prefix else ""
            for leaf, parameter in layer._parameters.items():
                if parameter is None:
                    continue
                name = start + leaf
                try:
                    slices.append(self._slice(name, tuple(parameter.shape), architecture, layer))
                except SlicingError as error:
                    problems.append(str(error))
        if problems:
            raise SlicingError(f"cannot cut {architecture} from the largest build: " + "; ".join(problems))
        return SlicePlan(tuple(slices))

    def _slice(self, name: str, shape: tuple[int, ...], architecture: Architecture, layer: nn.Module) -> TensorSlice:
        rule = self._rule(name)
        wanted = name
        if rule is not None and rule.source is not None:
            wanted = rule.source if isinstance(rule.source, str) else rule.source(architecture, name)
        site = self._sites.get(wanted)
        if site is None:
            raise SlicingError(
                f"tensor {name!r} has no counterpart {wanted!r} in the largest build; give "
                "TensorRule(source=...) with the name it is shared with"
            )
        groups, per_group = _grouping(layer)
        if max(groups, site.groups) > 1 and per_group != site.per_group and (rule is None or 0 not in rule.blocks):
            raise SlicingError(
                f"tensor {name!r} cannot be cut by prefix: it belongs to a convolution of {site.groups} groups of "
                f"(outputs, inputs) {site.per_group}, here {groups} of {per_group}, and whole groups must stay as they "
                f"are; give TensorRule(blocks={{0: {site.groups}}}), and the same for the channels that feed it"
            )
        if shape == site.shape:
            return TensorSlice(name, site.source, shape, ())
        if len(shape) != len(site.shape):
            raise SlicingError(
                f"tensor {name!r} has {len(shape)} dimensions but {len(site.shape)} in the largest build; "
                "only tensors of equal rank are shared, give TensorRule(source=...) or build them alike"
            )
        cuts: list[tuple[int, int, int, int]] = []
        for dim, (small, large) in enumerate(zip(shape, site.shape, strict=True)):
            if small == large:
                continue
            ruled = rule is not None and dim in rule.blocks
            if small > large:
                raise SlicingError(
                    f"tensor {name!r} is {shape} but {site.shape} in the largest build: dimension {dim} is larger "
                    "than the largest; order the candidates so that the last one builds the largest tensors"
                )
            blocks = rule.blocks[dim] if rule is not None and ruled else site.blocks.get(dim, 1)
            if small % blocks or large % blocks:
                raise SlicingError(
                    f"tensor {name!r}: dimension {dim} ({small} of {large}) does not divide into {blocks} blocks; "
                    "correct TensorRule(blocks=...) or the candidates"
                )
            if dim == 0 and not ruled and site.packed:
                raise SlicingError(
                    f"tensor {name!r} cannot be cut by prefix: its name says that several matrices are packed into "
                    "one, and a prefix would mix their roles; give TensorRule(blocks={0: 3}) (or the number packed), "
                    "or blocks={0: 1} if a prefix is right"
                )
            crop = rule.crop[dim] if rule is not None and dim in rule.crop else site.crop.get(dim, "prefix")
            small, large = small // blocks, large // blocks
            if crop == "center" and (large - small) % 2:
                raise SlicingError(
                    f"tensor {name!r}: a centre crop of dimension {dim} from {large} to {small} is off by half; use "
                    "kernel sizes that are all odd or all even"
                )
            cuts.append((dim, (large - small) // 2 if crop == "center" else 0, small, blocks))
        kernel = isinstance(layer, _ConvNd) and any(dim >= 2 and start > 0 for dim, start, *_ in cuts)
        return TensorSlice(name, site.source, shape, tuple(cuts), kernel)
