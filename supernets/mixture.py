"""Mixture-of-Supernets: weights mixed from several experts, in proportions that follow from the architecture."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, final

import torch
from torch import Tensor

from search_spaces import Architecture, RelaxedArchitecture, SearchSpace, TensorSlice, derive_seed
from supernets.experts import Experts, FullExperts, LowRankExperts
from supernets.routing import LayerRouter, NeuronRouter, Route, Router, hats, layers_of
from supernets.skeletons import ThreadCache
from supernets.weights import SharedWeights, WeightSource

__all__ = ["MixtureWeights"]

_PRIOR = 3.0  # of a group's own low-rank expert, arXiv 2605.07256


@final
class MixtureWeights(WeightSource):
    """Mixture-of-Supernets (arXiv 2306.04845): ``W_a = S_a(sum_k p_k(a) E_k)``, with ``S_a`` the cut of ``a``.

    Subnetworks that pull shared weights in different directions can part company: a small network, the router, reads
    the encoding of the architecture and says how much of each of ``m`` experts its weights take. Every expert is used
    and there is nothing to balance. The mixture does not depend on the data, so an extracted subnetwork is the plain
    module of its space and costs what it costs under plain sharing.

    ``routing="layer"`` draws one ``p`` for each layer (both linear maps of an FFN, the convolutions of one block);
    ``"neuron"`` one for each row of a weight and its bias. Parts are cut before they are mixed; a learned kernel
    transform comes after. Tensors that are not mixed are shared.

    The first expert is ``shared``, so ``source.shared.largest.load_state_dict(...)`` starts from a checkpoint, after
    which :meth:`spread` sets the other experts near it. Experts that start equal under equal proportions would stay
    equal for ever; unless spread, each starts as a new build of its own.

    With ``rank``, the experts are low-rank differences from the shared tensor, ``W_0 + sum_k p_k B_k A_k`` with ``B``
    zero at first (mixture of LoRA experts, TAS-LoRA, arXiv 2605.07256), of tensors of two and more dimensions.
    ``source.shared.requires_grad_(False)`` trains them alone.

    ``group_bias`` adds a fixed logit to the expert of the architecture's own size group, and starts the router's head
    at zero, so that experts differ from the first step. Group ``k`` of ``m`` is a triangle of width ``1 / (m - 1)``
    round the relative size ``k / (m - 1)``, which is the mean of the encoding between those of the smallest and the
    largest architecture.

    Differs from the papers: choices of every block are encoded, with their presence, instead of averages; TAS-LoRA's
    groups are tuples of choices, its bias can be unlearned, and its router is recurrent over blocks.

    Args:
        space: the space whose architectures are filled.
        experts: ``m``, at least 2.
        routing: ``"layer"`` or ``"neuron"``.
        mixed: globs over the names of the tensors to mix; default ``space.mixed()``.
        hidden: units of the hidden layer of each router.
        rank: of low-rank experts; ``None``: experts of full size.
        group_bias: logit of an architecture's own size group; default 3 with ``rank``, else 0.
        encoding: ``"constant"`` hides the architecture from the router, the authors' control for the effect of more
            parameters alone.
        seed: of all initial weights. The global random state is left as it was.
        kernel_transform: see :class:`SharedWeights`; the matrices are shared by the experts.
        zero_residual_gamma: see :class:`SharedWeights`.

    Raises:
        ValueError: an argument is out of range, a glob matches nothing, nothing is left to mix, or the rank is
            above the smaller side of a mixed matrix.
        SlicingError: see :class:`SharedWeights`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        experts: int = 2,
        routing: Literal["layer", "neuron"] = "layer",
        mixed: Sequence[str] | None = None,
        hidden: int = 128,
        rank: int | None = None,
        group_bias: float | None = None,
        encoding: Literal["architecture", "constant"] = "architecture",
        seed: int = 0,
        kernel_transform: bool = False,
        zero_residual_gamma: bool = False,
    ) -> None:
        if experts < 2:
            raise ValueError(f"MixtureWeights.experts must be at least 2, got {experts}; use SharedWeights for one")
        if hidden < 1:
            raise ValueError(f"MixtureWeights.hidden must be at least 1, got {hidden}")
        if routing not in ("layer", "neuron"):
            raise ValueError(f"MixtureWeights.routing must be 'layer' or 'neuron', got {routing!r}")
        if encoding not in ("architecture", "constant"):
            raise ValueError(f"MixtureWeights.encoding must be 'architecture' or 'constant', got {encoding!r}")
        shared = SharedWeights(
            space, seed=seed, kernel_transform=kernel_transform, zero_residual_gamma=zero_residual_gamma
        )
        super().__init__(space, skeletons=shared.skeletons)
        self.shared = shared
        self.experts, self.routing, self.hidden, self.rank, self.seed = experts, routing, hidden, rank, seed
        self.mixed = None if mixed is None else tuple(mixed)
        self.group_bias, self.encoding = group_bias, encoding
        self.kernel_transform, self.zero_residual_gamma = kernel_transform, zero_residual_gamma
        self._prior = group_bias if group_bias is not None else 0.0 if rank is None else _PRIOR
        shapes = self._matched()
        self.bank = self._make_experts(shapes)
        self.router = self._make_router(shapes)
        self._span = float(space.encode(space.smallest()).mean()), float(space.encode(space.largest()).mean())
        self._codes: ThreadCache[Architecture, Tensor] = ThreadCache(maxsize=256)
        self._trainings = 0
        self._mixtures: ThreadCache[tuple[Architecture, bool], tuple[object, dict[str, Tensor]]] = ThreadCache(8)

    def _matched(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors to mix."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.shared.stored().items()}
        globs = self.space.mixed() if self.mixed is None else self.mixed
        unmatched = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in shapes)]
        if unmatched or not globs:
            raise ValueError(
                f"MixtureWeights.mixed must be globs over names of tensors, but {list(unmatched)} match none; choose "
                f"among {list(shapes)}"
            )
        dimensions = 1 if self.rank is None else 2
        found = {
            name: shape
            for name, shape in shapes.items()
            if len(shape) >= dimensions and any(fnmatchcase(name, glob) for glob in globs)
        }
        if not found:
            raise ValueError(
                f"nothing to mix: {list(globs)} match no tensor of {dimensions} or more dimensions; choose among "
                f"{shapes}"
            )
        if self.rank is not None:
            side = {name: min(shape[0], math.prod(shape[1:])) for name, shape in found.items()}
            if not 1 <= self.rank <= min(side.values()):
                raise ValueError(
                    f"MixtureWeights.rank must be at least 1 and at most the smaller side of every mixed matrix, got "
                    f"{self.rank} where {min(side, key=lambda name: side[name])!r} has {min(side.values())}; choose a "
                    "smaller rank, leave that tensor out of mixed, or leave rank out for experts of full size"
                )
        return found

    def _make_experts(self, shapes: Mapping[str, tuple[int, ...]]) -> Experts:
        if self.rank is not None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "experts"))
            return LowRankExperts(shapes, self.experts, rank=self.rank, generator=generator)
        zeroed = self.space.zero_init() if self.zero_residual_gamma else ()
        builds = []
        for expert in range(1, self.experts):
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(self.seed, "expert", expert))
                build = dict(self.space.superset().named_parameters())
            builds.append(
                {
                    name: build[name].detach().clone().mul_(not any(fnmatchcase(name, glob) for glob in zeroed))
                    for name in shapes
                }
            )
        return FullExperts(builds)

    def _make_router(self, shapes: Mapping[str, tuple[int, ...]]) -> Router:
        features = len(self.space.encode(self.space.largest()))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "router"))
        if self.routing == "layer":
            return LayerRouter(
                layers_of(self.shared.largest, shapes),
                features,
                self.experts,
                hidden=self.hidden,
                generator=generator,
                zero_head=self._prior != 0,
            )
        return NeuronRouter(
            {name: shape[0] for name, shape in shapes.items()},
            features,
            self.experts,
            hidden=self.hidden,
            generator=generator,
            zero_head=self._prior != 0,
        )

    def _code(self, architecture: Architecture | RelaxedArchitecture) -> tuple[Tensor, Tensor]:
        """What the router sees: encoding ``(D,)`` and prior logits ``(m,)``."""
        if isinstance(architecture, Architecture):
            code = self._codes.get(architecture, lambda: self.space.encode(architecture))
        else:
            code = self.space.encode(architecture)
        first = next(self.router.parameters())
        code = code.to(first)
        if self.encoding == "constant":
            code = torch.full_like(code, 0.5)
        if not self._prior or not len(code):
            return code, code.new_zeros(self.experts)
        low, high = self._span
        return code, self._prior * hats((code.mean() - low) / ((high - low) or 1.0), self.experts)

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the mixed tensors of ``architecture``; see :class:`WeightSource`.

        In evaluation mode and without gradients, the mixtures of the last few architectures are kept until a parameter
        changes or the source goes back to training; treat what is returned as read-only. (Writes that PyTorch does not
        count, those through ``.data`` and of fused optimisers, go unnoticed unless training mode lies between.)
        """
        keeps = not self.training and not torch.is_grad_enabled()
        if not keeps or any(parameter.is_inference() for parameter in self.parameters()):
            tensors = self._mix(architecture)
        else:
            tensors = dict(self._kept(architecture))
        return tensors | self.shared.shared_buffers(architecture)

    def train(self, mode: bool = True) -> "MixtureWeights":
        """Switch between training, where no mixture is kept, and evaluation."""
        self._trainings += mode
        return super().train(mode)

    def _kept(self, architecture: Architecture) -> dict[str, Tensor]:
        """This thread's mixture of ``architecture`` at the present weights."""
        state = self._trainings, tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters())
        key = architecture, torch.is_inference_mode_enabled()
        kept, tensors = self._mixtures.get(key, lambda: (state, self._mix(architecture)))
        if kept != state:
            self._mixtures.pop(key)
            _, tensors = self._mixtures.get(key, lambda: (state, self._mix(architecture)))
        return tensors

    def _mix(self, architecture: Architecture) -> dict[str, Tensor]:
        mixed, kernels = frozenset(self.bank.names), self.shared.kernels
        with torch.autocast(self.device.type, enabled=False):
            route = self.router(*self._code(architecture))

            def cut(part: TensorSlice, stored: Tensor) -> Tensor:
                blended = part.source in mixed
                if kernels is None or not part.kernel:
                    return self._part(part, stored, route) if blended else part(stored)
                if blended:
                    channels = dataclasses.replace(part, cuts=tuple(piece for piece in part.cuts if piece[0] < 2))
                    stored = self._part(channels, stored, route)
                    part = dataclasses.replace(part, cuts=tuple(piece for piece in part.cuts if piece[0] >= 2))
                tensor: Tensor = kernels(part, stored)
                return tensor

            return self.shared.plan(architecture)(self.shared.stored(), cut)

    def _part(self, part: TensorSlice, stored: Tensor, route: Route) -> Tensor:
        mixture: Tensor = self.bank(part, stored, route(part))
        return mixture

    def relaxed(self, architecture: RelaxedArchitecture) -> dict[str, Tensor]:
        """Return the mixture for the expected encoding, softened like shared weights; see :class:`WeightSource`.

        At a relaxed architecture of single candidates this is the mixture of that architecture.
        """
        stored = self.shared.stored()
        with torch.autocast(self.device.type, enabled=False):
            route = self.router(*self._code(architecture))
            for name in self.bank.names:
                whole = TensorSlice(name, name, tuple(stored[name].shape), ())
                stored[name] = self._part(whole, stored[name], route)
        return self.shared.soften(architecture, stored) | self.shared.relaxed_buffers()

    def spread(self, noise: float = 0.05) -> None:
        """Start the other experts of full size at copies of the first one, moved apart by noise.

        For weights that come from a trained supernet or checkpoint: load them into ``shared`` first.

        Args:
            noise: standard deviation, relative to that of each tensor.

        Raises:
            ValueError: ``noise <= 0`` (equal experts never part), or the experts are of low rank, which start at the
                shared weights anyway.
        """
        if not isinstance(self.bank, FullExperts):
            raise ValueError(
                "spread is for experts of full size; those of low rank start at the shared weights, so leave it out"
            )
        if noise <= 0:
            raise ValueError(f"spread needs noise > 0, got {noise}; experts that start equal stay equal")
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "spread"))
        self.bank.copy(self.shared.stored(), noise, generator)

    @torch.no_grad()
    def diagnostics(self) -> Mapping[str, float]:
        """Return how evenly experts are used and how alike they are.

        ``routing_entropy``: of every softmax, averaged over ``space.probes()``, in units of ``log m``: 1 is an even
        mixture, 0 a single expert. ``expert_similarity``: cosine similarity of two experts, averaged over tensors and
        pairs; low-rank experts are compared by their differences from the shared tensor.
        """
        entropies = []
        for probe in self.space.probes():
            decisions = [weights.flatten(0, -2) for weights in self.router.decisions(*self._code(probe))]
            entropies.append(torch.special.entr(torch.cat(decisions)).sum(-1).mean())
        return {
            "routing_entropy": float(torch.stack(entropies).mean()) / math.log(self.experts),
            "expert_similarity": self.bank.similarity(self.shared.stored()),
        }
