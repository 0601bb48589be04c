"""Benchmarks: one module each, with ``run(quick) -> Result``; ``python -m benchmarks`` lists and runs them."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        rows: the table; every row has the same keys, values are printed as they are.
        verdict: one sentence with the figures that decided and what was asked of them.
        passed: whether they reach it.
    """

    rows: tuple[Mapping[str, object], ...]
    verdict: str
    passed: bool
