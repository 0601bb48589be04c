"""The exact choice of one option for each layer: an integer linear program."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Allocation", "BudgetError", "RateDistortionTable", "allocate", "front"]

_ROUNDING = 1e-9  # share of a budget that sums may differ by
_CUTS = 32  # selections refused because the solver's tolerance let them over a budget

Row = NDArray[np.float64]


class BudgetError(ValueError):
    """No selection keeps the budgets."""


@dataclass(frozen=True)
class RateDistortionTable:
    """What every option of every layer costs, and what it does to the output.

    The network is a list of layers, each with options of its own (pairs of bitwidths, say). The distortion of a
    selection is the sum over layers, which holds to first order for small, independent errors (Xu et al., ICCV 2023),
    and a cost is ``fixed + sum_l cost_l``, or the largest of them for the names in ``peaks``.

    Args:
        distortion: layer -> ``(options,)``, finite.
        costs: name -> layer -> ``(options,)``, finite, in the shapes of ``distortion``.
        fixed: name -> what everything else costs; 0 where it is left out.
        peaks: names of costs of which the largest layer counts, peak memory say.

    Raises:
        ValueError: shapes differ, a layer has no option, or a number is not finite.
    """

    distortion: tuple[Row, ...]
    costs: Mapping[str, tuple[Row, ...]]
    fixed: Mapping[str, float] = field(default_factory=dict)
    peaks: Collection[str] = ()

    def __post_init__(self) -> None:
        def rows(values: Sequence[Any]) -> tuple[Row, ...]:
            return tuple(np.asarray(row, dtype=np.float64) for row in values)

        object.__setattr__(self, "distortion", rows(self.distortion))
        object.__setattr__(self, "costs", {name: rows(values) for name, values in self.costs.items()})
        object.__setattr__(self, "peaks", frozenset(self.peaks))
        shapes = [row.shape for row in self.distortion]
        if not shapes or any(len(shape) != 1 or not shape[0] for shape in shapes):
            raise ValueError(f"a table needs one or more layers of one or more options, got the shapes {shapes}")
        for name, values in self.costs.items():
            found = [row.shape for row in values]
            if found != shapes:
                raise ValueError(f"costs[{name!r}] must have the shapes of distortion, {shapes}, got {found}")
        for name, values in {"distortion": self.distortion, **self.costs}.items():
            wrong = [layer for layer, row in enumerate(values) if not np.isfinite(row).all()]
            if wrong:
                raise ValueError(f"{name} must be finite, got other numbers in the layers {wrong[:6]}")
        unknown = sorted((self.fixed.keys() | self.peaks) - self.costs.keys())
        if unknown:
            raise ValueError(f"fixed and peaks must name costs, which are {sorted(self.costs)}, got {unknown}")

    def cost(self, name: str, options: Sequence[int]) -> float:
        """Return the cost ``name`` of a selection."""
        chosen = [row[option] for row, option in zip(self.costs[name], options, strict=True)]
        return self.fixed.get(name, 0.0) + (max(chosen) if name in self.peaks else math.fsum(chosen))

    def least(self, name: str) -> float:
        """Return the smallest value that the cost ``name`` can have."""
        return self.cost(name, [int(row.argmin()) for row in self.costs[name]])

    def selection(self, options: Sequence[int]) -> "Allocation":
        """Return a selection with its distortion and costs."""
        distortion = math.fsum(row[option] for row, option in zip(self.distortion, options, strict=True))
        return Allocation(tuple(options), distortion, {name: self.cost(name, options) for name in self.costs})


@dataclass(frozen=True)
class Allocation:
    """One option for each layer.

    Attributes:
        options: position of the option of each layer.
        distortion: predicted by the table.
        costs: name -> value.
    """

    options: tuple[int, ...]
    distortion: float
    costs: Mapping[str, float]


def _keeps(value: float, budget: float) -> bool:
    return value <= budget + _ROUNDING * max(abs(budget), 1.0)


def allocate(table: RateDistortionTable, budgets: Mapping[str, float]) -> Allocation:
    """Return the selection of least distortion whose costs keep all budgets, exactly.

    ``min sum_l d_l(o_l)  s.t.  sum_l c^m_l(o_l) <= B^m - fixed^m`` for every budget ``m``, one option for each layer,
    by branch and cut (HiGHS through ``scipy.optimize.milp``) to a gap of zero. A budget on a peak takes the options
    above it away.

    Args:
        table: the layers.
        budgets: name of a cost -> inclusive bound; none leaves the least distortion of all.

    Raises:
        BudgetError: no selection keeps the budgets; the message names the smallest that can be reached.
        ValueError: a budget is for no cost of the table, or not a number.
    """
    unknown = sorted(budgets.keys() - table.costs.keys())
    if unknown:
        raise ValueError(f"budgets must name costs of the table, which are {sorted(table.costs)}, got {unknown}")
    nan = sorted(name for name, bound in budgets.items() if math.isnan(bound))
    if nan:
        raise ValueError(f"budgets must be numbers, got nan for {nan}")
    least = {name: table.least(name) for name in budgets}
    beyond = [name for name, bound in budgets.items() if not _keeps(least[name], bound)]
    if beyond:
        parts = (
            f"the budget {name} <= {budgets[name]:.12g} cannot be kept: the least is {least[name]:.12g}"
            for name in beyond
        )
        raise BudgetError("; ".join(parts))
    options = _solve(table, table.distortion, budgets)
    if options is None:
        raise BudgetError(_explained(table, budgets))
    return table.selection(options)


def _explained(table: RateDistortionTable, budgets: Mapping[str, float]) -> str:
    """Say what the least of each cost is while the other budgets are kept."""
    found = []
    for name in budgets:
        others = {other: bound for other, bound in budgets.items() if other != name}
        objective = table.costs[name]
        if name in table.peaks:
            continue
        options = _solve(table, objective, others)
        if options is not None:
            kept = " and ".join(f"{other} <= {bound:.12g}" for other, bound in others.items())
            found.append(f"the least {name} with {kept} is {table.cost(name, options):.12g}")
    asked = ", ".join(f"{name} <= {bound:.12g}" for name, bound in budgets.items())
    return f"the budgets {asked} cannot be kept together: {'; '.join(found) or 'any two of them contradict each other'}"


def _solve(
    table: RateDistortionTable, objective: Sequence[Row], budgets: Mapping[str, float]
) -> tuple[int, ...] | None:
    """Return the selection of least ``objective``, or ``None`` where the budgets leave none."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import, and only needed here
    from scipy.sparse import csr_matrix

    counts = [len(row) for row in objective]
    total, starts = sum(counts), np.cumsum([0, *counts])
    layers = np.repeat(np.arange(len(counts)), counts)
    shifted = np.concatenate([row - row.min() for row in objective])
    allowed = np.ones(total)
    constraints = [LinearConstraint(csr_matrix((np.ones(total), (layers, np.arange(total)))), 1, 1)]
    for name, bound in budgets.items():
        if math.isinf(bound):
            continue
        room, flat = bound - table.fixed.get(name, 0.0), np.concatenate(table.costs[name])
        if name in table.peaks:
            allowed[[not _keeps(cost, room) for cost in flat]] = 0
        else:  # in shares of the room that the cheapest options leave
            least = np.concatenate([np.full(len(row), row.min()) for row in table.costs[name]])
            spare = max(room - sum(row.min() for row in table.costs[name]), 0.0)
            scale = spare or max(float((flat - least).max()), 1.0)
            constraints.append(LinearConstraint(((flat - least) / scale)[None], -np.inf, spare / scale + _ROUNDING))
    scale = float(shifted.max()) or 1.0
    for _ in range(_CUTS):
        found = milp(
            1e3 * shifted / scale,
            constraints=constraints,
            integrality=np.ones(total),
            bounds=Bounds(0, allowed),
            options={"mip_rel_gap": 0.0},
        )
        if found.status == 2:  # infeasible
            return None
        if found.x is None:
            raise RuntimeError(f"the solver of the allocation gave up: {found.message}")
        options = tuple(int(found.x[a:b].argmax()) for a, b in itertools.pairwise(starts))
        if all(_keeps(table.cost(name, options), bound) for name, bound in budgets.items()):
            return options
        taken = np.zeros(total)
        taken[starts[:-1] + np.array(options)] = 1
        constraints.append(LinearConstraint(taken[None], -np.inf, len(counts) - 1))
    raise RuntimeError(f"the solver of the allocation breaks the budgets by its own tolerance: {dict(budgets)}")


def front(
    table: RateDistortionTable, name: str, budgets: Mapping[str, float] | None = None, *, count: int = 8
) -> list[Allocation]:
    """Return allocations from the smallest reachable value of one cost to that of least distortion.

    Budgets of the cost are spaced evenly on a logarithmic scale. Other than a sweep of ``distortion + lambda * cost``,
    which is the same at a convex front, this finds what lies behind the hull too.

    Args:
        table: the layers.
        name: the cost that is swept.
        budgets: bounds that hold throughout, one of the swept cost included.
        count: budgets, at least one; fewer allocations come back where several agree.

    Raises:
        BudgetError: no selection keeps ``budgets``.
        ValueError: ``count < 1``, or ``name`` is no cost of the table.
    """
    if count < 1:
        raise ValueError(f"a front needs count >= 1, got {count}")
    if name not in table.costs:
        raise ValueError(f"a front needs a cost of the table, which are {sorted(table.costs)}, got {name!r}")
    bounds = dict(budgets or {})
    best = allocate(table, bounds)
    if count == 1:
        return [best]
    cheapest = _solve(table, table.costs[name], bounds) if name not in table.peaks else None
    low = table.least(name) if cheapest is None else table.cost(name, cheapest)
    high = best.costs[name]
    places = np.geomspace(low, high, count) if low > 0 else np.linspace(low, high, count)
    found = [allocate(table, bounds | {name: float(place)}) for place in [low, *places[1:-1], high]]
    unique = {allocation.options: allocation for allocation in found}.values()
    return sorted(
        (a for a in unique if not any(_dominates(b, a, name) for b in unique)), key=lambda item: item.costs[name]
    )


def _dominates(first: Allocation, second: Allocation, name: str) -> bool:
    better = (first.distortion, first.costs[name]), (second.distortion, second.costs[name])
    return better[0] != better[1] and all(a <= b for a, b in zip(*better, strict=True))
