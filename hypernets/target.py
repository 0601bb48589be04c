"""What is generated: names, shapes, roles and dtypes of the tensors of a module."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

__all__ = ["Role", "Target", "TensorSpec"]

Role = Literal["weight", "bias", "norm_weight", "norm_bias", "embedding"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@final
@dataclass(frozen=True)
class TensorSpec:
    """One tensor to generate.

    Attributes:
        name: as in ``module.named_parameters()``.
        shape: its shape.
        role: decides how it starts: weights and embeddings at random, biases at zero, scales of norms at one.
        fan_in: values that one output sums over; sets the scale of a random start.
        dtype: of the generated tensor, e.g. ``float32``.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    fan_in: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"role of {self.name} must be one of {get_args(Role)}, got {self.role!r}")
        if any(size < 0 for size in self.shape) or self.fan_in < 1:
            raise ValueError(
                f"{self.name}: sizes must be >= 0 and fan_in >= 1, got shape {self.shape}, fan_in {self.fan_in}"
            )
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype) or not self.torch_dtype.is_floating_point:
            raise ValueError(f"dtype of {self.name} must name a floating-point dtype of torch, got {self.dtype!r}")

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def deviation(self) -> float:
        """Standard deviation of an ordinary random start: Kaiming for weights, 1 for embeddings, 0 for the rest."""
        if self.role == "weight":
            return math.sqrt(2 / self.fan_in)
        return 1.0 if self.role == "embedding" else 0.0

    def initial(self) -> Tensor:
        """Return an ordinary start in float32, drawn from torch's global generator: see ``role``."""
        if self.role == "norm_weight":
            return torch.ones(self.shape)
        return torch.randn(self.shape) * self.deviation if self.deviation else torch.zeros(self.shape)


@final
@dataclass(frozen=True)
class Target:
    """The tensors that a hypernetwork generates for one module.

    >>> target = Target.of(nn.Linear(3, 2))
    >>> target.shapes
    {'weight': (2, 3), 'bias': (2,)}
    >>> target.numel
    8

    Attributes:
        tensors: in the order of the module; a tied tensor is listed once, under its first name.
        ties: further names of tied tensors, each with the name it is listed under.
    """

    tensors: tuple[TensorSpec, ...]
    ties: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.tensors]
        if not names:
            raise ValueError("a target needs at least one tensor; check the include and exclude patterns")
        if len(set(names)) < len(names):
            raise ValueError(f"names of a target must differ, got {names}")

    @classmethod
    def of(cls, module: nn.Module, *, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> "Target":
        """Return the target made of a module's floating-point parameters; it may lie on the meta device.

        Buffers are no part of it: statistics belong to whoever applies the tensors.

        Args:
            module: any module, which is not changed or kept.
            include: globs of names that are generated; the rest stays with the module.
            exclude: globs of names that are not, whatever ``include`` says.

        Raises:
            ValueError: a pattern matches nothing, or nothing is left; or a lazy parameter has no shape yet.
        """
        owners = {
            f"{prefix}.{leaf}" if prefix else leaf: layer
            for prefix, layer in module.named_modules(remove_duplicate=False)
            for leaf in layer._parameters
        }
        groups: dict[int, list[str]] = {}
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for name, parameter in parameters.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(f"{name} is a lazy parameter without a shape; run the module on one input first")
            if parameter.is_floating_point():
                groups.setdefault(id(parameter), []).append(name)
        known = [name for names in groups.values() for name in names]
        idle = [glob for glob in (*include, *exclude) if not any(fnmatchcase(name, glob) for name in known)]
        if idle and known:
            raise ValueError(f"patterns must match a parameter, {idle} match none of {known}")

        def matched(names: Sequence[str], globs: Sequence[str]) -> bool:
            return any(fnmatchcase(name, glob) for name in names for glob in globs)

        kept = [names for names in groups.values() if matched(names, include) and not matched(names, exclude)]
        return cls(
            tuple(_spec(names[0], parameters[names[0]], owners[names[0]]) for names in kept),
            tuple((alias, names[0]) for names in kept for alias in names[1:]),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in order."""
        return tuple(spec.name for spec in self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {spec.name: spec.shape for spec in self.tensors}

    @property
    def numel(self) -> int:
        """Number of values of all tensors."""
        return sum(spec.numel for spec in self.tensors)

    @property
    def fingerprint(self) -> str:
        """Digest of everything above: equal for equal targets, in any process."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)

    def __getitem__(self, name: str) -> TensorSpec:
        for spec in self.tensors:
            if spec.name == name:
                return spec
        raise KeyError(f"{name} is no tensor of this target; it has {list(self.names)}")

    def canonical(self, name: str) -> str:
        """Return the name that a tensor is listed under; a name that is not tied stays as it is."""
        return dict(self.ties).get(name, name)

    def check(self, tensors: Mapping[str, Tensor], *, sets: int | None = None) -> None:
        """Refuse tensors that are not exactly those of the target.

        Args:
            tensors: name -> tensor, of the listed shape or with ``sets`` in front of it.
            sets: number of weight sets, or ``None`` for one set without that axis.

        Raises:
            ValueError: names every missing, unexpected and mis-shaped tensor.
        """
        lead = () if sets is None else (sets,)
        faults = _faults({name: (*lead, *shape) for name, shape in self.shapes.items()}, tensors)
        if faults:
            raise ValueError(f"tensors must be those of the target: {faults}")

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` needs."""
        return {
            "tensors": [asdict(spec) | {"shape": list(spec.shape)} for spec in self.tensors],
            "ties": [list(tie) for tie in self.ties],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Target":
        """Return the target that wrote ``data``."""
        return cls(
            tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in data["tensors"]),
            tuple((alias, name) for alias, name in data["ties"]),
        )


def _faults(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with tensors that ought to have these shapes; empty where nothing is."""
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    shaped = [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    parts = [f"missing {missing}"] * bool(missing) + [f"unexpected {unexpected}"] * bool(unexpected) + shaped
    return "; ".join(parts)


def _spec(name: str, parameter: Tensor, owner: nn.Module) -> TensorSpec:
    """Describe one parameter of a layer."""
    shape = tuple(parameter.shape)
    fan_in = math.prod(shape[1:])
    if isinstance(owner, _ConvTransposeNd) and len(shape) > 1:  # (in, out / groups, *kernel)
        fan_in = shape[0] // owner.groups * math.prod(shape[2:])
    role: Role = "weight" if len(shape) > 1 else "bias"
    leaf = name.rpartition(".")[2]
    if isinstance(owner, _NORMS):
        role = "norm_bias" if leaf == "bias" else "norm_weight"
    elif isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        role = "embedding"
    return TensorSpec(name, shape, role, max(fan_in, 1), str(parameter.dtype).removeprefix("torch."))
