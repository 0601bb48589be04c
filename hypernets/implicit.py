"""Implicit hypernetworks: every tensor as a function of where its weights stand, read at any width."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from hypernets.base import Condition, HyperNetwork, Shapes
from hypernets.card import HyperCard
from hypernets.coordinates import bounded_frequencies
from hypernets.fields import Field
from hypernets.parametrization import Parametrization
from hypernets.position_functions import PositionFunctions
from hypernets.resampling import interpolation, resample
from hypernets.target import Target, TensorSpec

__all__ = ["ImplicitHyperNetwork"]


@final
class ImplicitHyperNetwork(HyperNetwork):
    """Neural implicit representation of weights (NeuMeta, Yang & Wang, ECCV 2024, arXiv 2410.11878).

    The weights of tensor ``l`` between output channel ``o`` of ``O`` and input channel ``i`` of ``I`` are

    ``theta_l[o, i] = theta0_l(o / O, i / I) + g_l(o / O, i / I, E(condition))``,

    so that a target of any other width can be asked for: ``generate(condition, shapes)`` with other sizes of the first
    two dimensions. Tensors left out of ``shapes`` are those of a shallower target. ``theta0`` is the residual at the
    width of the target, resampled (:func:`hypernets.interpolation`), and ``g_l`` a small network of its own for every
    tensor, which no noise can confuse with that of another:

    ``h = relu(A f(o) + B f(i) + C E)``, ``h <- h + s relu(W h)``, ``g = sigma_l (I_full / I) V h``

    with Fourier features ``f`` of bounded frequency. The first layer is separable: it costs ``O + I`` rows, not
    ``O I``. ``V`` gives all positions of a kernel at once.

    With ``noise``, training may jitter coordinates within their cells: pass a ``generator`` to :meth:`generate`.
    :meth:`average` gives the mean of several jittered weight sets.

    Give the size as a condition too, so that ``g`` may differ between sizes, and so that a size outside its range is
    refused. Weights are smooth along an axis only if neighbouring channels are alike: order them first
    (:func:`hypernets.shortest_path`; ``supernets.ImplicitWeights`` does it for any space).

    Differs from the paper: a residual; sizes are conditions, encoded smoothly, instead of Fourier features, which alias
    between sizes; positions are centres of cells; noise is drawn per channel and not per weight.

    >>> from torch import nn
    >>> from hypernets import Size
    >>> hypernet = ImplicitHyperNetwork(Target.of(nn.Linear(8, 32)), {"width": Size(16, 32)})
    >>> hypernet.generate({"width": 24.0}, {"weight": (24, 8), "bias": (24,)})["weight"].shape
    torch.Size([1, 24, 8])

    Args:
        target: what is generated, at its largest width.
        conditions: name -> field.
        width: units of each ``g_l``.
        layers: hidden layers of each ``g_l``, the separable one included.
        frequencies: of the Fourier features; by default what the widest axis needs.
        noise: greatest jitter of a coordinate, as a part of its cell, in [0, 1].
        extrapolate: allow widths above those of the target.
        parametrization: the default is magnitude-invariant.

    Raises:
        ValueError: a size is below 1, or the noise is out of range.
    """

    def __init__(
        self,
        target: Target,
        conditions: Mapping[str, Field],
        *,
        width: int = 32,
        layers: int = 2,
        frequencies: int | None = None,
        noise: float = 0.0,
        extrapolate: bool = False,
        parametrization: Parametrization | None = None,
    ) -> None:
        super().__init__(target, conditions, parametrization=parametrization)
        if min(width, layers, 1 if frequencies is None else frequencies) < 1:
            raise ValueError(
                "width, layers and frequencies of implicit weights must be at least 1, got "
                f"{width=}, {layers=}, {frequencies=}"
            )
        if not 0 <= noise <= 1:
            raise ValueError(f"noise must be in [0, 1], a part of the cell of one channel, got {noise}")
        self.width, self.layers, self.frequencies = width, layers, frequencies
        self.noise, self.extrapolate = noise, extrapolate
        widest = max((size for spec in target for size in spec.shape[:2]), default=1)
        self._frequencies = bounded_frequencies(widest) if frequencies is None else frequencies
        self.functions = PositionFunctions(target, self._frequencies, self.encoder.width, width=width, layers=layers)
        self._full = target.shapes
        if self.parametrization.head_init == "fan_out" and self.parametrization.residual in {"learned", "frozen"}:
            for spec in target:
                self.rescale(spec.name, _coherence(spec))
        self.finish()

    @property
    def card(self) -> HyperCard:  # noqa: D102
        return HyperCard.of(
            type(self).__name__,
            self.conditions.values(),
            outputs="multi-head",
            output_variability="dynamic",
            architecture="implicit",
            reference="Yang, Wang: Neural Metamorphosis, arXiv 2410.11878",
        )

    def specs(self, shapes: Shapes | None) -> tuple[TensorSpec, ...]:
        """Return the tensors asked for, in the sizes asked for.

        Raises:
            ValueError: a name is unknown, something else than the first two dimensions differs, or a size is zero or
                larger than in the target without ``extrapolate``.
        """
        if shapes is None:
            return self.target.tensors
        given = shapes.shapes if isinstance(shapes, Target) else shapes
        asked = {self.target.canonical(name): tuple(shape) for name, shape in given.items()}
        known = self._full
        unknown = [name for name in asked if name not in known]
        wrong = [
            f"{name} is {shape} instead of {known[name]}"
            for name, shape in asked.items()
            if name in known and not self._fits(shape, known[name])
        ]
        if unknown or wrong:
            raise ValueError(
                f"{type(self).__name__} generates the tensors of its target in other sizes of their first two "
                f"dimensions, {'at least 1' if self.extrapolate else 'at most those of the target'}: {unknown=}, "
                f"{wrong=}; its target has {list(known)}"
            )
        return tuple(dataclasses.replace(spec, shape=asked[spec.name]) for spec in self.target if spec.name in asked)

    def _fits(self, shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
        if len(shape) != len(full) or shape[2:] != full[2:]:
            return False
        pairs = list(zip(shape[:2], full[:2], strict=True))
        return all(new == old or 1 <= new <= (math.inf if self.extrapolate and old else old) for new, old in pairs)

    def emit(  # noqa: D102
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        return self.jittered(code, specs, generator if self.training else None)

    def jittered(
        self, code: Tensor, specs: Sequence[TensorSpec], generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Return the deltas for encoded conditions, with noise wherever there is a generator; see :meth:`emit`."""
        found = self.functions(code, specs, noise=self.noise, generator=generator)
        for spec in specs:
            full = self._full[spec.name]
            reads = reading_axis(spec, full)
            if reads is not None and spec.shape[reads] not in (0, full[reads]):
                found[spec.name] = found[spec.name] * (full[reads] / spec.shape[reads])
        return {spec.name: found[spec.name] for spec in specs}

    def base(self, spec: TensorSpec) -> Tensor | None:
        """Return the residual of a tensor, resampled to the size of ``spec``."""
        whole = super().base(spec)
        if whole is None:
            return None
        full = tuple(whole.shape)
        reads = reading_axis(spec, full)
        for dim, (size, channels) in enumerate(zip(spec.shape[:2], full[:2], strict=True)):
            if size != channels:
                whole = resample(whole, dim, interpolation(size, channels, reads=dim == reads))
        return whole

    def average(
        self, condition: Condition, shapes: Shapes | None = None, *, samples: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the mean of weight sets, the first without noise and the others jittered, as :meth:`generate` does.

        Args:
            condition: as in :meth:`generate`.
            shapes: as in :meth:`generate`.
            samples: number of weight sets.
            generator: draws the noise.

        Raises:
            ValueError: ``samples < 1``.
        """
        if samples < 1:
            raise ValueError(f"samples must be >= 1, got {samples}")
        specs, code = self.specs(shapes), self._code(condition)
        sets = [self.jittered(code, specs, generator if number else None) for number in range(samples)]
        mean = {spec.name: torch.stack([each[spec.name] for each in sets]).mean(0) for spec in specs}
        return {spec.name: self._whole(spec, mean[spec.name]) for spec in specs}

    def rescale(self, name: str, factor: float) -> None:  # noqa: D102
        self.functions.rescale(name, factor)


def reading_axis(spec: TensorSpec, full: tuple[int, ...]) -> int | None:
    """Return the dimension that a layer sums over: 1 of a matrix or kernel, 0 of a transposed one, none of others.

    Transposed kernels are known by their fan-in; a square one is taken for a plain one.
    """
    if spec.role != "weight":
        return None
    return 1 if spec.fan_in == max(math.prod(full[1:]), 1) else 0


def _coherence(spec: TensorSpec) -> float:
    """Return what a delta is shrunk by beside a random residual of its deviation, so that it does not drown it.

    Neighbouring weights of a smooth matrix are alike and add up over the inputs of a layer: its operator norm is up to
    ``sqrt(O I)`` deviations, where that of a random one is about ``sqrt(O) + sqrt(I)``.
    """
    return 1 / math.sqrt(spec.fan_in) if spec.role == "weight" else 1.0
