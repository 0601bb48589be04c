"""One decision of a search space: a name and its candidates."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Candidate", "Choice"]

Candidate = bool | int | float | str


@dataclass(frozen=True)
class Choice:
    """A named decision and its ordered candidates: widths, depths, kernels, operations and bitwidths alike.

    Args:
        name: unique within a space, e.g. ``"stage2.depth"``.
        candidates: at least one, all distinct. Ordinal candidates are numbers in ascending order.
        kind: ``"ordinal"`` when order has a meaning (more is larger), ``"categorical"`` otherwise.
        requires: ``(choice, minimum)``: the decision exists only where that earlier ordinal choice is at least
            ``minimum``, e.g. ``("stage2.depth", 3)`` for the width of a third block. ``None``: always.

    Raises:
        ValueError: no candidates, duplicates, or ordinal candidates that are not ascending numbers.
    """

    name: str
    candidates: tuple[Candidate, ...]
    kind: Literal["categorical", "ordinal"] = "ordinal"
    requires: tuple[str, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if self.requires is not None:
            object.__setattr__(self, "requires", tuple(self.requires))
        if not self.name:
            raise ValueError("a choice needs a non-empty name")
        if not self.candidates:
            raise ValueError(f"choice {self.name!r} needs at least one candidate, got none")
        if len({(type(c), c) for c in self.candidates}) < len(self.candidates):
            raise ValueError(f"choice {self.name!r}: candidates must be distinct, got {self.candidates}")
        if self.kind not in ("categorical", "ordinal"):
            raise ValueError(f"choice {self.name!r}: kind must be 'categorical' or 'ordinal', got {self.kind!r}")
        if self.kind == "ordinal":
            numbers = [c for c in self.candidates if isinstance(c, int | float) and not isinstance(c, bool)]
            if len(numbers) < len(self.candidates) or numbers != sorted(numbers):
                raise ValueError(
                    f"choice {self.name!r}: ordinal candidates must be ascending numbers, got {self.candidates}; "
                    "sort them, or say kind='categorical'"
                )

    @classmethod
    def integer(cls, name: str, low: int, high: int, step: int = 1) -> "Choice":
        """Return the ordinal choice ``low, low + step, ..., <= high``.

        Raises:
            ValueError: ``step < 1`` or ``low > high``.
        """
        if step < 1 or low > high:
            raise ValueError(f"choice {name!r}: low <= high and step >= 1 must hold, got {low=}, {high=}, {step=}")
        return cls(name, tuple(range(low, high + 1, step)))

    @classmethod
    def parse(
        cls,
        name: str,
        given: "Choice | list[Candidate] | tuple[Candidate, ...] | dict[str, int]",
    ) -> "Choice":
        """Read a choice as YAML spells it: a list of candidates, or ``{low, high, step}``.

        A list of ascending numbers is ordinal, anything else categorical.

        Raises:
            ValueError: the mapping has other keys, or the candidates are not valid.
        """
        if isinstance(given, Choice):
            return given
        if isinstance(given, dict):
            if not {"low", "high"} <= given.keys() <= {"low", "high", "step"}:
                raise ValueError(
                    f"choice {name!r} must be a list of candidates or a mapping with low, high and optionally step, "
                    f"got keys {sorted(given)}"
                )
            return cls.integer(name, **given)
        if not isinstance(given, list | tuple):
            raise ValueError(f"choice {name!r} must be a list of candidates, e.g. [8, 16, 32], got {given!r}")
        numeric = all(isinstance(c, int | float) and not isinstance(c, bool) for c in given)
        ordinal = numeric and list(given) == sorted(c for c in given if not isinstance(c, str))
        return cls(name, tuple(given), "ordinal" if ordinal else "categorical")

    @property
    def size(self) -> int:
        """Number of candidates."""
        return len(self.candidates)

    def index(self, value: object) -> int:
        """Return the position of ``value`` among the candidates; ``True`` is not ``1`` here.

        Raises:
            ValueError: ``value`` is not a candidate.
        """
        for position, candidate in enumerate(self.candidates):
            if candidate == value and isinstance(candidate, bool) == isinstance(value, bool):
                return position
        raise ValueError(f"architecture[{self.name!r}] must be one of {self.candidates}, got {value!r}")
