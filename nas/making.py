"""What weights are asked for, what was made, and what makes them."""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Generation", "GenerationError", "Request", "WeightMaker", "refuse_sampling", "replace_file"]


class GenerationError(ValueError):
    """A request names fields that are missing, unknown or out of range.

    Attributes:
        fields: their names.
    """

    def __init__(self, message: str, fields: Sequence[str]) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


@dataclass(frozen=True)
class Request:
    """What weights are asked for.

    Attributes:
        condition: field -> number or list of numbers, for a hypernetwork over conditions.
        size: choice -> candidate, for a supernet with generated weights, or any size that they have
            (``WeightSource.sized``); a name such as ``width`` stands for every choice that ends in ``.width``. Choices
            left out are at their largest.
        seed: of generators that draw.
        examples: of each class that a hypernetwork over data sets sees; five when left out.
        count: networks to sample for a data set, the best of which is kept; one when left out.
    """

    condition: Mapping[str, Any] = field(default_factory=dict)
    size: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    examples: int | None = None
    count: int | None = None


@dataclass(frozen=True)
class Generation:
    """What was written.

    Attributes:
        path: safetensors; ``hypernets.read_provenance`` reads the provenance back.
        provenance: ``hypernetwork`` digest, ``condition``, ``seed``, ``evaluation`` and what else identifies it.
    """

    path: Path
    provenance: Mapping[str, Any]


class WeightMaker(ABC):
    """Makes weights of one trained model. Only read after construction, so threads may share it."""

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, str]:
        """Name -> values that may be asked for, for people."""

    @abstractmethod
    def check(self, request: Request) -> None:
        """Refuse a request that cannot be answered.

        Raises:
            GenerationError: names the fields.
        """

    @abstractmethod
    def write(self, request: Request, path: str | Path, *, evaluate: bool = True) -> Generation:
        """Generate into a safetensors file, all or nothing. Equal requests give equal bytes.

        Args:
            request: what is asked for.
            path: of the file.
            evaluate: score the weights on the validation and test splits first, where the data is known.

        Raises:
            GenerationError: see :meth:`check`; nothing has been written.
        """


def refuse_sampling(request: Request) -> None:
    """Refuse options that only hypernetworks over data sets have.

    Raises:
        GenerationError: names them.
    """
    given = [name for name in ("examples", "count") if getattr(request, name) is not None]
    if given:
        raise GenerationError(
            f"{' and '.join(given)} are for hypernetworks that sample weights for a data set; leave them out", given
        )


def replace_file(path: Path, content: bytes) -> None:
    """Write a file all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
