"""The tensors of any build of a space as resampled tensors of the largest one."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hypernets import interpolation, resample
from search_spaces import Architecture, Choice, InvalidArchitectureError, RelaxedArchitecture, SearchSpace, TensorSlice
from search_spaces import couplings as find_couplings
from supernets.skeletons import ThreadCache
from supernets.weights import SharedWeights

__all__ = ["ResampledPart", "Resampling", "between", "within"]


@dataclass(frozen=True)
class ResampledPart:
    """One tensor of a small build, made of one tensor of the largest build.

    Attributes:
        name: tensor of the small build.
        source: tensor of the largest build.
        shape: after resampling.
        matrices: ``(dimension, matrix)`` of every dimension that is resampled.
        axes: what these are of.
        cut: what is cut out of the result, as under weight sharing.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    matrices: tuple[tuple[int, Tensor], ...]
    axes: tuple["Axis", ...]
    cut: TensorSlice

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for tensors that are tied."""
        return self.source, self.shape, self.cut.cuts

    def __call__(self, tensor: Tensor, jitter: "Jitter | None" = None) -> Tensor:
        """Resample a tensor of the largest build, at jittered positions if so asked; nothing is cut yet."""
        for (dim, matrix), axis in zip(self.matrices, self.axes, strict=True):
            tensor = resample(tensor, dim, matrix if jitter is None else jitter(axis, *matrix.shape))
        return tensor


@dataclass(frozen=True)
class Axis:
    """One dimension that is resampled.

    Attributes:
        channels: number of the class of coupled channels that stand along it.
        blocks: that it packs.
        reads: whether a layer sums over it.
    """

    channels: int
    blocks: int
    reads: bool


class Jitter:
    """Noise of positions for one set of weights: channels that are coupled move together, within their cells.

    Args:
        noise: greatest distance between two draws, in cells.
        generator: draws it.
    """

    def __init__(self, noise: float, generator: torch.Generator) -> None:
        self.noise = noise
        self.generator = generator
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def __call__(self, axis: Axis, size: int, full: int) -> Tensor:
        """Return the matrix that reads an axis at jittered positions."""
        key = axis.channels, size // axis.blocks
        if key not in self._drawn:
            self._drawn[key] = self.noise * (torch.rand(key[1], generator=self.generator) - 0.5)
        return interpolation(size, full, reads=axis.reads, blocks=axis.blocks, jitter=self._drawn[key])


class Resampling:
    """Finds, for any architecture, which dimensions of which tensors are resampled and which are cut.

    Channels that may stand in any order are resampled, in the blocks they are packed in. Everything else is cut as
    under weight sharing: kernels at their centre, and channels that have no order of their own, such as heads.

    Args:
        shared: the largest build.
        extrapolate: allow sizes outside the range of the candidates.
    """

    def __init__(self, shared: SharedWeights, *, extrapolate: bool) -> None:
        self.shared = shared
        self.extrapolate = extrapolate
        self._axes: dict[tuple[str, int], Axis] | None = None
        self._parts: ThreadCache[Architecture, tuple[ResampledPart, ...]] = ThreadCache(maxsize=256)

    @property
    def axes(self) -> Mapping[tuple[str, int], Axis]:
        """(tensor, dimension) -> what is resampled along it."""
        if self._axes is None:
            stored = self.shared.stored()
            self._axes = {
                (site.tensor, site.dim): Axis(number, site.blocks, site.role == "reads")
                for number, coupling in enumerate(find_couplings(self.shared.space).verified)
                for site in coupling.sites
                if site.tensor in stored
            }
        return self._axes

    def __call__(self, architecture: Architecture) -> tuple[ResampledPart, ...]:
        """Return the parts of ``architecture``, which need not be made of candidates.

        Raises:
            InvalidArchitectureError: a value is outside the range of its choice, and ``extrapolate`` is off.
            ValueError: a tensor would be larger than what can be resampled.
        """
        return self._parts.get(architecture, lambda: self._derive(architecture))

    def _derive(self, architecture: Architecture) -> tuple[ResampledPart, ...]:
        space = self.shared.space
        within(space, architecture, extrapolate=self.extrapolate)
        module = self.shared.skeletons.borrow(architecture, self.shared.device)
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters(remove_duplicate=False)}
        plan = self.shared.plan(_clamped(space, architecture) if self.extrapolate else architecture)
        lost = shapes.keys() ^ {part.name for part in plan}
        if lost:
            raise ValueError(f"tensors {sorted(lost)[:6]} of {dict(architecture)} are not in the largest build")
        parts = tuple(self._part(part, shapes[part.name]) for part in plan)
        if len({part.source for part in parts}) < len({(part.source, part.shape) for part in parts}):
            raise ValueError(
                f"{dict(architecture)} reads one tensor of the largest build at two sizes; give each its own"
            )
        return parts

    def _part(self, part: TensorSlice, wanted: tuple[int, ...]) -> ResampledPart:
        full = self.shared.slicer.shapes[part.source]
        shape = list(full)
        matrices, axes = [], []
        for dim, (size, channels) in enumerate(zip(wanted, full, strict=True)):
            if size == channels:
                continue
            if (part.source, dim) in self.axes:
                axes.append(axis := self.axes[part.source, dim])
                matrices.append((dim, interpolation(size, channels, reads=axis.reads, blocks=axis.blocks)))
                shape[dim] = size
            elif size > channels or all(cut[0] != dim or cut[2] * cut[3] != size for cut in part.cuts):
                raise ValueError(
                    f"tensor {part.name!r} would be {wanted}, but is {full} in the largest build, and its dimension "
                    f"{dim} cannot be resampled; stay within the candidates of the choice that decides it"
                )
        left = tuple(cut for cut in part.cuts if (part.source, cut[0]) not in self.axes)
        return ResampledPart(
            part.name,
            part.source,
            tuple(shape),
            tuple(matrices),
            tuple(axes),
            TensorSlice(part.name, part.source, wanted, left, part.kernel),
        )


def within(space: SearchSpace, values: Mapping[str, object], *, extrapolate: bool) -> None:
    """Check values that may lie between the candidates of ordinal choices.

    Raises:
        InvalidArchitectureError: a choice is unknown, or a value is not one that the choice can have.
    """
    for name, value in values.items():
        choice = space.choice(name)
        if value in choice.candidates:
            continue
        whole = all(isinstance(candidate, int) for candidate in choice.candidates)
        kind = int if whole else int | float
        if choice.kind == "categorical" or not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
            raise InvalidArchitectureError(
                f"architecture[{name!r}] must be {'a whole number' if whole else 'a number'} or one of "
                f"{choice.candidates}, got {value!r}"
                if choice.kind == "ordinal"
                else f"architecture[{name!r}] must be one of {choice.candidates}, got {value!r}"
            )
        low, high = _ends(choice)
        if not extrapolate and not low <= value <= high:
            raise InvalidArchitectureError(
                f"architecture[{name!r}] must lie in [{low:g}, {high:g}], the sizes that were trained, got {value}; "
                "set extrapolate: true to ask for others"
            )


def _ends(choice: Choice) -> tuple[float, float]:
    return float(choice.candidates[0]), float(choice.candidates[-1])


def _clamped(space: SearchSpace, architecture: Architecture) -> Architecture:
    """The architecture with sizes outside their ranges moved to the ends."""
    values = dict(architecture)
    for name, value in values.items():
        choice = space.choice(name)
        if choice.kind == "ordinal" and isinstance(value, int | float):
            low, high = choice.candidates[0], choice.candidates[-1]
            values[name] = low if value < low else high if value > high else value  # type: ignore[operator]
    return Architecture(values)


def between(space: SearchSpace, architecture: Architecture) -> RelaxedArchitecture:
    """Return the distribution over candidates whose mean is ``architecture``, so that ``space.encode`` can read it.

    A size between two candidates is a mixture of both; one outside the range is the nearest candidate.
    """
    weights = dict(space.relax(space.smallest()).items())
    for name, value in architecture.items():
        choice = space.choice(name)
        if value in choice.candidates:
            weights[name] = torch.nn.functional.one_hot(torch.tensor(choice.index(value)), choice.size).float()
            continue
        candidates = torch.tensor([float(candidate) for candidate in choice.candidates])
        place = torch.tensor(float(value)).clamp(candidates[0], candidates[-1])
        above = int(torch.searchsorted(candidates, place).clamp(1, max(len(candidates) - 1, 1)))
        share = (place - candidates[above - 1]) / (candidates[above] - candidates[above - 1])
        mixed = torch.zeros(choice.size)
        mixed[above - 1], mixed[above] = 1 - share, share
        weights[name] = mixed
    return RelaxedArchitecture(weights)
