"""Weight sources: an architecture in, the tensors of its module out."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from search_spaces import (
    Architecture,
    Candidate,
    Coupling,
    Couplings,
    QuantizedSpace,
    RelaxedArchitecture,
    SearchSpace,
    SlicePlan,
    Slicer,
    SlicingError,
    TensorSlice,
    couplings,
)
from supernets.kernels import KernelTransform
from supernets.relaxation import Relaxation
from supernets.skeletons import Skeletons, ThreadCache, kept
from supernets.sorting import by_importance, reorder

__all__ = ["SharedWeights", "WeightSource"]


class WeightSource(nn.Module, ABC):
    """Gives the tensors of any architecture of a space, differentiably.

    The tensors fit ``space.build(architecture)``: exactly its ``state_dict`` keys, in its shapes. A source keeps no
    notion of a current architecture, so it may be called from many threads while its parameters are at rest.

    A source that wraps another one shares its ``skeletons``, so that each module is built once.

    Args:
        space: the space whose architectures are filled.
        skeletons: those of a wrapped source.

    Attributes:
        generated: whether a hypernetwork makes the tensors, so that scores must prove themselves before a search may
            rank by them (``nas.TrustGate``).
        sortable: whether :meth:`sort` works.
        quantizes: whether weights have the bits that a ``QuantizedSpace`` chooses.
        resizable: whether sizes between the candidates may be asked for, by :meth:`sized`.
    """

    generated: bool = False
    sortable: bool = False
    quantizes: ClassVar[bool] = False
    resizable: ClassVar[bool] = False

    def __init__(self, space: SearchSpace, *, skeletons: Skeletons | None = None) -> None:
        super().__init__()
        if isinstance(space, QuantizedSpace) and not self.quantizes:
            raise ValueError(
                f"{type(self).__name__} gives weights in full precision, and the space chooses bits for them; set "
                f"source to supernets.QuantizedWeights, with {type(self).__name__} as its own source"
            )
        self.space = space
        self.skeletons = Skeletons(space) if skeletons is None else skeletons
        self._relaxation: Relaxation | None = None

    @abstractmethod
    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return name -> tensor for ``architecture``.

        Statistics of norms come fresh, with the values that the module is built with: they belong to one subnetwork
        and are never shared.
        """

    def relaxed(self, architecture: RelaxedArchitecture) -> dict[str, Tensor]:
        """Return name -> tensor of ``space.superset()`` for a distribution over architectures, differentiable in it.

        Needed by differentiable search alone; a source without it is refused there.

        Raises:
            TypeError: the source cannot.
        """
        del architecture
        raise TypeError(f"{type(self).__name__} gives weights of single architectures only; use SharedWeights")

    def assign(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
        """Make ``tensors`` those of ``architecture``, in place, changing no weight that it does not use.

        Args:
            architecture: what is written.
            tensors: parameter -> values; parameters left out stay as they are, and names that are none are ignored.

        Raises:
            TypeError: the source cannot.
        """
        del architecture, tensors
        raise TypeError(f"{type(self).__name__} cannot be given weights of an architecture; use SharedWeights")

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self._anchor().device

    def _anchor(self) -> Tensor:
        """A tensor of the device and precision of the source."""
        return next(itertools.chain(self.parameters(), self.buffers()))

    @property
    def relaxation(self) -> Relaxation:
        """Masks and gates of the space, derived and verified on first use.

        Raises:
            RelaxationError: the space cannot be relaxed.
        """
        if self._relaxation is None:
            self._relaxation = kept(self.space, "_relaxations", 1).get(id(self.space), lambda: Relaxation(self.space))
        return self._relaxation

    @property
    def observed(self) -> bool:
        """Whether the source has seen what data it needs to begin with; by default it needs none."""
        return True

    def observe(self, batches: Sequence[tuple[Tensor, ...]]) -> Sequence[Tensor]:
        """Begin from inputs of the network; the supernet calls it before anything else while ``observed`` is false.

        Args:
            batches: positional inputs, of training data.

        Returns:
            The parameters that were set, to be averaged over ranks that have seen different data.
        """
        del batches
        return ()

    def sized(self, values: Mapping[str, Candidate]) -> Architecture:
        """Return the architecture of these values, which are candidates unless the source is ``resizable``.

        Raises:
            InvalidArchitectureError: a choice is unknown or missing, or cannot have its value.
        """
        return self.space.architecture(values)

    def couplings(self) -> Couplings:
        """Return the channels that :meth:`sort` puts in order, and those that it cannot."""
        return couplings(self.space)

    def sort(self, optimizer: torch.optim.Optimizer | None = None) -> Couplings:
        """Put the channels of the largest build in the order that smaller ones gain from; see :func:`sort_channels`.

        Raises:
            TypeError: the source cannot, and ``sortable`` is false.
        """
        del optimizer
        raise TypeError(f"channels of {type(self).__name__} cannot be sorted; use SharedWeights")

    def penalty(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Return the source's own term of the training loss for tensors it gave ``architecture``; default: none."""
        del architecture, tensors
        return None

    def provenance(self) -> Mapping[str, str]:
        """Return what trials say about the weights beside their version. Default: nothing."""
        return {}

    def diagnostics(self) -> Mapping[str, float]:
        """Return numbers that tell whether the source works as meant; logged at every validation. Default: none."""
        return {}

    def buffers_of(self, architecture: Architecture, shared: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return owned copies of the persistent buffers of a new build of ``architecture``.

        Args:
            architecture: the build.
            shared: buffers that take the place of built ones of equal name and shape, statistics of norms excepted.
        """
        first = self._anchor()
        module = self.skeletons.borrow(architecture, first.device)
        copies: dict[str, Tensor] = {}
        for prefix, layer in module.named_modules(remove_duplicate=False):
            if not layer._buffers:
                continue
            statistics = isinstance(layer, _NormBase)
            for leaf, buffer in layer._buffers.items():
                if buffer is None or leaf in layer._non_persistent_buffers_set:
                    continue
                name = f"{prefix}.{leaf}" if prefix else leaf
                if shared is not None and not statistics and name in shared and shared[name].shape == buffer.shape:
                    buffer = shared[name]
                cast = buffer.is_floating_point() and buffer.dtype != first.dtype and first.dtype != torch.float32
                copies[name] = buffer.to(first.dtype) if cast else buffer.clone()
        return copies


class SharedWeights(WeightSource):
    """Weight sharing: every tensor is a part of the same tensor of the largest build.

    Parts are views wherever the space's rules allow (prefixes, centre crops), so asking for an architecture copies
    nothing but buffers, and gradients land in the selected part alone. ``largest`` is the user's own module, unchanged
    (``space.superset()``): ``source.largest.load_state_dict(...)`` starts from a trained checkpoint. Buffers that are
    no statistics of norms are those of ``largest`` where the shapes agree, and those of the small build where they do
    not; the latter must then follow from the architecture alone.

    Args:
        space: the space; every choice is checked to be coverable by the largest build.
        seed: seed of the initial weights. The global random state is left as it was.
        kernel_transform: learn a linear map from each kernel to the next smaller one (Once-for-All, section 3.2 of
            arXiv 1908.09791) instead of using the plain centre crop. Starts as the identity.
        zero_residual_gamma: start the last norm scale of every residual block at zero (BigNAS, arXiv 2003.11142),
            for spaces that name them in ``zero_init``.

    Raises:
        SlicingError: a tensor of some architecture has no well-defined place in the largest build, or a buffer of it
            is random.
    """

    sortable = True

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, kernel_transform: bool = False, zero_residual_gamma: bool = False
    ) -> None:
        super().__init__(space)
        self.seed = seed
        self.kernel_transform = kernel_transform
        self.zero_residual_gamma = zero_residual_gamma
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.largest = space.superset()
            self.slicer = Slicer(self.largest, space.rules())
            self._plans: ThreadCache[Architecture, SlicePlan] = kept(space, "_plans", 256)
            self._places = [
                (name, layer, leaf)
                for prefix, layer in self.largest.named_modules()
                for leaf, parameter in layer._parameters.items()
                if parameter is not None and (name := f"{prefix}.{leaf}" if prefix else leaf) in self.slicer.shapes
            ]
            plans = [self.plan(architecture) for architecture in space.probes()]
            self._has_loose_buffers = any(True for _ in self._loose_buffers(self.largest))
            if self._has_loose_buffers:
                self._check_buffers()
        self.kernels = KernelTransform(self.slicer.shapes, plans) if kernel_transform else None
        if zero_residual_gamma:
            self._zero(space.zero_init())

    @staticmethod
    def _loose_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
        """Name, value and persistence of every buffer that is no statistic of a norm."""
        for prefix, layer in module.named_modules():
            if not isinstance(layer, _NormBase):
                for leaf, buffer in layer._buffers.items():
                    if buffer is not None:
                        name = f"{prefix}.{leaf}" if prefix else leaf
                        yield name, buffer, leaf not in layer._non_persistent_buffers_set

    def _check_buffers(self) -> None:
        """Refuse buffers that are neither shared nor a function of the architecture: no two builds would agree."""
        shared = {name: buffer.shape for name, buffer, persistent in self._loose_buffers(self.largest) if persistent}
        for architecture in self.space.probes():
            builds = []
            for seed in (1, 2):
                torch.manual_seed(seed)
                builds.append(dict(self._own_buffers(architecture, shared)))
            unequal = [name for name, buffer in builds[0].items() if not torch.equal(buffer, builds[1][name])]
            if unequal:
                raise SlicingError(
                    f"buffers {unequal} of {dict(architecture)} differ from build to build and cannot be shared with "
                    "the largest build; make them parameters with requires_grad=False, or persistent and of one shape"
                )

    def _own_buffers(
        self, architecture: Architecture, shared: Mapping[str, torch.Size]
    ) -> Iterator[tuple[str, Tensor]]:
        """Buffers that a subnetwork does not take from the largest build."""
        for name, buffer, persistent in self._loose_buffers(self.space.build(architecture)):
            if not (persistent and shared.get(name) == buffer.shape):
                yield name, buffer

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

    def release(self, names: Collection[str]) -> dict[str, Tensor]:
        """Take tensors out and return them, for a source that makes them by other means.

        ``stored`` leaves them out from now on, ``cut`` needs them given, and ``largest`` is no module to run any more.
        """
        released = {name: tensor for name, tensor in self.stored().items() if name in names}
        self._places = [place for place in self._places if place[0] not in released]
        self.register_buffer("_released", next(self.parameters()).new_empty(0), persistent=False)  # keeps the device
        gone = {id(tensor) for tensor in released.values()}
        for layer in self.largest.modules():
            for leaf, parameter in layer._parameters.items():
                if id(parameter) in gone:
                    layer._parameters[leaf] = None
        return released

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Cut ``architecture`` out of the largest build; see :class:`WeightSource`."""
        stored = self.stored()
        return self.cut(architecture, stored) | self.shared_buffers(architecture)

    def cut(self, architecture: Architecture, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut ``architecture`` out of ``stored``, tensors of the largest build by name; linear in them."""
        return self.plan(architecture)(stored, TensorSlice.__call__ if self.kernels is None else self.kernels)

    def relaxed(self, architecture: RelaxedArchitecture) -> dict[str, Tensor]:
        """Return the tensors of the largest build under soft masks; see :class:`WeightSource`.

        Raises:
            ValueError: kernels are transformed, and so not nested.
        """
        return self.soften(architecture, self.stored()) | self.relaxed_buffers()

    def soften(self, architecture: RelaxedArchitecture, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mask ``stored``, tensors of the largest build by name; linear in them. See :class:`Relaxation`.

        Raises:
            ValueError: kernels are transformed, and so not nested.
        """
        if self.kernels is not None:
            raise ValueError(
                "relaxed weights need kernels that are crops of one another, but kernel_transform maps each to the "
                "next; set kernel_transform: false"
            )
        return self.relaxation.soften(stored, architecture)

    def relaxed_buffers(self) -> dict[str, Tensor]:
        """Return owned copies of the persistent buffers of ``largest``, statistics of norms as built."""
        persistent = self.largest.state_dict(keep_vars=True).keys()
        return {name: buffer.clone() for name, buffer in self.largest.named_buffers() if name in persistent}

    def sort(self, optimizer: torch.optim.Optimizer | None = None) -> Couplings:
        """Put channels in falling order of :func:`importance`, in place."""
        return self.reorder(by_importance, optimizer)

    def reorder(
        self, order: Callable[[Mapping[str, Tensor], Coupling], Tensor], optimizer: torch.optim.Optimizer | None = None
    ) -> Couplings:
        """Permute the elastic channels of the largest build in place, without changing what it computes.

        Args:
            order: (tensors, coupled channels) -> permutation ``(size,)``.
            optimizer: of the parameters; what it remembers for each element moves along.

        Returns:
            What was permuted (``verified``) and what could not be (``left_out``).
        """
        stored = self.stored()
        return reorder(self.space, stored, dict(self.largest.named_buffers()), order, optimizer)

    @torch.no_grad()
    def assign(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
        """Write ``tensors`` into the part of the largest build that ``architecture`` uses; see :class:`WeightSource`.

        Raises:
            TypeError: a kernel of ``architecture`` is made by the kernel transform.
        """
        plan, stored = self.plan(architecture), self.stored()
        made = [part.name for part in plan if part.kernel and part.name in tensors and self.kernels is not None]
        if made:
            raise TypeError(
                f"kernels {made[:6]} are made by kernel_transform and cannot be given; use an architecture of the "
                "largest kernels, or kernel_transform=False"
            )
        for part in plan:
            if part.name in tensors:
                whole = stored[part.source]
                places = part(torch.arange(whole.numel(), device=whole.device).view_as(whole))
                whole.view(-1)[places] = tensors[part.name].to(whole)

    def shared_buffers(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the persistent buffers of ``architecture``, those of ``largest`` where they are shared."""
        shared = dict(self.largest.named_buffers()) if self._has_loose_buffers else None
        return self.buffers_of(architecture, shared)
