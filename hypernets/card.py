"""What kind of hypernetwork one is, by the five criteria of a review (Chauhan et al., arXiv 2306.06955)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, final, get_args

from hypernets.fields import Field, Kind

__all__ = ["Architecture", "HyperCard", "Outputs", "Variability"]

Outputs = Literal["once", "multi-head", "component-wise", "chunk-wise"]
Variability = Literal["static", "dynamic"]
Architecture = Literal["mlp", "cnn", "rnn", "attention", "graph", "implicit", "diffusion", "gates"]


@final
@dataclass(frozen=True)
class HyperCard:
    """The five criteria.

    Attributes:
        name: class of the generator.
        inputs: what it is conditioned on: ``task`` (tasks, hyperparameters, sizes, architectures), ``data``, ``noise``.
        outputs: ``once`` (all weights from one head), ``multi-head``, ``component-wise`` (one part of the target after
            another) or ``chunk-wise`` (pieces of one size).
        input_variability: ``static`` if the conditions are a finite set known beforehand, else ``dynamic``.
        output_variability: ``static`` if all weight sets fit one architecture, ``dynamic`` if sizes may be asked for.
        architecture: of the generator itself.
        reference: where the method is described.
    """

    name: str
    inputs: tuple[Kind, ...]
    outputs: Outputs
    input_variability: Variability
    output_variability: Variability
    architecture: Architecture
    reference: str

    def __post_init__(self) -> None:
        for name, choices in (
            ("outputs", Outputs),
            ("input_variability", Variability),
            ("output_variability", Variability),
            ("architecture", Architecture),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} of a card must be one of {get_args(choices)}, got {getattr(self, name)!r}")
        if not self.inputs or set(self.inputs) - set(get_args(Kind)) or not self.reference:
            raise ValueError(f"a card needs inputs out of {get_args(Kind)} and a reference, got {self}")

    @classmethod
    def of(
        cls,
        name: str,
        fields: Iterable[Field],
        *,
        outputs: Outputs,
        architecture: Architecture,
        reference: str,
        output_variability: Variability = "static",
    ) -> "HyperCard":
        """Return the card of a generator with these condition fields, from which the criteria on inputs follow."""
        fields = tuple(fields)
        kinds: tuple[Kind, ...] = ("task", "data", "noise")
        return cls(
            name=name,
            inputs=tuple(kind for kind in kinds if any(field.kind == kind for field in fields)),
            outputs=outputs,
            input_variability="static" if all(field.static for field in fields) else "dynamic",
            output_variability=output_variability,
            architecture=architecture,
            reference=reference,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the criteria by name."""
        return asdict(self) | {"inputs": list(self.inputs)}
