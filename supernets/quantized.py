"""Weights of few bits, chosen anew in every forward pass, out of one set of shared weights."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from search_spaces import (
    FULL_PRECISION,
    Architecture,
    Coupling,
    Couplings,
    QuantizedSpace,
    RelaxedArchitecture,
    SearchSpace,
    Slicer,
    TensorSlice,
)
from search_spaces.quantized_sites import representatives
from search_spaces.quantizer import input_range
from supernets.bit_gates import residual_metric
from supernets.calibration import UncalibratedError
from supernets.mixed_bits import mixed
from supernets.quantizers import LSQ, Codes, WeightQuantizer
from supernets.relaxation import Relaxation
from supernets.relaxed_bits import BitRelaxation, pinned
from supernets.scales import ScaleBank
from supernets.skeletons import ThreadCache
from supernets.sorting import by_importance, permute
from supernets.weights import SharedWeights, WeightSource

__all__ = ["QuantizedWeights"]

_LEAST = 1e-5  # of a scale to start from


@final
class QuantizedWeights(WeightSource):
    """The weights of another source, fake-quantised at the bits that the architecture of a ``QuantizedSpace`` says.

    ``W_a = Q_b(S_a)``: the wrapped source gives the tensors of the architecture without bits, cut, mixed or generated,
    and each quantised layer's weight is rounded to its ``b`` bits last. All bitwidths share the weights; learned scales
    belong to (layer, bits), those of output channels being cut like the channels, and those of inputs are the ``scale``
    of the input quantisers. Scales are parameters like all others, without weight decay.

    Scales of inputs start from data: before the first training step or validation the supernet shows the source one
    batch (:meth:`observe`), the networks run in full precision, and a scale starts at ``2 E|x| / sqrt(Q_p)``, as in LSQ
    (arXiv 1902.08153, Sec. 2.1). Those of weights start anew from the weights at the same moment. Before that, tensors
    of an architecture with quantised inputs are refused. To quantise a trained network, load it into ``wrapped`` and
    call :meth:`observe`.

    Args:
        space: a ``QuantizedSpace``.
        source: makes the wrapped source from the space without bits.
        quantizer: of the weights; default :class:`LSQ` with a scale for each output channel.

    Raises:
        ValueError: the space has no bits to choose, or the quantiser does not have them.
    """

    quantizes = True

    def __init__(
        self,
        space: SearchSpace,
        *,
        source: Callable[[SearchSpace], WeightSource] = SharedWeights,
        quantizer: WeightQuantizer | None = None,
    ) -> None:
        if not isinstance(space, QuantizedSpace):
            raise ValueError(
                f"QuantizedWeights needs a QuantizedSpace, which says how many bits each layer has, got "
                f"{type(space).__name__}; wrap it: class_path: search_spaces.QuantizedSpace, init_args: {{space: ...}}"
            )
        super().__init__(space)
        self.quantized_space = space
        self.wrapped = source(space.space)
        self.generated = self.wrapped.generated
        self.sortable = isinstance(self.wrapped, SharedWeights)
        self.quantizer = LSQ() if quantizer is None else quantizer
        given = inspect.signature(type(self.wrapped)).parameters
        settings = {name: getattr(self.wrapped, name) for name in given if name != "space"}
        self.source = functools.partial(type(self.wrapped), **settings)  # what describes and rebuilds it
        used = {bits for site in space.sites for bits in space.options(site.name)[0]} - {FULL_PRECISION}
        if used:
            self.quantizer.check(sorted(used))
        with torch.device("meta"):
            self._slicer = Slicer(space.space.superset(), space.space.rules())
        self._cuts: ThreadCache[Architecture, dict[str, TensorSlice]] = ThreadCache(maxsize=256)
        self._witnesses = self._find_witnesses()
        self.weight_scales, self.input_scales = ScaleBank(), ScaleBank()
        self._add_scales()
        self.was_observed: Tensor
        self.register_buffer("was_observed", torch.tensor(False))
        self._seen = False
        self._bit_relaxation: BitRelaxation | None = None

    def _find_witnesses(self) -> dict[str, Architecture]:
        """Layer -> an architecture without bits that has it, the largest where possible."""
        space, found = self.quantized_space, dict[str, Architecture]()
        for base in itertools.chain(space.space.probes(), representatives(space.space)):
            missing = [site.name for site in space.sites if site.name not in found]
            if not missing:
                break
            there = self._parts(base)
            found |= {name: base for name in missing if name in there}
        return {site.name: found[site.name] for site in space.sites}  # parameters in one order in every process

    def _parts(self, base: Architecture) -> dict[str, TensorSlice]:
        """Layer -> how its output channels are cut out of those of the largest build."""

        def derive() -> dict[str, TensorSlice]:
            module = self.wrapped.skeletons.borrow(base, self.wrapped.device)
            layers = {f"{site.name}.weight": site.name for site in self.quantized_space.sites}
            return {
                layers[part.name]: dataclasses.replace(part, cuts=tuple(cut for cut in part.cuts if cut[0] == 0))
                for part in self._slicer.plan(module, base)
                if part.name in layers
            }

        return self._cuts.get(base, derive)

    def _options(self, layer: str) -> tuple[list[int], list[int]]:
        """Bits below full precision of the weight and the input of a layer."""
        weights, inputs = self.quantized_space.options(layer)
        return [b for b in weights if b < FULL_PRECISION], [b for b in inputs if b < FULL_PRECISION]

    def _key(self, bits: int) -> int:
        """Under which bits the scale of a weight is kept."""
        return 0 if self.quantizer.shared else bits

    @torch.no_grad()
    def _initial_scales(self) -> dict[tuple[str, int], Tensor]:
        """Scales of the weights as they are, by (layer, bits)."""
        if not self.quantizer.learned:
            return {}
        given = {base: self.wrapped(base) for base in dict.fromkeys(self._witnesses.values())}
        scales: dict[tuple[str, int], Tensor] = {}
        for layer, base in self._witnesses.items():
            weight, part = given[base][f"{layer}.weight"], self._parts(base)[layer]
            channels = self._slicer.shapes[part.source][0]
            for bits in self._options(layer)[0]:
                scale = self.quantizer.initial(weight, bits).clamp(min=_LEAST)
                if scale.ndim and len(scale) != channels:
                    scale = scale.mean(0, keepdim=True).expand(channels, *scale.shape[1:]).contiguous()
                scales[layer, self._key(bits)] = scale
        return scales

    def _add_scales(self) -> None:
        for (layer, bits), scale in self._initial_scales().items():
            self.weight_scales.add(layer, bits, scale)
        unset = self.wrapped._anchor().new_full((), math.nan)
        for layer in self._witnesses:
            for bits in self._options(layer)[1]:
                self.input_scales.add(layer, bits, unset)

    @property
    def observed(self) -> bool:
        """Whether scales of inputs have been set; always, where no input is quantised."""
        if not self._seen:
            self._seen = not self.input_scales._parameters or bool(self.was_observed)
        return self._seen

    @torch.no_grad()
    def observe(self, batches: Sequence[tuple[Tensor, ...]]) -> Sequence[Tensor]:
        """Set all scales from the present weights and from inputs of the network; see :class:`WeightSource`.

        Raises:
            ValueError: an input taken for one that is never negative is, or no layer was reached.
        """
        changed = [self.weight_scales.set(*key, scale) for key, scale in self._initial_scales().items()]
        magnitudes: dict[str, Tensor] = {}
        for base in dict.fromkeys(self._witnesses.values()):
            layers = [layer for layer, witness in self._witnesses.items() if witness == base]
            magnitudes |= self._watch(base, layers, batches)
        for layer, magnitude in magnitudes.items():
            for bits in self._options(layer)[1]:
                high = input_range(bits, signed=self.quantized_space.signed_input(layer))[1]
                scale = (2 * magnitude / math.sqrt(high)).clamp(min=_LEAST)
                changed.append(self.input_scales.set(layer, bits, scale))
        self.was_observed.fill_(True)
        return changed

    def _watch(
        self, base: Architecture, layers: Sequence[str], batches: Sequence[tuple[Tensor, ...]]
    ) -> dict[str, Tensor]:
        """Return the mean magnitude of the inputs of layers, in full precision with batch statistics."""
        device = self.device
        module = self.wrapped.skeletons.borrow(base, device).eval()
        totals = {layer: torch.zeros((), dtype=torch.float64, device=device) for layer in layers}
        counts = dict.fromkeys(layers, 0)

        def watch(layer: str) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
                given: Tensor = args[0] if args else kwargs["input"]
                if not self.quantized_space.signed_input(layer) and bool((given < 0).any()):
                    raise ValueError(
                        f"inputs of layer {layer!r} must not be negative, as those of random networks were not, got "
                        f"{float(given.min()):.3g}; give QuantizedSpace.signed: [{layer!r}]"
                    )
                totals[layer] += given.abs().double().sum()
                counts[layer] += given.numel()

            return hook

        with contextlib.ExitStack() as stack:
            for child in module.modules():
                if isinstance(child, _NormBase):
                    child.train()
            for layer in layers:
                handle = module.get_submodule(layer).register_forward_pre_hook(watch(layer), with_kwargs=True)
                stack.callback(handle.remove)
            for inputs in batches:
                self.wrapped.skeletons.call(base, device, self.wrapped(base), inputs)
        silent = sorted(layer for layer in layers if not counts[layer])
        if silent:
            raise ValueError(f"layers {silent} were not run, so their inputs have no scale; leave them out of modules")
        return {layer: (totals[layer] / counts[layer]).to(self.wrapped._anchor().dtype) for layer in layers}

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the tensors of ``architecture``, weights fake-quantised; see :class:`WeightSource`.

        Raises:
            UncalibratedError: no input was ever observed.
        """
        self._require_observed()
        base = self.quantized_space.base(architecture)
        tensors: dict[str, Tensor] = self.wrapped(base)
        made: dict[int, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for layer, (weight_bits, input_bits) in self.quantized_space.bitwidths(architecture).items():
            if weight_bits < FULL_PRECISION:
                weight = tensors[f"{layer}.weight"]
                made[id(weight)] = self.quantizer(weight, weight_bits, self.scale(layer, weight_bits, base))
            if input_bits < FULL_PRECISION:
                scales[f"{layer}.input_quantizer.scale"] = self.input_scales(layer, input_bits)
        return {name: made.get(id(tensor), tensor) for name, tensor in tensors.items()} | scales

    def _require_observed(self) -> None:
        if not self.observed:
            raise UncalibratedError(
                "scales of quantised inputs start from data, and no data was seen yet; train the supernet, or call "
                "source.observe([inputs]) with a batch, or set QuantizedSpace.input_bits to null"
            )

    @property
    def relaxation(self) -> BitRelaxation:  # type: ignore[override]
        """Runs networks with several bitwidths at once, and other candidates by masks where the source has them."""
        if self._bit_relaxation is None:
            self._bit_relaxation = BitRelaxation(self.quantized_space, self.wrapped.skeletons, self._masks)
        return self._bit_relaxation

    def _masks(self) -> Relaxation:
        """Return the masks of the wrapped space.

        Raises:
            TypeError: masked and quantised weights would not be those of the subnetworks.
            RelaxationError: the space cannot be relaxed.
        """
        if not isinstance(self.wrapped, SharedWeights) or self.wrapped.kernel_transform:
            raise TypeError(
                "candidates of other choices than bits are mixed by masks on plain shared weights; set the source of "
                "QuantizedWeights to SharedWeights with kernel_transform: false, or search these choices with "
                "SandwichRule and nas search"
            )
        if not self.quantizer.learned:
            raise TypeError(
                f"{type(self.quantizer).__name__} takes its scales from all weights of a layer, so that those of a "
                "masked layer are not those of the subnetwork; use LSQ or SBS, whose scales are learned"
            )
        if self.wrapped.relaxation.operations:
            raise TypeError(
                f"{self.wrapped.relaxation.operations[0]!r} chooses among operations, which are not mixed at several "
                "bitwidths at once; fix it, or search it with SandwichRule and nas search"
            )
        return self.wrapped.relaxation

    def relaxed(self, architecture: RelaxedArchitecture) -> dict[str, Tensor]:
        """Return the tensors of the network in ``architecture``, its weights mixed over bitwidths, then masked.

        For :attr:`relaxation`, which mixes inputs by the ``scales`` and ``shares`` among them.

        Raises:
            TypeError: ``architecture`` mixes something else than bits, and these weights cannot.
            RelaxationError: so it does, and the space cannot.
            UncalibratedError: no input was ever observed.
        """
        base = pinned(self.quantized_space, architecture)
        masks = None if base is not None else self._masks()
        self._require_observed()
        if base is not None:
            return mixed(self, architecture, base, self.wrapped(base))
        assert masks is not None  # noqa: S101 - one or the other
        assert isinstance(self.wrapped, SharedWeights)  # noqa: S101 - has masks
        largest = self.quantized_space.space.largest()
        tensors = mixed(self, architecture, largest, self.wrapped(largest))
        if self.relaxation.groups is not None:
            for choice, metrics in self.relaxation.groups.metrics(self.wrapped.stored()).items():
                self.relaxation.note(choice, metrics)
        return {**tensors, **masks.soften({source: tensors[source] for source in masks.sources.values()}, architecture)}

    def couplings(self) -> Couplings:
        """Return those of the wrapped source."""
        return self.wrapped.couplings()

    def sort(self, optimizer: torch.optim.Optimizer | None = None) -> Couplings:
        """Put channels in falling order of :func:`importance`, in place, with their scales."""
        if not isinstance(self.wrapped, SharedWeights):
            return super().sort(optimizer)

        def order(tensors: Mapping[str, Tensor], coupling: Coupling) -> Tensor:
            places = by_importance(tensors, coupling)
            for site in coupling.sites:
                layer = site.tensor.removesuffix(".weight")
                if layer in self._witnesses and site.dim == 0 and self.quantizer.learned:
                    for key in {self._key(bits) for bits in self._options(layer)[0]}:
                        scale = self.weight_scales.stored(layer, key)
                        if scale.ndim:
                            permute(scale, site, places, optimizer)
            return places

        return self.wrapped.reorder(order, optimizer)

    def at(self, layer: str, weight: Tensor, base: Architecture, bits: int) -> Tensor:
        """Return the weight of a layer at ``bits``, 32 being full precision.

        Args:
            layer: name.
            weight: as the wrapped source gives it for ``base``.
            base: architecture without bits.
            bits: one of the layer's options.
        """
        return weight if bits == FULL_PRECISION else self.quantizer(weight, bits, self.scale(layer, bits, base))

    @torch.no_grad()
    def residuals(self, layer: str, weight: Tensor, base: Architecture, bits: Sequence[int]) -> Tensor:
        """Return the metric ``(len(bits),)`` of what each of ``bits`` leaves of a weight, see ``residual_metric``."""
        found = []
        for b in bits:
            step = self.quantizer.step(weight, b, self.scale(layer, b, base))
            low, high = (place + self.quantizer.offset for place in self.quantizer.bounds(b))
            found.append(residual_metric(weight, self.at(layer, weight, base, b), step, (low, high)))
        return torch.stack(found)

    @torch.no_grad()
    def set_scale(self, layer: str, bits: int, base: Architecture, scale: Tensor) -> None:
        """Set the learned scale of a weight, of the channels that ``base`` has."""
        stored = self.weight_scales.stored(layer, self._key(bits))
        (self._parts(base)[layer](stored) if stored.ndim else stored).copy_(scale.log())

    def scale(self, layer: str, bits: int, base: Architecture) -> Tensor | None:
        """Return the learned scale of a weight, cut to its channels; ``None`` where scales are not learned."""
        if not self.quantizer.learned:
            return None
        scale: Tensor = self.weight_scales(layer, self._key(bits))
        return self._parts(base)[layer](scale) if scale.ndim else scale

    @torch.no_grad()
    def codes(self, architecture: Architecture) -> dict[str, Codes]:
        """Return name -> integers and scales of every quantised weight of ``architecture``.

        ``codes[name].value()`` is, to the bit, the tensor of that name that the source gives.
        """
        base = self.quantized_space.base(architecture)
        tensors: dict[str, Tensor] = self.wrapped(base)
        return {
            f"{layer}.weight": self.quantizer.codes(tensors[f"{layer}.weight"], bits, self.scale(layer, bits, base))
            for layer, (bits, _) in self.quantized_space.bitwidths(architecture).items()
            if bits < FULL_PRECISION
        }

    def penalty(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Return the term of the wrapped source."""
        return self.wrapped.penalty(self.quantized_space.base(architecture), tensors)

    def provenance(self) -> Mapping[str, str]:
        """Return what the wrapped source says, and the quantiser."""
        return {**self.wrapped.provenance(), "quantizer": type(self.quantizer).__name__}

    def diagnostics(self) -> Mapping[str, float]:
        """Return those of the wrapped source."""
        return self.wrapped.diagnostics()
