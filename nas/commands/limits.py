"""Limits as command-line options, named as in the ``search.limits`` section."""

from collections.abc import Mapping, Sequence

from nas.bitops import WeightBits
from nas.costs import Cost, MACs, ModelSize, Parameters
from nas.latency import Latency
from search_spaces import SearchSpace
from trials import Limit, parse_limits

__all__ = ["costs_for", "given_limits"]

_COSTS: Mapping[str, type[Cost]] = {
    "params": Parameters,
    "macs": MACs,
    "model_size": ModelSize,
    "weight_bits": WeightBits,
    "latency": Latency,
}


def given_limits(**options: float | None) -> tuple[Limit, ...]:
    """Return the limits that were given; ``None`` is no limit.

    Raises:
        ValueError: a bound is not finite.
    """
    return parse_limits({key: bound for key, bound in options.items() if bound is not None})


def costs_for(space: SearchSpace, limits: Sequence[Limit], always: Sequence[str] = ("params", "macs")) -> list[Cost]:
    """Return the built-in costs named in ``always`` and those that ``limits`` are on, in a fixed order."""
    wanted = {*always, *(limit.metric for limit in limits)}
    return [make(space) for name, make in _COSTS.items() if name in wanted]  # type: ignore[call-arg]
