"""Hard limits on measurements, written by users as ``max_params: 20000`` or ``min_accuracy: 0.9``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["Limit", "parse_limits"]

Kind = Literal["max", "min"]


@dataclass(frozen=True)
class Limit:
    """An inclusive bound that a trial must respect to be feasible.

    Args:
        metric: Name of the bounded measurement.
        bound: The bound, in the unit of the metric.
        kind: ``max`` for ``value <= bound``, ``min`` for ``value >= bound``.

    Raises:
        ValueError: If the metric is empty, the bound not finite or the kind unknown.

    Example:
        >>> Limit("params", 20000.0, "max").violation(25000.0)
        5000.0
    """

    metric: str
    bound: float
    kind: Kind

    def __post_init__(self) -> None:
        if not self.metric:
            raise ValueError("metric of a limit must not be empty, got ''")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind of the limit on {self.metric!r} must be 'max' or 'min', got {self.kind!r}")
        if not math.isfinite(self.bound):
            raise ValueError(f"bound of {self.key} must be finite, got {self.bound}; leave the limit out for no bound")

    @property
    def key(self) -> str:
        """The name under which users write the limit, such as ``max_params``."""
        return f"{self.kind}_{self.metric}"

    def violation(self, value: float) -> float:
        """Return by how much ``value`` breaks the limit, in the metric's unit; zero or less is feasible."""
        return value - self.bound if self.kind == "max" else self.bound - value

    def holds(self, value: float) -> bool:
        """Return whether ``value`` is feasible; NaN never is."""
        return self.violation(value) <= 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"metric": self.metric, "bound": self.bound, "kind": self.kind}


def parse_limits(limits: Mapping[str, float | str]) -> tuple[Limit, ...]:
    """Turn ``{"max_params": 2e4, "min_accuracy": 0.9}`` into limits, in the order given.

    Numbers written as text are accepted, because YAML 1.1 reads ``2e4`` as text.

    Raises:
        ValueError: If a key does not start with ``max_`` or ``min_``, a bound is no finite number, or the two bounds of
            one metric exclude each other.

    Example:
        >>> parse_limits({"max_params": "2e4"})
        (Limit(metric='params', bound=20000.0, kind='max'),)
    """
    parsed = tuple(_parse(key, bound) for key, bound in limits.items())
    upper = {limit.metric: limit for limit in parsed if limit.kind == "max"}
    for limit in parsed:
        other = upper.get(limit.metric)
        if limit.kind == "min" and other is not None and limit.bound > other.bound:
            raise ValueError(
                f"{limit.key} must not exceed {other.key}, got {limit.bound:g} > {other.bound:g}; "
                "no value could satisfy both"
            )
    return parsed


def _parse(key: str, bound: float | str) -> Limit:
    kind, separator, metric = key.partition("_")
    if kind not in get_args(Kind) or not separator or not metric:
        raise ValueError(
            f"a limit must be named max_<metric> or min_<metric>, got {key!r}; write for example max_params: 20000"
        )
    try:
        if isinstance(bound, bool):
            raise TypeError
        number = float(bound)
    except (TypeError, ValueError):
        raise ValueError(f"{key} must be a number, got {bound!r}") from None
    return Limit(metric, number, "max" if kind == "max" else "min")
