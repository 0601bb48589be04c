"""Drawing architectures that keep hard limits on their costs, and finding out what a space can reach."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch

from search_spaces import Architecture, Candidate, SearchSpace
from trials import Limit

__all__ = ["UnsatisfiableError", "reach", "sample_within"]

Measure = Callable[[Architecture], Mapping[str, float]]
_ROUNDS = 64


class UnsatisfiableError(ValueError):
    """No architecture of the space is known that keeps the limits."""


def reach(
    space: SearchSpace, measure: Measure, generator: torch.Generator, samples: int = 32
) -> dict[str, tuple[float, float]]:
    """Return the smallest and largest value of every cost over the smallest, the largest and random architectures.

    Costs that grow with every choice have their true range; others (a categorical choice is in no order) have the range
    seen.

    Args:
        space: the search space.
        measure: architecture -> cost name -> value, e.g. a ``CostMeter``.
        generator: source of the random architectures.
        samples: how many of them.
    """
    architectures = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(samples))]
    tables = [measure(architecture) for architecture in architectures]
    return {name: (min(t[name] for t in tables), max(t[name] for t in tables)) for name in tables[0]}


def sample_within(
    space: SearchSpace,
    limits: Sequence[Limit],
    measure: Measure,
    generator: torch.Generator,
    *,
    count: int = 1,
    tries: int = 64,
) -> list[Architecture]:
    """Draw architectures whose costs keep every limit.

    Each is drawn at random up to ``tries`` times. Where all break a limit, the one that broke them least is repaired:
    active choices picked at random move towards their first candidate (their last, when a lower limit is broken) until
    the limit holds, ordinal choices one candidate at a time. Such a walk ends at the smallest (largest) architecture,
    so repair succeeds whenever that one keeps the limits.

    Args:
        space: the search space.
        limits: limits on metrics that ``measure`` returns.
        measure: architecture -> cost name -> value, e.g. a ``CostMeter``.
        generator: source of all randomness; equal generators give equal architectures.
        count: how many; one architecture may be drawn more than once.
        tries: random draws for each before one is repaired.

    Raises:
        ValueError: ``count`` or ``tries`` is out of range, or a limit is on a metric that is not measured.
        UnsatisfiableError: repair failed; the message names the limit and the smallest (largest) reachable value.
    """
    if count < 0 or tries < 1:
        raise ValueError(f"count must be 0 or more and tries 1 or more, got {count=}, {tries=}")
    known = measure(space.smallest())
    unknown = [limit.key for limit in limits if limit.metric not in known]
    if unknown:
        raise ValueError(f"limits must be on measured costs, got {', '.join(unknown)}; costs are {sorted(known)}")
    return [_draw(space, limits, measure, generator, tries) for _ in range(count)]


def _draw(
    space: SearchSpace, limits: Sequence[Limit], measure: Measure, generator: torch.Generator, tries: int
) -> Architecture:
    best, least = space.smallest(), float("inf")
    for _ in range(tries):
        architecture = space.sample(generator)
        violation = _violation(limits, measure(architecture))
        if violation <= 0.0:
            return architecture
        if violation < least:
            best, least = architecture, violation
    return _repair(space, limits, measure, generator, best)


def _violation(limits: Sequence[Limit], costs: Mapping[str, float]) -> float:
    """Sum of the violated margins, each relative to its bound."""
    return sum(max(0.0, limit.violation(costs[limit.metric])) / (abs(limit.bound) or 1.0) for limit in limits)


def _repair(
    space: SearchSpace,
    limits: Sequence[Limit],
    measure: Measure,
    generator: torch.Generator,
    start: Architecture,
) -> Architecture:
    """Walk down for upper limits and up for lower ones, in turn, until all hold or an end of the range is reached."""
    architecture = start
    for _ in range(_ROUNDS):
        broken = _broken(limits, measure(architecture))
        if not broken:
            return architecture
        kind = broken[0].kind
        for step in _walk(space, architecture, kind, generator):
            architecture = step
            if all(limit.kind != kind for limit in _broken(limits, measure(architecture))):
                break
        else:
            break
    broken = _broken(limits, measure(architecture))
    if broken:
        raise UnsatisfiableError(_explain(space, limits, broken, measure))
    return architecture


def _broken(limits: Sequence[Limit], costs: Mapping[str, float]) -> list[Limit]:
    return [limit for limit in limits if not limit.holds(costs[limit.metric])]


def _walk(
    space: SearchSpace, start: Architecture, kind: Literal["max", "min"], generator: torch.Generator
) -> Iterator[Architecture]:
    """Yield single steps from ``start`` to the smallest (``max``) or largest architecture, along random choices."""
    end = 0 if kind == "max" else -1
    values: dict[str, Candidate] = {choice.name: choice.candidates[0] for choice in space.choices} | dict(start)
    while True:
        current = space.architecture(values)
        left = [c for c in space.choices if c.name in current and c.index(current[c.name]) != range(c.size)[end]]
        if not left:
            return
        choice = left[int(torch.randint(len(left), (), generator=generator))]
        step = choice.index(current[choice.name]) + (-1 if kind == "max" else 1)
        values[choice.name] = choice.candidates[step if choice.kind == "ordinal" else end]
        yield space.architecture(values)


def _explain(space: SearchSpace, limits: Sequence[Limit], broken: Sequence[Limit], measure: Measure) -> str:
    """Say which limits even the end of the range breaks, or that they exclude each other."""
    smallest, largest = measure(space.smallest()), measure(space.largest())
    parts = []
    for limit in limits:
        end, costs = ("smallest", smallest) if limit.kind == "max" else ("largest", largest)
        if not limit.holds(costs[limit.metric]):
            value = f"{costs[limit.metric]:,.10g} {limit.metric}"
            parts.append(f"{limit.key}={limit.bound:.10g} cannot be met: the {end} subnetwork has {value}")
    if parts:
        return "; ".join(parts)
    together = " and ".join(f"{limit.key}={limit.bound:.10g}" for limit in limits)
    return f"no architecture was found that keeps {together} together; {broken[0].key} stays broken, relax one of them"
