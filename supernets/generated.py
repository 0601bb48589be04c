"""Generated weights: a hypernetwork in the place of stored tensors."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import final

import torch
from torch import Tensor

from hypernets import (
    ArchitectureCode,
    ChunkedHyperNetwork,
    Field,
    HyperNetwork,
    Target,
    diagnose,
    digest,
)
from search_spaces import Architecture, RelaxedArchitecture, SearchSpace, derive_seed
from supernets.weights import SharedWeights, WeightSource

__all__ = ["GeneratedWeights"]

_FIELD = "architecture"
_DIAGNOSED = 8


@final
class GeneratedWeights(WeightSource):
    """Tensors of the largest build that a hypernetwork makes for each architecture, and the cut of them that it needs.

    ``W(a) = cut_a(theta0 + g(E(encode(a))))``: the encoding of the architecture is the condition (SMASH, Brock et al.,
    arXiv 1708.05344). What is not generated is shared plainly. The residual ``theta0`` starts as the space's own
    initialisation, so training starts from plain sharing plus the deltas ``g``.

    Differs from the paper: any hypernetwork of :mod:`hypernets`, magnitude-invariant by default, in place of a
    convolution over a memory-bank picture of the architecture; smaller tensors are cut, not generated in their size.

    Scores with generated weights must show that they rank before a search may use them: ``nas.TrustGate``.

    Args:
        space: the space whose architectures are filled.
        hypernet: makes the generator from what it generates and its condition fields.
        tensors: globs over tensors of the largest build that are generated; default every matrix and kernel. Norm
            scales named here are subject to weight decay, shared ones are not.
        seed: of the initial weights. The global random state is left as it was.

    Raises:
        ValueError: the space has no choices, a glob matches nothing that is trained, or the generator refuses the
            target.
        SlicingError: see :class:`SharedWeights`.
    """

    generated = True

    def __init__(
        self,
        space: SearchSpace,
        *,
        hypernet: Callable[[Target, Mapping[str, Field]], HyperNetwork] = ChunkedHyperNetwork,
        tensors: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        size = len(space.encode(space.largest()))
        if not size:
            raise ValueError(
                "GeneratedWeights needs a space with choices, as the architecture is the condition; use SharedWeights"
            )
        shared = SharedWeights(space, seed=seed)
        super().__init__(space, skeletons=shared.skeletons)
        self.tensors = None if tensors is None else tuple(tensors)
        self.seed = seed
        self.shared = shared
        names = self._matched(shared.stored())
        target = Target.of(shared.largest, include=names)
        initial = shared.release(names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "hypernet"))
            self.generator = hypernet(target, {_FIELD: ArchitectureCode(size)})
        if self.generator.parametrization.residual in ("learned", "frozen"):
            self.generator.start_from(initial)
        given = inspect.signature(type(self.generator)).parameters
        settings = {name: getattr(self.generator, name) for name in given if name not in ("target", "conditions")}
        self.hypernet = functools.partial(type(self.generator), **settings)  # what describes and rebuilds the generator

    def _matched(self, stored: Mapping[str, Tensor]) -> list[str]:
        """Names of the tensors to generate."""
        trained = {name: tensor for name, tensor in stored.items() if tensor.requires_grad}
        if self.tensors is None:
            return [name for name, tensor in trained.items() if tensor.ndim > 1]
        idle = [glob for glob in self.tensors if not any(fnmatchcase(name, glob) for name in trained)]
        if idle or not self.tensors:
            raise ValueError(
                f"GeneratedWeights.tensors must match trained tensors of the largest build, {idle} match none; give "
                f"globs over {list(trained)}"
            )
        return [name for name in trained if any(fnmatchcase(name, glob) for glob in self.tensors)]

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Generate what ``architecture`` needs and cut it; see :class:`WeightSource`."""
        return self.conditioned(architecture, on=architecture)

    def conditioned(self, architecture: Architecture, *, on: Architecture) -> dict[str, Tensor]:
        """Return tensors of ``architecture`` generated for the condition ``on``.

        With another architecture as the condition this tells whether conditions matter: where scores do not fall,
        :class:`SharedWeights` would do.
        """
        known = self.generator.target.shapes
        needed = {part.source: known[part.source] for part in self.shared.plan(architecture) if part.source in known}
        stored = self.shared.stored() | self._generate(self.space.encode(on), needed)
        return self.shared.cut(architecture, stored) | self.shared.shared_buffers(architecture)

    def relaxed(self, architecture: RelaxedArchitecture) -> dict[str, Tensor]:
        """Generate for the expected encoding and mask; see :class:`WeightSource`."""
        code = self.space.encode(architecture)
        code = code + (code.clamp(0, 1) - code).detach()  # sums of probabilities are one to rounding alone
        stored = self.shared.stored() | self._generate(code, self.generator.target.shapes)
        return self.shared.soften(architecture, stored) | self.shared.relaxed_buffers()

    def _generate(self, code: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """One weight set, in the precision of the source."""
        first = self._anchor()
        with torch.autocast(first.device.type, enabled=False):
            made = self.generator.generate({_FIELD: code.to(first)[None]}, shapes)
        return {name: tensor[0].to(first.dtype) for name, tensor in made.items()}

    def provenance(self) -> Mapping[str, str]:
        """Return the class of the hypernetwork and the digest of its weights."""
        return {"generator": self.generator.card.name, "hypernetwork": digest(self.generator)}

    @torch.no_grad()
    def diagnostics(self) -> Mapping[str, float]:
        """Return whether the hypernetwork is used, over a few of ``space.probes()``; see :func:`hypernets.diagnose`.

        ``delta``: norm of what it adds over the norm of the weights. ``spread``: norm of what differs between
        architectures over the norm of the weights; near 0 all get the same weights. ``stored_ratio``: numbers stored,
        as a multiple of those that plain sharing stores.
        """
        first = self._anchor()
        codes = [self.space.encode(probe) for probe in itertools.islice(self.space.probes(), _DIAGNOSED)]
        ratio = sum(p.numel() for p in self.parameters()) / self._plain()
        if len(codes) < 2:
            return {"stored_ratio": ratio}
        found = diagnose(
            self.generator, {_FIELD: torch.stack(codes).to(first)}, generator=torch.Generator().manual_seed(0)
        )
        return {"delta": found.delta, "spread": found.spread, "stored_ratio": ratio}

    def _plain(self) -> int:
        return self.generator.target.numel + sum(p.numel() for p in self.shared.parameters())
