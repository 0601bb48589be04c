"""Implicit weights: subnetworks of any size from functions of where a weight stands."""

import math
from collections.abc import Mapping
from typing import Literal, final

import torch
from torch import Tensor

from hypernets import ArchitectureCode, ImplicitHyperNetwork, Parametrization, Target, TensorSpec, shortest_path
from search_spaces import (
    Architecture,
    Candidate,
    Coupling,
    Couplings,
    SearchSpace,
    derive_seed,
)
from supernets.resampled import Jitter, Resampling, between, within
from supernets.skeletons import ThreadCache
from supernets.weights import SharedWeights, WeightSource

__all__ = ["ImplicitWeights"]


@final
class ImplicitWeights(WeightSource):
    """NeuMeta (Yang & Wang, ECCV 2024, arXiv 2410.11878) for every layer, width and depth of a space.

    A tensor of architecture ``a`` is ``R_a(theta0) + g(coordinates, a)``: the tensor of the largest build read at other
    positions (:func:`hypernets.interpolation`), and a small function of position and architecture
    (:class:`hypernets.ImplicitHyperNetwork`) that starts at zero. Widths may therefore be any number between the
    smallest and the largest candidate, trained or not: see :meth:`sized`. Channels that have no order of their own
    (heads packed beside each other) and kernels are cut as under weight sharing.

    Reading between channels makes sense where neighbours are alike, so order them once the largest network is trained:
    :meth:`sort`, or ``sort_channels`` of a stage of ``ProgressiveRule``. To start from a trained network, load it into
    ``source.shared.largest`` and call :meth:`sort`.

    Differs from the paper: see :class:`hypernets.ImplicitHyperNetwork`; batch norm is not fused, as every subnetwork is
    calibrated anyway; reconstruction holds at all sizes and is relative to the size of each tensor.

    Args:
        space: the space whose architectures are filled.
        residual: ``"learned"`` trains ``theta0`` and ``g``; ``"none"`` leaves ``theta0`` out of the weights, as in the
            paper, and keeps it at rest as the teacher of the reconstruction.
        width: units of the function of each tensor.
        layers: hidden layers of the function of each tensor, the separable one included.
        frequencies: of its Fourier features; by default what the widest axis needs.
        noise: jitter of positions in training, as a part of the cell of a channel, in [0, 1]. ``theta0`` is read at
            jittered positions too, from :meth:`sort` or :meth:`teach` on; coupled channels move together.
        samples: weight sets that are averaged in evaluation, the first without noise.
        reconstruction: weight of :meth:`distance` in the training loss, once channels have been sorted.
        extrapolate: allow sizes outside the range of the candidates.
        seed: of all initial weights. The global random state is left as it was.

    Raises:
        ValueError: an argument is out of range.
        SlicingError: see :class:`SharedWeights`.
    """

    sortable = True
    resizable = True
    generated = True

    def __init__(
        self,
        space: SearchSpace,
        *,
        residual: Literal["learned", "none"] = "learned",
        width: int = 32,
        layers: int = 1,
        frequencies: int | None = None,
        noise: float = 0.0,
        samples: int = 1,
        reconstruction: float = 0.0,
        extrapolate: bool = False,
        seed: int = 0,
    ) -> None:
        if residual not in ("learned", "none"):
            raise ValueError(f"ImplicitWeights.residual must be 'learned' or 'none', got {residual!r}")
        if samples < 1 or reconstruction < 0:
            raise ValueError(
                f"ImplicitWeights needs samples >= 1 and reconstruction >= 0, got {samples=}, {reconstruction=}"
            )
        shared = SharedWeights(space, seed=seed)
        super().__init__(space, skeletons=shared.skeletons)
        self.residual, self.width, self.layers, self.frequencies = residual, width, layers, frequencies
        self.noise, self.samples, self.reconstruction = noise, samples, reconstruction
        self.extrapolate, self.seed = extrapolate, seed
        self.shared = shared
        self._resampling = Resampling(shared, extrapolate=extrapolate)
        self._codes: ThreadCache[Architecture, tuple[Tensor, tuple[TensorSpec, ...]]] = ThreadCache(maxsize=256)
        learned = {name for name, tensor in shared.stored().items() if tensor.requires_grad}
        target = Target.of(shared.largest)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "functions"))
            self.hypernet = ImplicitHyperNetwork(
                Target(tuple(spec for spec in target if spec.name in learned)),
                {"architecture": ArchitectureCode(max(len(space.encode(space.largest())), 1))},
                width=width,
                layers=layers,
                frequencies=frequencies,
                noise=noise,
                extrapolate=extrapolate,
                parametrization=Parametrization(residual="none"),
            )
        self._silence() if residual == "learned" else shared.requires_grad_(False)
        if residual == "learned" and reconstruction:
            for name in self.hypernet.target.names:
                self.register_buffer(_key(name), torch.zeros_like(shared.stored()[name]))
        self._taught: Tensor
        self.register_buffer("_taught", torch.tensor(False))

    def _silence(self) -> None:
        """Let every function be zero."""
        for name in self.hypernet.target.names:
            self.hypernet.rescale(name, 0.0)

    def sized(self, values: Mapping[str, Candidate]) -> Architecture:
        """Return an architecture whose sizes need not be candidates, checked like ``space.architecture``.

        >>> from search_spaces import MLPSpace
        >>> source = ImplicitWeights(MLPSpace(4, 2, widths=(8, 16), depths=(1,)))
        >>> source(source.sized({"depth": 1, "layer1.width": 11}))["linear1.weight"].shape
        torch.Size([11, 4])

        Raises:
            InvalidArchitectureError: a choice is unknown or missing, or a value is out of range.
        """
        within(self.space, values, extrapolate=self.extrapolate)
        nearest = {
            name: value
            if value in (candidates := self.space.choice(name).candidates)
            else min(candidates, key=lambda candidate: abs(float(candidate) - float(value)))
            for name, value in values.items()
        }
        return Architecture({name: values[name] for name in self.space.architecture(nearest)})

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the tensors of ``architecture``, which may be one of :meth:`sized`; see :class:`WeightSource`.

        Raises:
            InvalidArchitectureError: a size lies outside the candidates and ``extrapolate`` is off.
        """
        with torch.autocast(self.device.type, enabled=False):
            tensors = self._made(architecture)
        return tensors | self.shared.shared_buffers(architecture)

    def _made(self, architecture: Architecture) -> dict[str, Tensor]:
        if self.training or not self.noise or self.samples == 1:
            return self._once(architecture, self._noise())
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "samples"))
        sets = [self._once(architecture, generator if number else None) for number in range(self.samples)]
        return {name: torch.stack([each[name] for each in sets]).mean(0) for name in sets[0]}

    def _noise(self) -> torch.Generator | None:
        """The noise of one training pass."""
        if not self.training or not self.noise:
            return None
        return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))

    def _once(self, architecture: Architecture, generator: torch.Generator | None) -> dict[str, Tensor]:
        """One set of tensors, jittered where there is a generator."""
        jitter = None if generator is None or not self._taught else Jitter(self.noise, generator)
        deltas, stored = self.deltas(architecture, generator), self.shared.stored()
        done: dict[tuple[object, ...], Tensor] = {}
        found: dict[str, Tensor] = {}
        for part in self._resampling(architecture):
            if part.key not in done:
                tensor = deltas.get(part.source)
                if tensor is None or self.residual == "learned":
                    whole = part(stored[part.source], jitter)
                    tensor = whole if tensor is None else whole + tensor
                done[part.key] = part.cut(tensor)
            found[part.name] = done[part.key]
        return found

    def deltas(self, architecture: Architecture, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return what the functions add to each resampled tensor of the largest build, before anything is cut.

        Args:
            architecture: which.
            generator: of noise in the coordinates; none without it.
        """
        code, specs = self._codes.get(architecture, lambda: self._asked(architecture))
        code = self.hypernet.encoder({"architecture": code.to(self._anchor())[None]})
        return {name: value[0] for name, value in self.hypernet.jittered(code, specs, generator).items()}

    def _asked(self, architecture: Architecture) -> tuple[Tensor, tuple[TensorSpec, ...]]:
        """What the hypernetwork is asked for: encoding of the architecture, and its tensors."""
        code = self.space.encode(between(self.space, architecture))
        known = self.hypernet.target.shapes
        shapes = {part.source: part.shape for part in self._resampling(architecture) if part.source in known}
        return (code if len(code) else torch.zeros(1)), self.hypernet.specs(shapes)

    @torch.no_grad()
    def sort(self, optimizer: torch.optim.Optimizer | None = None) -> Couplings:
        """Order channels so that neighbours are alike (:func:`hypernets.shortest_path`); the result is the teacher.

        What the functions add to the largest build becomes part of ``theta0`` first, so that the largest computes what
        it computed before. All dimensions that hold the same channels, through shortcuts too, get one order; input
        and output of the network keep theirs.
        """
        self.teach()
        found = self.shared.reorder(path_of, optimizer)
        self.teach()
        return found

    @torch.no_grad()
    def teach(self) -> None:
        """Take the present largest build for the teacher of the reconstruction, in the order that it has."""
        stored = self.shared.stored()
        if self.residual == "learned":
            for name, delta in self.deltas(self.space.largest()).items():
                stored[name].add_(delta)
            self._silence()
        if self.residual == "learned" and self.reconstruction:
            for name in self.hypernet.target.names:
                getattr(self, _key(name)).copy_(stored[name])
        self._taught.fill_(True)

    def distance(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return how far tensors of ``architecture`` are from the teacher, resampled to its size.

        The mean over tensors of ``sum (w - w*)^2 / sum w*^2``, the sum below being at least a thousandth for each
        element.

        Raises:
            RuntimeError: there is no teacher yet.
        """
        if not self._taught:
            raise RuntimeError("there is no teacher to reconstruct; call sort() or teach() once the largest is trained")
        stored = self.shared.stored()
        held = self.residual == "learned" and self.reconstruction > 0
        errors = []
        for part in self._resampling(architecture):
            if part.source in self.hypernet.target.shapes:
                teacher = getattr(self, _key(part.source)) if held else stored[part.source]
                wanted = part.cut(part(teacher.detach()))
                errors.append((tensors[part.name] - wanted).square().mean() / wanted.square().mean().clamp(min=1e-3))
        return torch.stack(errors).mean()

    def penalty(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Return ``reconstruction`` times :meth:`distance`, once there is a teacher."""
        if not self.reconstruction or not self._taught:
            return None
        return self.reconstruction * self.distance(architecture, tensors)

    @torch.no_grad()
    def diagnostics(self) -> Mapping[str, float]:
        """Return ``delta``: norm of what the functions add over that of all weights, at the largest architecture.

        Zero means that resampling does all the work.
        """
        largest = self.space.largest()
        tensors, deltas = self._made(largest), self.deltas(largest)
        norm = math.sqrt(sum(float(tensors[name].square().sum()) for name in deltas if name in tensors))
        return {"delta": math.sqrt(sum(float(delta.square().sum()) for delta in deltas.values())) / max(norm, 1e-12)}


def path_of(tensors: Mapping[str, Tensor], coupling: Coupling) -> Tensor:
    """Return coupled channels along a short path through all weights that hold them."""
    rows = []
    for site in coupling.sites:
        if site.tensor in tensors:
            values = tensors[site.tensor].detach().transpose(0, site.dim)  # (blocks * size, ...)
            rows.append(values.reshape(site.blocks, coupling.size, -1).transpose(0, 1).flatten(1))
    return shortest_path(torch.cat(rows, dim=1))


def _key(name: str) -> str:
    return f"teacher/{name.replace('.', '/')}"
