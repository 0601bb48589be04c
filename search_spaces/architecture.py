"""A point of a search space."""

import hashlib
import json
from collections.abc import ItemsView, Iterator, Mapping
from functools import cached_property

from search_spaces.choice import Candidate

__all__ = ["Architecture", "InvalidArchitectureError"]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class InvalidArchitectureError(ValueError):
    """An architecture names a choice or a candidate that its space does not have."""


class Architecture(Mapping[str, Candidate]):
    """Immutable mapping from choice to candidate, in canonical form.

    Make one with :meth:`SearchSpace.architecture`, which validates the values and drops the choices that others have
    made inactive: two spellings of one network are one architecture, equal in hash and in ``arch_id``.
    """

    def __init__(self, values: Mapping[str, Candidate]) -> None:
        self._values = dict(sorted(values.items()))

    def __getitem__(self, name: str) -> Candidate:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> ItemsView[str, Candidate]:
        """Return (choice, candidate) pairs."""
        return self._values.items()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self._json == other._json

    def __hash__(self) -> int:
        return hash(self._json)

    def __repr__(self) -> str:
        return f"Architecture({self._values})"

    def __reduce__(self) -> tuple[type["Architecture"], tuple[dict[str, Candidate]]]:
        return Architecture, (self._values,)

    @cached_property
    def _json(self) -> str:
        return _ENCODER.encode(self._values)

    @cached_property
    def arch_id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON; equal in every process."""
        return hashlib.sha256(self._json.encode()).hexdigest()[:16]

    def integer(self, name: str) -> int:
        """Return the candidate of an integer choice.

        Raises:
            InvalidArchitectureError: the choice is absent or not an integer.
        """
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidArchitectureError(f"architecture[{name!r}] must be an integer, got {value!r}")
        return value

    def to_json(self) -> str:
        """Return the canonical JSON text: sorted keys, no spaces."""
        return self._json

    @classmethod
    def from_json(cls, text: str) -> "Architecture":
        """Read :meth:`to_json` back. Pass the result to :meth:`SearchSpace.architecture` to validate it.

        Raises:
            InvalidArchitectureError: the text is not a JSON object of scalars.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidArchitectureError(f"an architecture must be a JSON object, got {text[:80]!r}") from error
        if not isinstance(values, dict) or not all(isinstance(v, bool | int | float | str) for v in values.values()):
            raise InvalidArchitectureError(f"an architecture must be a JSON object of scalars, got {text[:80]!r}")
        return cls(values)
