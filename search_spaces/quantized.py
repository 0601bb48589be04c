"""Any space with the bitwidths of its layers as further choices."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, InvalidArchitectureError
from search_spaces.choice import Candidate, Choice
from search_spaces.quantized_sites import QuantizedSite, find_sites, quantizable
from search_spaces.quantizer import FULL_PRECISION, InputQuantizer, quantize_input
from search_spaces.skeleton import skeleton
from search_spaces.slicing import TensorRule
from search_spaces.space import SearchSpace

__all__ = ["QuantizedSpace"]

_REMEMBERED = 1024
_Pair = tuple[str | int, str | int]  # of weights and inputs: the name of a choice, or fixed bits


@final
class QuantizedSpace(SearchSpace):
    """The architectures of a space, each with bitwidths for the weights and the input of its layers.

    Linear and convolutional layers get two ordinal choices each, ``LAYER.weight_bits`` and ``LAYER.input_bits``, listed
    after those of the wrapped space; a layer that needs a depth has bits from that depth on. 32 bits are full
    precision. A build is the module of the wrapped space with an :class:`InputQuantizer` in front of each layer,
    under the name ``LAYER.input_quantizer``; all other tensors keep their names. Weights are quantised where they are
    made, see ``supernets.QuantizedWeights``.

    Whether an input may be negative, which costs a bit, is found by running a few architectures with random weights.
    Weights that are tied to others and layers that a fused kernel skips stay in full precision, and so do layers that
    need several choices at once and that no single change of the largest architecture brings about.

    Args:
        space: the wrapped space.
        weight_bits: ascending candidates.
        input_bits: ascending candidates; ``None``: inputs are not quantised.
        modules: globs over the names of the layers to quantise.
        groups: name -> globs; the layers of a group share one pair of choices, ``NAME.weight_bits`` and
            ``NAME.input_bits``.
        ends: fixed (weight bits, input bits) of the first and the last layer that run, which most papers keep at 8;
            ``None``: they are like the others.
        signed: globs over layers whose input may be negative though random inputs did not show it.

    Raises:
        ValueError: bits are out of range, a glob matches no layer, a layer is in two groups, or which layers exist does
            not follow from a single ordinal choice.

    >>> from search_spaces.mlp import MLPSpace
    >>> space = QuantizedSpace(MLPSpace(8, 2, widths=(4,), depths=(2, 3)), weight_bits=(2, 4))
    >>> dict(space.bitwidths(space.smallest()))
    {'linear1': (8, 8), 'linear2': (2, 2), 'head': (8, 8)}
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        weight_bits: Sequence[int] = (2, 4, 8),
        input_bits: Sequence[int] | None = (2, 4, 8),
        modules: Sequence[str] = ("*",),
        groups: Mapping[str, Sequence[str]] | None = None,
        ends: tuple[int, int] | None = (8, 8),
        signed: Sequence[str] = (),
    ) -> None:
        self.space = space
        self.bare = space.bare
        self.weight_bits = tuple(weight_bits)
        self.input_bits = None if input_bits is None else tuple(input_bits)
        self.modules, self.signed = tuple(modules), tuple(signed)
        self.groups = {name: tuple(globs) for name, globs in (groups or {}).items()}
        self.ends = None if ends is None else (ends[0], ends[1])
        _check_bits("weight_bits", self.weight_bits, 1)
        _check_bits("input_bits", self.input_bits or (FULL_PRECISION,), 2)
        if self.ends is not None:
            _check_bits("ends", self.ends[:1], 1)
            _check_bits("ends", self.ends[1:], 2)
        self.sites = self._matched(find_sites(space))
        self._known = {site.name: site for site in self.sites}
        self._bits: dict[str, _Pair] = {}
        self.choices = (*space.choices, *self._allot())
        self._contents: dict[Architecture, frozenset[str]] = {}

    def _matched(self, found: Sequence[QuantizedSite]) -> tuple[QuantizedSite, ...]:
        """Return the layers that ``modules`` selects, signs corrected."""
        globs = {*self.modules, *self.signed, *(glob for globs in self.groups.values() for glob in globs)}
        idle = sorted(glob for glob in globs if not any(fnmatchcase(site.name, glob) for site in found))
        if idle or not self.modules:
            raise ValueError(
                "QuantizedSpace.modules, groups and signed must be globs over linear and convolutional layers, but "
                f"{idle} match none; layers are {[site.name for site in found]}"
            )
        chosen = [site for site in found if _matches(site.name, self.modules)]
        return tuple(
            dataclasses.replace(site, signed=site.signed or _matches(site.name, self.signed)) for site in chosen
        )

    def _allot(self) -> list[Choice]:
        """Return the choices of bits; give every layer its pair of choices or of fixed bits."""
        fixed = {self.sites[0].name, self.sites[-1].name} if self.ends is not None else set()
        members: dict[str, list[QuantizedSite]] = {}
        for site in self.sites:
            if site.name in fixed and self.ends is not None:
                self._bits[site.name] = self.ends[0], FULL_PRECISION if self.input_bits is None else self.ends[1]
                continue
            owners = [name for name, globs in self.groups.items() if _matches(site.name, globs)]
            if len(owners) > 1:
                raise ValueError(
                    f"QuantizedSpace.groups must not overlap, but layer {site.name!r} is in {owners}; mend the globs"
                )
            members.setdefault(owners[0] if owners else site.name, []).append(site)
        choices = []
        for name, sites in members.items():
            requires = self._condition(name, sites)
            pair: list[str | int] = []
            for leaf, bits in (("weight_bits", self.weight_bits), ("input_bits", self.input_bits or (FULL_PRECISION,))):
                if len(bits) > 1:
                    choices.append(Choice(f"{name}.{leaf}", bits, requires=requires))
                pair.append(f"{name}.{leaf}" if len(bits) > 1 else bits[0])
            self._bits |= dict.fromkeys((site.name for site in sites), (pair[0], pair[1]))
        return choices

    @staticmethod
    def _condition(name: str, sites: Sequence[QuantizedSite]) -> tuple[str, float] | None:
        """Return when some layer of a group exists."""
        if any(site.requires is None and not site.varies for site in sites):
            return None
        varying = [site for site in sites if site.varies]
        parents = {site.requires[0] for site in sites if site.requires is not None}
        if varying or len(parents) > 1:
            reasons = sorted({*parents, *(choice for site in varying for choice in site.varies)})
            raise ValueError(
                f"whether {name!r} exists depends on the choices {reasons}, so that its bits would sometimes mean "
                "nothing; put its layers into one group with a layer that is always there, e.g. groups: "
                "{body: ['*']}, or leave them out of modules"
            )
        return min((site.requires for site in sites if site.requires is not None), key=lambda rule: rule[1])

    def base(self, architecture: Architecture) -> Architecture:
        """Return the architecture of the wrapped space, without bits."""
        own = {choice.name for choice in self.space.choices}
        return Architecture({name: value for name, value in architecture.items() if name in own})

    def quantized(self, base: Architecture, weight_bits: int, input_bits: int | None = None) -> Architecture:
        """Return ``base`` with the same bits for all its layers that are free to choose.

        Args:
            base: of the wrapped space.
            weight_bits: for all weights.
            input_bits: for all inputs; as many as the weights by default.

        Raises:
            InvalidArchitectureError: the bits are no candidates.
        """
        input_bits = weight_bits if input_bits is None and self.input_bits is not None else input_bits
        for field, given, known in (
            ("weight_bits", weight_bits, self.weight_bits),
            ("input_bits", input_bits, self.input_bits or (None,)),
        ):
            if given not in known:
                raise InvalidArchitectureError(f"{field} must be one of {known}, got {given}")
        bits = {"weight_bits": weight_bits, "input_bits": input_bits}
        own = self.choices[len(self.space.choices) :]
        chosen = {c.name: given for c in own if (given := bits[c.name.rpartition(".")[2]]) is not None}
        return self.architecture({**base, **chosen})

    def bitwidths(self, architecture: Architecture) -> Mapping[str, tuple[int, int]]:
        """Return layer -> (weight bits, input bits) for the quantised layers of a build; 32 is full precision."""
        found: dict[str, tuple[int, int]] = {}
        varying = any(site.varies for site in self.sites)
        there = self._there(self.base(architecture)) if varying else frozenset[str]()
        for site in self.sites:
            if site.varies:
                exists = site.name in there
            elif site.requires is None:
                exists = True
            else:
                exists = float(architecture.get(site.requires[0], -math.inf)) >= site.requires[1]
            if exists:
                weight, given = (
                    architecture.integer(bits) if isinstance(bits, str) else bits for bits in self._bits[site.name]
                )
                found[site.name] = weight, given
        return found

    def _there(self, base: Architecture) -> frozenset[str]:
        """Return the layers of a build of the wrapped space."""
        if base not in self._contents:
            if len(self._contents) >= _REMEMBERED:
                self._contents.clear()
            with torch.device("meta"):
                self._contents[base] = frozenset(name for name, _ in quantizable(skeleton(self.space, base)))
        return self._contents[base]

    def options(self, layer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the bits that the weights and the input of a quantised layer may have, ascending."""
        weights, inputs = (
            tuple(int(bits) for bits in self.choice(given).candidates) if isinstance(given, str) else (given,)
            for given in self._bits[layer]
        )
        return weights, inputs

    def bit_choices(self, layer: str) -> tuple[str | None, str | None]:
        """Return the names of the choices of the weight bits and the input bits of a layer; ``None``: they are fixed.

        Layers of a group share them.
        """
        weights, inputs = (given if isinstance(given, str) else None for given in self._bits[layer])
        return weights, inputs

    def signed_input(self, layer: str) -> bool:
        """Return whether the input of a quantised layer may be negative."""
        return self._known[layer].signed

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the module of the wrapped space with input quantisers."""
        module = self.space.build(self.base(architecture))
        for name, (_, bits) in self.bitwidths(architecture).items():
            if bits < FULL_PRECISION:
                quantize_input(module.get_submodule(name), InputQuantizer(bits, signed=self.signed_input(name)))
        return module

    def superset(self) -> nn.Module:
        """Return the superset of the wrapped space with a quantiser in front of every layer that may have one."""
        module = self.space.superset()
        layers = dict(module.named_modules())
        for site in self.sites:
            bits = [bits for bits in self.options(site.name)[1] if bits < FULL_PRECISION]
            if bits and site.name in layers:
                quantize_input(layers[site.name], InputQuantizer(bits[-1], signed=site.signed))
        return module

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return the example inputs of the wrapped space."""
        return self.space.inputs(self.base(architecture), batch_size)

    def rules(self) -> Mapping[str, TensorRule]:
        """Return the rules of the wrapped space."""
        return {glob: self._adapted(rule) for glob, rule in self.space.rules().items()}

    def _adapted(self, rule: TensorRule) -> TensorRule:
        source = rule.source
        if source is None or isinstance(source, str):
            return rule
        return dataclasses.replace(rule, source=lambda architecture, name: source(self.base(architecture), name))

    def motifs(self, architecture: Architecture) -> Mapping[str, int]:
        """Return those of the wrapped space."""
        return self.space.motifs(self.base(architecture))

    def zero_init(self) -> tuple[str, ...]:
        """Return those of the wrapped space."""
        return self.space.zero_init()

    def mixed(self) -> tuple[str, ...]:
        """Return those of the wrapped space."""
        return self.space.mixed()

    def canonical(self, values: Mapping[str, Candidate]) -> Mapping[str, Candidate]:
        """Let the wrapped space choose among values that describe the same network; bits stay as they are."""
        own = {choice.name for choice in self.space.choices}
        base = {name: value for name, value in values.items() if name in own}
        return {**values, **self.space.canonical(base)}

    def size(self) -> int:
        """Return the number of distinct architectures."""
        if type(self.space).canonical is SearchSpace.canonical:
            return self._count()
        bits = self.choices[len(self.space.choices) :]
        if any(choice.requires for choice in bits):
            return super().size()
        return self.space.size() * math.prod(choice.size for choice in bits)


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _check_bits(field: str, bits: Sequence[int], least: int) -> None:
    good = all(isinstance(b, int) and (least <= b <= 16 or b == FULL_PRECISION) for b in bits)
    if not bits or not good or list(bits) != sorted(set(bits)):
        raise ValueError(
            f"QuantizedSpace.{field} must be ascending numbers of bits, each {least} to 16, or 32 for full precision, "
            f"got {tuple(bits)}"
        )
