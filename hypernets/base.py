"""The base of all hypernetworks: a condition in, named tensors out."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from hypernets.card import HyperCard
from hypernets.fields import Field
from hypernets.parametrization import ConditionEncoder, Parametrization, Residual
from hypernets.target import Target, TensorSpec

__all__ = ["Condition", "HyperNetwork", "Shapes"]

Condition = Mapping[str, Any]
Shapes = Target | Mapping[str, Sequence[int]]


class HyperNetwork(nn.Module, ABC):
    """Generates the tensors of a target from a condition: ``theta = theta0 + g(E(condition))``.

    Subclasses write ``g`` alone, as :meth:`emit`; checking, encoding, the residual ``theta0``, dtypes and streaming are
    the same for all. Generation never touches the module that the tensors are for; hand them to :func:`apply` or
    :func:`apply_many`. A subclass keeps its constructor arguments as attributes of the same names, and calls
    :meth:`finish` at the end of its constructor.

    Args:
        target: what is generated.
        conditions: name -> field.
        parametrization: how conditions enter and what is added; the default is magnitude-invariant.
    """

    def __init__(
        self, target: Target, conditions: Mapping[str, Field], *, parametrization: Parametrization | None = None
    ) -> None:
        super().__init__()
        self.target = target
        self.parametrization = Parametrization() if parametrization is None else parametrization
        self.encoder = ConditionEncoder(conditions, self.parametrization.encoding)
        self.residual = Residual(target, self.parametrization.residual)

    @property
    def conditions(self) -> dict[str, Field]:
        """Name -> field."""
        return self.encoder.fields

    @property
    @abstractmethod
    def card(self) -> HyperCard:
        """The five criteria of this generator."""

    @abstractmethod
    def emit(
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Return the deltas ``g`` of some tensors.

        Args:
            code: encoded conditions ``(K, encoder.width)``.
            specs: which tensors.
            generator: source of randomness of generators that have any.

        Returns:
            name -> ``(K, *shape)``.
        """

    def settings(self) -> dict[str, Any]:
        """Return the constructor arguments beside target, conditions and parametrization, as JSON."""
        common = ("target", "conditions", "parametrization")
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters if name not in common}

    @classmethod
    def build(
        cls,
        target: Target,
        conditions: Mapping[str, Field],
        parametrization: Parametrization,
        settings: Mapping[str, Any],
        *,
        parts: Sequence[type] = (),
    ) -> Self:
        """Construct what wrote ``settings``; ``parts`` are classes that these may name beside the built-in ones."""
        del parts
        return cls(target, conditions, parametrization=parametrization, **settings)

    def emit_groups(
        self, code: Tensor, groups: Sequence[Sequence[TensorSpec]], *, generator: torch.Generator | None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the deltas of one group of tensors after another; generators with a state override it."""
        for specs in groups:
            yield self.emit(code, specs, generator=generator)

    @abstractmethod
    def rescale(self, name: str, factor: float) -> None:
        """Multiply all deltas of one tensor by a factor, once, in the weights of the head."""

    def finish(self) -> None:
        """Apply the head initialisation that is the same for all generators.

        Raises:
            ValueError: ``hyperfan`` needs random conditions, and a field has none.
        """
        if self.parametrization.head_init == "zero":
            for spec in self.target:
                self.rescale(spec.name, 0.0)
        if self.parametrization.head_init == "hyperfan":
            self._hyperfan()

    @torch.no_grad()
    def _hyperfan(self, count: int = 64) -> None:
        """Scale deltas over random conditions to the deviations of an ordinary network (Chang et al., ICLR 2020)."""
        generator = torch.Generator().manual_seed(0)
        deltas = self.deltas(self.draw(count, generator=generator))
        for spec in self.target:
            measured = deltas[spec.name].float().square().mean().sqrt().item() if spec.numel else 0.0
            if measured > 0:
                self.rescale(spec.name, spec.deviation / measured)

    def forward(self, condition: Condition) -> dict[str, Tensor]:
        """Return :meth:`generate` of the whole target."""
        return self.generate(condition)

    def generate(
        self, condition: Condition, shapes: Shapes | None = None, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Generate K weight sets, differentiably in the parameters and in the condition.

        Args:
            condition: field name -> values ``(K, *shape)``; numbers and K = 1 stand for all sets.
            shapes: tensors to generate, by default the whole target. A part of it is allowed; other sizes only where
                ``card.output_variability`` is ``dynamic``.
            generator: makes stochastic generators repeatable; the others ignore it.

        Returns:
            name -> tensor ``(K, *shape)`` in the dtype of the target. K is always there.

        Raises:
            ValueError: the condition or a shape is wrong; names which.
        """
        specs = self.specs(shapes)
        deltas = self.emit(self._code(condition), specs, generator=generator)
        return {spec.name: self._whole(spec, deltas[spec.name]) for spec in specs}

    def deltas(
        self, condition: Condition, shapes: Shapes | None = None, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return :meth:`generate` without the residual: the part that the condition decides."""
        return self.emit(self._code(condition), self.specs(shapes), generator=generator)

    def stream(
        self,
        condition: Condition,
        shapes: Shapes | None = None,
        *,
        max_bytes: int = 1 << 24,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors one by one, without gradients, for targets that do not fit into memory at once.

        Args:
            condition: as in :meth:`generate`.
            shapes: as in :meth:`generate`.
            max_bytes: tensors are generated in groups of at most so many bytes; a larger tensor is a group of its own.
            generator: as in :meth:`generate`.

        Yields:
            name, tensor ``(K, *shape)``.

        Raises:
            ValueError: as in :meth:`generate`, before anything is generated.
        """
        specs = self.specs(shapes)
        with torch.no_grad():
            code = self._code(condition)
        groups = list(_groups(specs, max_bytes, len(code)))
        return self._stream(code, groups, generator)

    def _stream(
        self, code: Tensor, groups: Sequence[Sequence[TensorSpec]], generator: torch.Generator | None
    ) -> Iterator[tuple[str, Tensor]]:
        parts = self.emit_groups(code, groups, generator=generator)
        for specs in groups:
            with torch.no_grad():  # not held across a yield, where it would reach into the caller
                deltas = next(parts)
                ready = [(spec.name, self._whole(spec, deltas.pop(spec.name))) for spec in specs]
            while ready:
                yield ready.pop(0)

    def specs(self, shapes: Shapes | None) -> tuple[TensorSpec, ...]:
        """Return the tensors asked for, in the order of the target; generators of any size override it.

        Raises:
            ValueError: a name is unknown or a shape is not that of the target.
        """
        if shapes is None:
            return self.target.tensors
        asked = {self.target.canonical(n): tuple(s) for n, s in _shapes(shapes).items()}
        known = self.target.shapes
        unknown = [name for name in asked if name not in known]
        wrong = [
            f"{name} is {shape} instead of {known[name]}"
            for name, shape in asked.items()
            if name in known and shape != known[name]
        ]
        if unknown or wrong:
            raise ValueError(
                f"{type(self).__name__} generates the tensors of its target alone: {unknown=}, {wrong=}; its target "
                f"has {list(known)}"
            )
        return tuple(spec for spec in self.target if spec.name in asked)

    def draw(self, count: int, *, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``count`` random conditions: uniform over every range, normal for noise.

        Raises:
            ValueError: a field has no random values.
        """
        return {name: field.draw(count, generator) for name, field in self.conditions.items()}

    def start_from(self, source: nn.Module | Mapping[str, Tensor]) -> None:
        """Let the residual start from given weights, such as those of a trained module.

        Args:
            source: a module, or name -> tensor, with all tensors of the target.

        Raises:
            ValueError: tensors are missing or mis-shaped, or there is no residual.
        """
        if self.parametrization.residual == "none":
            raise ValueError("start_from needs a residual; build with Parametrization(residual='learned')")
        given = dict(source.named_parameters(remove_duplicate=False) if isinstance(source, nn.Module) else source)
        tensors = {name: given[name] for name in self.target.names if name in given}
        self.target.check(tensors)
        self.residual.start_from(tensors)

    def add_task(self, field: str = "task") -> int:
        """Add one category to a :class:`Categorical` field and return its number.

        The other categories keep their vectors, in a new parameter: make the optimiser after this call.

        Raises:
            ValueError: there is no such field.
        """
        return self.encoder.grow(field)

    def _code(self, condition: Condition) -> Tensor:
        like = next(p for p in self.parameters() if p.is_floating_point())
        code: Tensor = self.encoder(self.encoder.read(condition, like=like))
        return code

    def base(self, spec: TensorSpec) -> Tensor | None:
        """Return the residual of one tensor, or ``None`` where there is none; generators of any size override it."""
        found: Tensor | None = self.residual(spec.name)
        return found

    def _whole(self, spec: TensorSpec, delta: Tensor) -> Tensor:
        base = self.base(spec)
        return (delta if base is None else base + delta).to(spec.torch_dtype)


def _shapes(shapes: Shapes) -> Mapping[str, Sequence[int]]:
    return shapes.shapes if isinstance(shapes, Target) else shapes


def _groups(specs: Sequence[TensorSpec], max_bytes: int, sets: int) -> Iterator[list[TensorSpec]]:
    """Consecutive tensors that together take at most ``max_bytes``."""
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be >= 1, got {max_bytes}")
    group: list[TensorSpec] = []
    total = 0
    for spec in specs:
        size = spec.numel * spec.torch_dtype.itemsize * sets
        if group and total + size > max_bytes:
            yield group
            group, total = [], 0
        group.append(spec)
        total += size
    if group:
        yield group
