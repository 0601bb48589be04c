"""Growing trained networks into a wider one."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves, tree_map

from search_spaces import Architecture, SearchSpace
from supernets.mixed_growth import Block, MixedNetwork
from supernets.places import Geometry, GrowthError, measure
from supernets.supernet import Supernet
from supernets.templates import Bank, TemplateWeights

__all__ = ["Ensemble", "Member", "grow", "grow_mixed", "member_of"]

MODES = ("zero", "orthogonal", "random")
Mode = Literal["zero", "orthogonal", "random"]

_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Member:
    """A trained network that a wider one grows from.

    Attributes:
        architecture: what it is, in the space of the wider network.
        module: ``space.build(architecture)`` with trained tensors, batch norm calibrated.
        mixtures: what its tensors are mixed from, for ``mode="orthogonal"``; see :meth:`TemplateWeights.mixtures`.
    """

    architecture: Architecture
    module: nn.Module
    mixtures: Mapping[str, Bank] = field(default_factory=dict)


def member_of(supernet: Supernet, architecture: Architecture, batches: Iterable[Any]) -> Member:
    """Return a subnetwork of a trained supernet, calibrated on task batches, as a member."""
    module = supernet.calibrated(supernet.extract(architecture), batches)
    source = supernet.source
    with torch.no_grad():
        mixtures = source.mixtures(architecture) if isinstance(source, TemplateWeights) else {}
    return Member(architecture, module, mixtures)


class Ensemble(nn.Module):
    """The mean of the outputs of some networks."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> Any:
        """Return the mean over the members."""
        outputs = [member(*inputs) for member in self.members]
        return tree_map(lambda *parts: sum(parts) / len(parts), *outputs)


def grow(
    space: SearchSpace, members: Sequence[Member], to: Architecture, *, mode: Mode = "zero", seed: int = 0
) -> nn.Module:
    """Return a network of architecture ``to`` that starts from narrower trained ones (MixtureGrowth, arXiv 2311.04251).

    The first member takes the place that its architecture has in ``to`` under weight sharing, and the second one, or
    freshly initialised features, the rest of every width: with ``A`` and ``B`` a weight of the two,

    ``W = [[A, X], [Y, B]]``; ``[A; B]`` where only outputs grow; ``[A / 2, B / 2]`` where only inputs do (the
    classifier), so that the network starts as the mean of its members; norm statistics are put side by side.

    - ``"zero"``: ``X = Y = 0``. Exactly function-preserving: the grown network computes the mean of its members, or
      the same as its only member, whose classifier does not read the new features yet. This is verified, and refused
      where it does not hold.
    - ``"orthogonal"``: ``X = sum_t c_t T_t`` of the templates of the member beside it, with coefficients of length one
      orthogonal to those in use, and ``Y`` likewise; see :func:`new_direction`. For members trained with
      ``TemplateWeights(share="layer")``.
    - ``"random"``: ``X`` and ``Y`` normal with the standard deviation of ``A``.

    Calibrate batch norm before using what ``"orthogonal"`` and ``"random"`` return.

    Differs from the paper: the outputs of two members are averaged, not summed; the result has plain weights.

    Args:
        space: of all architectures.
        members: one, or two whose widths add up to those of ``to``.
        to: the wider architecture.
        mode: how the new parts start.
        seed: of new features and of ``"random"``. The global random state is left as it was.

    Raises:
        GrowthError: widths do not add up, something else than widths differs, there are no templates, or ``"zero"``
            would not preserve the function.
    """
    return _grown(space, members, to, mode, seed)[0]


def grow_mixed(
    space: SearchSpace,
    members: Sequence[Member],
    to: Architecture,
    *,
    mode: Literal["orthogonal", "random"] = "orthogonal",
    seed: int = 0,
) -> MixedNetwork:
    """Return what :func:`grow` does, its matrices still mixed from the members' templates.

    To be trained on in this form, as the paper does, and then made plain by :meth:`MixedNetwork.plain`. New parts are
    mixtures too in mode ``"orthogonal"`` and free in mode ``"random"``.

    Args:
        space: of all architectures.
        members: one, or two whose widths add up to those of ``to``, trained with ``TemplateWeights(share="layer")``.
        to: the wider architecture.
        mode: how new parts start.
        seed: of new features without templates, and of ``"random"``.

    Raises:
        GrowthError: as :func:`grow`.
    """
    if mode not in ("orthogonal", "random"):
        raise GrowthError(f"mode must be 'orthogonal' or 'random' for a network that stays mixed, got {mode!r}")
    grown, blocks = _grown(space, members, to, mode, seed)
    if not blocks:
        raise GrowthError(
            "a network stays mixed where its members are: train them with TemplateWeights(share='layer'), or use grow"
        )
    return MixedNetwork(grown, blocks)


def _grown(
    space: SearchSpace, members: Sequence[Member], to: Architecture, mode: Mode, seed: int
) -> tuple[nn.Module, Mapping[str, Sequence[Block]]]:
    """The grown network, and parameter -> blocks of those that are mixed from templates."""
    if mode not in MODES:
        raise GrowthError(f"mode must be one of {MODES}, got {mode!r}")
    if len(members) not in (1, 2):
        raise GrowthError(f"growth starts from one or two trained networks, got {len(members)}")
    kind = next(members[0].module.parameters()).dtype
    doubled = [replace(member, module=copy.deepcopy(member.module).double()) for member in members]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = space.build(to).double()
        generator = torch.Generator().manual_seed(seed)
        growing = _Growing(space, doubled, to, mode, generator)
        growing(grown)
    if mode == "zero":
        _verify(space, doubled, to, grown, generator)
    return grown.to(kind).eval(), growing.blocks


def new_direction(coefficients: Tensor) -> Tensor:
    """Return the direction ``(T,)`` of length one in which the rows of ``coefficients`` ``(K, T)`` extend least.

    The right singular vector of the smallest singular value (MixtureGrowth, Sec. 3.2): orthogonal to all rows where
    ``K < T``, else the least used direction. Its largest entry is positive.
    """
    direction: Tensor = torch.linalg.svd(coefficients, full_matrices=True).Vh[-1]
    return direction * direction[direction.abs().argmax()].sign()


class _Growing:
    """One growth: fills the tensors of the wider network."""

    def __init__(
        self, space: SearchSpace, members: Sequence[Member], to: Architecture, mode: Mode, generator: torch.Generator
    ) -> None:
        self.members = members
        self.mode = mode
        self.generator = generator
        self.geometries = measure(space, [member.architecture for member in members], to)
        self.blocks: dict[str, list[Block]] = {}

    @torch.no_grad()
    def __call__(self, grown: nn.Module) -> None:
        """Fill ``grown``, a new build of the wider architecture."""
        states = [dict(member.module.named_parameters(remove_duplicate=False)) for member in self.members]
        parameters = dict(grown.named_parameters(remove_duplicate=False))
        joined = {
            name.rpartition(".")[0]
            for name, geometry in self.geometries.items()
            if _joins(grown.get_submodule(name.rpartition(".")[0]), geometry, parameters[name].ndim)
        }
        self._check_shapes(states)
        clashes = []
        for name, geometry in self.geometries.items():
            tensor = parameters[name]
            given = [state[own].to(tensor) for state, own in zip(states, geometry.names, strict=True)]
            owner = name.rpartition(".")[0]
            if geometry.growing:
                self._fill(name, tensor, geometry, given, joined=owner in joined)
                continue
            value = given[0]
            if len(given) == 2 and not torch.equal(*given):
                if owner not in joined:
                    clashes.append(name)
                value = (given[0] + given[1]) / 2
            tensor.zero_()[geometry.block({})] = value
        if clashes:
            raise GrowthError(
                f"two trained networks need their own {clashes[:6]}, but there is room for one: these tensors do not "
                "grow, and everything between input and output must; choose architectures in which all widths "
                "grow, or grow one network"
            )
        self._buffers(grown)

    def _check_shapes(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Refuse a trained network that is not what the space builds for its architecture."""
        for geometry in self.geometries.values():
            for number, (state, name) in enumerate(zip(states, geometry.names, strict=True)):
                side = geometry.places[number]
                wanted, given = tuple(map(len, side)), state.get(name)
                if given is None or tuple(given.shape) != wanted:
                    raise GrowthError(
                        f"the space to grow into builds {name} of shape {wanted} for "
                        f"{dict(self.members[number].architecture)}, but the trained network has "
                        f"{None if given is None else tuple(given.shape)}; grow into a space of the same kind, which "
                        "differs in widths alone"
                    )

    def _fill(self, name: str, tensor: Tensor, geometry: Geometry, given: Sequence[Tensor], *, joined: bool) -> None:
        old, new = geometry.block({}), geometry.block(dict.fromkeys(range(tensor.ndim), 1))
        value = torch.zeros_like(tensor)
        mixed = self.mode != "zero" and (len(geometry.growing) > 1 or (joined and len(given) == 1))
        if mixed:
            self._mix(name, value, geometry, given)
        share = 0.5 if joined and len(given) == 2 else 1.0
        if self.mode != "zero" and (mixed or len(given) == 2):
            self._keep(name, geometry, share)
        value[old] = given[0] * share
        if len(given) == 2:
            value[new] = given[1] * share
        elif not mixed and not joined:
            value[new] = tensor[new]
        tensor.copy_(value)

    def _keep(self, name: str, geometry: Geometry, share: float) -> None:
        """Note how the trained parts are mixed, where all of them are."""
        banks = [member.mixtures.get(own) for member, own in zip(self.members, geometry.names, strict=True)]
        sides: tuple[dict[int, int], ...] = ({}, dict.fromkeys(geometry.growing, 1))
        for number, (bank, side) in enumerate(zip(banks, sides, strict=False)):
            if bank is None:
                self.blocks.pop(name, None)
                return
            self.blocks.setdefault(name, []).append(
                Block(geometry.block(side), number, bank.coefficients, bank.templates, share)
            )

    def _mix(self, name: str, value: Tensor, geometry: Geometry, given: Sequence[Tensor]) -> None:
        """Set the blocks of ``value`` that belong to no member."""
        blocks = list(geometry.off_diagonal())
        if len(given) == 1:
            blocks.append(dict.fromkeys(geometry.growing, 1))
        if self.mode == "random":
            for sides in blocks:
                noise = torch.randn(value[geometry.block(sides)].shape, generator=self.generator)
                value[geometry.block(sides)] = noise.to(value) * given[0].std()
            return
        banks = self._banks(geometry)
        used = torch.stack([bank.coefficients.cpu() for bank in banks])
        for sides in blocks:
            number = sides[geometry.growing[0]] % len(banks)
            bank, direction = banks[number], new_direction(used)
            used = torch.cat([used, direction[None]])
            self.blocks.setdefault(name, []).append(
                Block(geometry.block(sides), number, direction.to(bank.coefficients), bank.templates)
            )
            value[geometry.block(sides)] = self._cropped(
                torch.tensordot(direction.to(bank.templates), bank.templates, 1), geometry, sides
            ).to(value)

    def _banks(self, geometry: Geometry) -> list[Bank]:
        banks = [member.mixtures.get(name) for member, name in zip(self.members, geometry.names, strict=True)]
        if any(bank is None for bank in banks) or len({len(bank.coefficients) for bank in banks if bank}) > 1:
            raise GrowthError(
                f"mode 'orthogonal' mixes the new parts of {geometry.names[0]} from templates of the trained networks, "
                "equally many in each; train them with TemplateWeights(share='layer'), or use mode 'zero'"
            )
        return [bank for bank in banks if bank is not None]

    def _cropped(self, mixed: Tensor, geometry: Geometry, sides: Mapping[int, int]) -> Tensor:
        """The first rows and columns of a mixed tensor, as many as the block has."""
        for dim, size in enumerate(len(geometry.places[sides.get(dim, 0)][dim]) for dim in range(mixed.ndim)):
            if size > mixed.shape[dim]:
                raise GrowthError(
                    f"mode 'orthogonal' makes new parts of {geometry.names[0]} from templates of {tuple(mixed.shape)}, "
                    f"too small for {size} in dimension {dim}; grow to at most twice the width, or use mode 'zero'"
                )
            mixed = mixed.narrow(dim, 0, size)
        return mixed

    def _buffers(self, grown: nn.Module) -> None:
        """Put norm statistics side by side; other buffers are those of the first member where the shapes agree."""
        modules = [dict(member.module.named_modules()) for member in self.members]
        for prefix, layer in grown.named_modules():
            owners = [found[prefix] for found in modules if prefix in found]
            for leaf, buffer in layer._buffers.items():
                given = [owner._buffers.get(leaf) for owner in owners]
                values = [value.to(buffer) for value in given if value is not None and buffer is not None]
                if buffer is None or not values:
                    continue
                if values[0].shape == buffer.shape:
                    buffer.copy_(values[0])
                elif isinstance(layer, _NormBase):
                    first, second = self._features(prefix, len(buffer), len(values[0]))
                    buffer[first] = values[0]
                    if len(values) == 2:
                        buffer[second] = values[1]

    def _features(self, norm: str, size: int, old: int) -> tuple[Tensor, Tensor]:
        """Where the old and the new features of a norm lie; in this order where it has no scale to tell."""
        geometry = self.geometries.get(f"{norm}.weight" if norm else "weight")
        if geometry is not None:
            return geometry.places[0][0], geometry.places[1][0]
        return torch.arange(old), torch.arange(old, size)


def _joins(layer: nn.Module, geometry: Geometry, ndim: int) -> bool:
    """Whether a weight reads grown features but does not make more of them: a sum over old and new."""
    if ndim < 2 or not geometry.growing:
        return False
    if not isinstance(layer, nn.Linear | _ConvNd | nn.RNNBase | nn.RNNCellBase):
        return False
    return (1 if isinstance(layer, _ConvTransposeNd) else 0) not in geometry.growing


def _verify(
    space: SearchSpace, members: Sequence[Member], to: Architecture, grown: nn.Module, generator: torch.Generator
) -> None:
    """Run all networks, which are in float64, on random inputs and refuse a growth that changes the function."""

    def random(like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.randint(0, 2, like.shape, generator=generator).to(like.dtype)
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    inputs = [random(value) for value in space.inputs(to, 16)]
    with torch.no_grad():
        before = Ensemble([member.module for member in members]).eval()(*inputs)
        after = grown.eval()(*inputs)
    pairs = list(zip(tree_leaves(before), tree_leaves(after), strict=True))
    gap = max(float((a - b).abs().max()) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point())
    scale = max(float(a.abs().max()) for a, _ in pairs if isinstance(a, Tensor))
    if gap <= 1e-9 * max(1.0, scale):
        return
    mixing = [name for name, layer in grown.named_modules() if isinstance(layer, _MIXING)]
    reason = (
        f"{mixing[:6]} normalise over old and new features together"
        if mixing
        else "some layer mixes old and new features, or something else than a width differs"
    )
    raise GrowthError(
        f"growth from {[dict(member.architecture) for member in members]} to {dict(to)} by mode 'zero' would change "
        f"what the network computes (by {gap:.2g}): {reason}; use mode 'orthogonal' or 'random', or grow other choices"
    )
