"""Magnitude-invariant parametrization: how conditions enter a hypernetwork and what it is added to.

Gonzalez Ortiz, Guttag, Dalca: "Magnitude Invariant Parametrizations Improve Hypernetwork Learning" (ICLR 2024,
arXiv 2304.07645). With an ordinary parametrization the norm of the generated weights is proportional to the norm of
the condition; here

    theta_name = theta0_name + g_name(E(condition)),

with an encoding ``E`` of constant norm and learned weights ``theta0`` that start like those of an ordinary network.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypernets.conditions import Categorical, Examples
from hypernets.dataset_encoders import ClassStatistics, DatasetEncoder
from hypernets.fields import Field, NumberField
from hypernets.labelled import LabelledExamples
from hypernets.set_transformer import SetTransformer
from hypernets.target import Target

__all__ = ["ConditionEncoder", "Encoding", "HeadInit", "Parametrization", "Residual", "ResidualKind", "encode_unit"]

Encoding = Literal["none", "cos_sin", "unit_norm", "complement"]
ResidualKind = Literal["none", "zero", "learned", "frozen"]
HeadInit = Literal["fan_out", "zero", "hyperfan"]


@final
@dataclass(frozen=True)
class Parametrization:
    """The three switches, each independent of the others. The default is the paper's method.

    Attributes:
        encoding: of numbers z in [0, 1]. ``cos_sin`` is (cos(pi z / 2), sin(pi z / 2)), of constant L2 norm;
            ``complement`` is (z, 1 - z), of constant L1 norm; ``unit_norm`` divides a vector by its norm, and with it
            loses the norm; ``none`` takes them as they are.
        residual: ``learned`` and ``frozen`` weights that start like an ordinary network; ``zero`` is the ordinary final
            bias, learned from zero; ``none`` is no constant at all.
        head_init: ``fan_out`` starts each tensor's part of the head by its number of outputs, and the parts of biases
            at zero; ``zero`` starts all of it at zero, so that every condition begins with the residual alone
            (needs one); ``hyperfan`` scales it, on random conditions, so that generated weights start with the
            deviation of an ordinary network.
    """

    encoding: Encoding = "cos_sin"
    residual: ResidualKind = "learned"
    head_init: HeadInit = "fan_out"

    def __post_init__(self) -> None:
        for name, choices in (("encoding", Encoding), ("residual", ResidualKind), ("head_init", HeadInit)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {get_args(choices)}, got {getattr(self, name)!r}")
        if self.head_init == "zero" and self.residual in {"none", "zero"}:
            raise ValueError(
                f"head_init='zero' with residual={self.residual!r} starts all weights at zero, which never train; "
                "use residual='learned'"
            )

    @classmethod
    def ordinary(cls) -> "Parametrization":
        """Return what hypernetworks did before: no encoding, a final bias that starts at zero."""
        return cls(encoding="none", residual="zero")

    def to_json(self) -> dict[str, Any]:
        """Return the switches by name."""
        return asdict(self)


def encode_unit(values: Tensor, encoding: Encoding) -> Tensor:
    """Encode numbers ``(K, D)`` in [0, 1] so that every row has norm 1 (``complement``: L1 norm 1).

    Returns:
        ``(K, 2 D)``, or ``(K, D)`` for ``none`` and ``unit_norm``.
    """
    if encoding == "cos_sin":
        angle = values * (torch.pi / 2)
        return torch.cat([angle.cos(), angle.sin()], dim=-1) / math.sqrt(values.shape[-1])
    if encoding == "complement":
        return torch.cat([values, 1 - values], dim=-1) / values.shape[-1]
    return F.normalize(values, dim=-1) if encoding == "unit_norm" else values


class _Code(nn.Module):
    """One field's part of the code: checked values in, ``(K, width)`` out."""

    width: int


@final
class _Numbers(_Code):
    def __init__(self, field: NumberField, encoding: Encoding) -> None:
        super().__init__()
        if encoding == "unit_norm" and field.width < 2:
            raise ValueError(f"encoding='unit_norm' maps every value of {field} to 1; use 'cos_sin'")
        self.field, self.encoding = field, encoding
        self.width = field.width * (2 if encoding in {"cos_sin", "complement"} else 1)

    def forward(self, values: Tensor) -> Tensor:
        read = self.field.raw if self.encoding in {"none", "unit_norm"} else self.field.unit
        return encode_unit(read(values).flatten(1) if values.dim() > 1 else read(values)[:, None], self.encoding)


@final
class _Vectors(_Code):
    """Learned vectors of categories, of norm 1 where an encoding is asked for."""

    def __init__(self, field: Categorical, encoding: Encoding) -> None:
        super().__init__()
        self.width, self.encoding = field.embedding, encoding
        self.table = nn.Parameter(torch.randn(field.count, field.embedding) / field.embedding**0.5)

    def forward(self, values: Tensor) -> Tensor:
        vectors = self.table[values]
        return vectors if self.encoding == "none" else F.normalize(vectors, dim=-1)

    @torch.no_grad()
    def grow(self) -> None:
        new = torch.randn(1, self.width, device=self.table.device, dtype=self.table.dtype) / self.width**0.5
        self.table = nn.Parameter(torch.cat([self.table, new]), requires_grad=self.table.requires_grad)


@final
class _Summary(_Code):
    """Mean of learned features over a set (Deep Sets, arXiv 1703.06114), of norm 1 where an encoding is asked for."""

    def __init__(self, field: Examples, encoding: Encoding) -> None:
        super().__init__()
        self.width, self.encoding = field.embedding, encoding
        self.element = nn.Sequential(nn.Linear(field.size, 2 * field.embedding), nn.LeakyReLU())
        self.whole = nn.Linear(2 * field.embedding, field.embedding)

    def forward(self, values: Tensor) -> Tensor:
        summary = self.whole(self.element(values).mean(dim=1))
        return summary if self.encoding == "none" else F.normalize(summary, dim=-1)


@final
class _DataSet(_Code):
    """The summary of a labelled data set, of norm 1 where an encoding is asked for."""

    def __init__(self, field: LabelledExamples, encoding: Encoding) -> None:
        super().__init__()
        self.width, self.encoding, self.size = field.embedding, encoding, field.size
        encoder = SetTransformer if field.summary == "set_transformer" else ClassStatistics
        self.summary: DatasetEncoder = encoder(field.size, field.classes, field.embedding)

    def forward(self, values: Tensor) -> Tensor:
        summary: Tensor = self.summary(values[..., : self.size], values[..., self.size :])
        return summary if self.encoding == "none" else F.normalize(summary, dim=-1)


def _code(field: Field, encoding: Encoding) -> _Code:
    match field:
        case NumberField():
            return _Numbers(field, encoding)
        case Categorical():
            return _Vectors(field, encoding)
        case Examples():
            return _Summary(field, encoding)
        case LabelledExamples():
            return _DataSet(field, encoding)
    raise TypeError(f"fields are those of hypernets.conditions, got {type(field).__name__}")


@final
class ConditionEncoder(nn.Module):
    """Checks a condition and encodes all its fields as one vector of norm 1 (of any norm with ``none``).

    Args:
        fields: name -> field; their order does not matter.
        encoding: see :class:`Parametrization`.
    """

    def __init__(self, fields: Mapping[str, Field], encoding: Encoding) -> None:
        super().__init__()
        if not fields:
            raise ValueError("a hypernetwork needs at least one condition field, e.g. {'strength': Unit()}")
        self.fields = {name: fields[name] for name in sorted(fields)}
        self.encoding = encoding
        self.codes = nn.ModuleList(_code(field, encoding) for field in self.fields.values())
        self.width = sum(code.width for code in self.codes if isinstance(code, _Code))

    def read(self, condition: Mapping[str, Any], *, like: Tensor) -> dict[str, Tensor]:
        """Return checked values with one common K; a value with K = 1 stands for all.

        Raises:
            ValueError: fields are missing or unknown, a value is out of range or mis-shaped, or the Ks differ.
        """
        missing, unknown = (
            [n for n in self.fields if n not in condition],
            [n for n in condition if n not in self.fields],
        )
        if missing or unknown:
            raise ValueError(f"a condition needs exactly the fields {list(self.fields)}: {missing=}, {unknown=}")
        values = {name: field.read(condition[name], name, like=like) for name, field in self.fields.items()}
        counts = {name: len(value) for name, value in values.items()}
        sets = next((count for count in counts.values() if count != 1), 1)
        if set(counts.values()) - {1, sets}:
            raise ValueError(f"all fields of a condition need the same K in front (or 1), got {counts}")
        return {name: value.expand(sets, *value.shape[1:]) for name, value in values.items()}

    def forward(self, values: Mapping[str, Tensor]) -> Tensor:
        """Encode what :meth:`read` returned as ``(K, width)``."""
        parts = [code(values[name]) for name, code in zip(self.fields, self.codes, strict=True)]
        code = torch.cat(parts, dim=-1)
        return code if self.encoding == "none" else code / math.sqrt(len(parts))

    def grow(self, name: str) -> int:
        """Add one category to a categorical field and return its number; others keep their vectors.

        Raises:
            ValueError: the field is unknown or has no categories.
        """
        for position, (known, field) in enumerate(self.fields.items()):
            code = self.codes[position]
            if known == name and isinstance(field, Categorical) and isinstance(code, _Vectors):
                code.grow()
                self.fields = {**self.fields, name: Categorical(field.count + 1, field.embedding)}
                return field.count
        raise ValueError(f"{name!r} must be a Categorical field to grow; the fields are {self.fields}")


@final
class Residual(nn.Module):
    """The weights ``theta0`` that deltas are added to, kept in float32.

    Args:
        target: the tensors.
        kind: see :class:`Parametrization`.
    """

    def __init__(self, target: Target, kind: ResidualKind) -> None:
        super().__init__()
        self.kind = kind
        self._keys = {spec.name: spec.name.replace(".", "/") for spec in target} if kind != "none" else {}
        for spec in target if kind != "none" else ():
            start = torch.zeros(spec.shape) if kind == "zero" else spec.initial()
            if kind == "frozen":
                self.register_buffer(self._keys[spec.name], start)
            else:
                self.register_parameter(self._keys[spec.name], nn.Parameter(start))

    def forward(self, name: str) -> Tensor | None:
        """Return the weights of one tensor, or ``None`` where there are none."""
        return getattr(self, self._keys[name]) if self._keys else None

    @torch.no_grad()
    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy values in; see ``HyperNetwork.start_from``."""
        for name, key in self._keys.items():
            getattr(self, key).copy_(tensors[name])
