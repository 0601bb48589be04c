"""Weight sources: an architecture in, the tensors of its module out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from search_spaces import Architecture, SearchSpace, SlicePlan, Slicer
from supernets.kernels import KernelTransform
from supernets.skeletons import Skeletons, ThreadCache

__all__ = ["SharedWeights", "WeightSource"]


class WeightSource(nn.Module, ABC):
    """Gives the tensors of any architecture of a space, differentiably.

    The tensors fit ``space.build(architecture)``: exactly its ``state_dict`` keys, in its shapes. A source keeps no
    notion of a current architecture, so it may be called from many threads while its parameters are at rest.

    Args:
        space: the space whose architectures are filled.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.skeletons = Skeletons(space)

    @abstractmethod
    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return name -> tensor for ``architecture``.

        Buffers come fresh, with the values the module is built with: statistics of batch norm belong to one
        subnetwork and are never shared.
        """

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def buffers_of(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return owned copies of the persistent buffers of a new build of ``architecture``."""
        module = self.skeletons.borrow(architecture, self.device)
        copies: dict[str, Tensor] = {}
        for prefix, layer in module.named_modules(remove_duplicate=False):
            for leaf, buffer in layer._buffers.items():
                if buffer is not None and leaf not in layer._non_persistent_buffers_set:
                    copies[f"{prefix}.{leaf}" if prefix else leaf] = buffer.clone()
        return copies


class SharedWeights(WeightSource):
    """Weight sharing: every tensor is a part of the same tensor of the largest build.

    Parts are views wherever the space's rules allow (prefixes, centre crops), so asking for an architecture copies
    nothing but batch-norm buffers, and gradients land in the selected part alone. ``largest`` is the user's own
    module, unchanged: ``source.largest.load_state_dict(...)`` starts from a trained checkpoint.

    Args:
        space: the space; every choice is checked to be coverable by the largest build.
        seed: seed of the initial weights. The global random state is left as it was.
        kernel_transform: learn a linear map from each kernel to the next smaller one (Once-for-All, section 3.2 of
            arXiv 1908.09791) instead of using the plain centre crop. Starts as the identity.
        zero_residual_gamma: start the last norm scale of every residual block at zero (BigNAS, arXiv 2003.11142),
            for spaces that name them in ``zero_init``.

    Raises:
        SlicingError: a tensor of some architecture has no well-defined place in the largest build.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, kernel_transform: bool = False, zero_residual_gamma: bool = False
    ) -> None:
        super().__init__(space)
        self.seed = seed
        self.kernel_transform = kernel_transform
        self.zero_residual_gamma = zero_residual_gamma
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.largest = space.build(space.largest())
        self.slicer = Slicer(self.largest, space.rules())
        self._plans: ThreadCache[Architecture, SlicePlan] = ThreadCache(maxsize=256)
        self._places = [
            (name, layer, leaf)
            for prefix, layer in self.largest.named_modules()
            for leaf, parameter in layer._parameters.items()
            if parameter is not None and (name := f"{prefix}.{leaf}" if prefix else leaf) in self.slicer.shapes
        ]
        plans = [self.plan(architecture) for architecture in space.probes()]
        self.kernels = KernelTransform(self.slicer.shapes, plans) if kernel_transform else None
        if zero_residual_gamma:
            self._zero(space.zero_init())

    def _zero(self, globs: Sequence[str]) -> None:
        with torch.no_grad():
            for name, parameter in self.largest.named_parameters():
                if any(fnmatchcase(name, glob) for glob in globs):
                    parameter.zero_()

    def plan(self, architecture: Architecture) -> SlicePlan:
        """Return where each tensor of ``architecture`` lies in the largest build."""
        return self._plans.get(
            architecture,
            lambda: self.slicer.plan(self.skeletons.borrow(architecture, self.device), architecture),
        )

    def stored(self) -> dict[str, Tensor]:
        """Return the parameters of the largest build by name, tied ones once."""
        return {name: layer._parameters[leaf] for name, layer, leaf in self._places}

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Cut ``architecture`` out of the largest build; see :class:`WeightSource`."""
        plan, stored = self.plan(architecture), self.stored()
        tensors = plan(stored) if self.kernels is None else self._transformed(plan, stored, self.kernels)
        return tensors | self.buffers_of(architecture)

    @staticmethod
    def _transformed(plan: SlicePlan, stored: dict[str, Tensor], kernels: KernelTransform) -> dict[str, Tensor]:
        done: dict[tuple[str, tuple[tuple[int, int, int, int], ...]], Tensor] = {}  # tied parts are cut once
        for part in plan:
            if (part.source, part.cuts) not in done:
                done[part.source, part.cuts] = kernels(part, stored[part.source])
        return {part.name: done[part.source, part.cuts] for part in plan}
