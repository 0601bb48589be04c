"""The integer program of bit allocation, against every selection there is."""

import itertools
import math

import numpy as np
import pytest

from nas.allocation import BudgetError, RateDistortionTable, allocate, front


def random_table(seed: int, *, layers: int = 6, options: int = 4, **more: object) -> RateDistortionTable:
    generator = np.random.default_rng(seed)
    distortion = generator.exponential(size=(layers, options))
    costs = {name: generator.integers(1, 50, size=(layers, options)).astype(float) for name in ("bit_ops", "bytes")}
    return RateDistortionTable(tuple(distortion), {name: tuple(rows) for name, rows in costs.items()}, **more)


def brute_force(table: RateDistortionTable, budgets: dict[str, float]) -> float:
    """Least distortion over all selections that keep the budgets, by loops over the definition."""
    best = math.inf
    for options in itertools.product(*(range(len(row)) for row in table.distortion)):
        kept = True
        for name, bound in budgets.items():
            costs = [table.costs[name][layer][option] for layer, option in enumerate(options)]
            total = max(costs) if name in table.peaks else sum(costs)
            kept = kept and table.fixed.get(name, 0.0) + total <= bound
        if kept:
            best = min(best, sum(table.distortion[layer][option] for layer, option in enumerate(options)))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force_with_two_budgets_a_fixed_part_and_a_peak(seed: int) -> None:
    table = random_table(seed, fixed={"bit_ops": 7.0}, peaks=["bytes"])
    budgets = {"bit_ops": 130.0, "bytes": 40.0}
    found = allocate(table, budgets)
    assert found.distortion == pytest.approx(brute_force(table, budgets), abs=1e-12)
    assert found.costs["bit_ops"] == 7 + sum(
        row[option] for row, option in zip(table.costs["bit_ops"], found.options, strict=True)
    )
    both = {"bit_ops": 120.0, "bytes": 130.0}
    assert allocate(random_table(seed), both).distortion == pytest.approx(brute_force(random_table(seed), both))


def test_budgets_are_inclusive_and_never_exceeded() -> None:
    table = RateDistortionTable(([3.0, 0.0], [2.0, 0.0]), {"bytes": ([1.0, 2.0], [1.0, 2.0])})
    assert [allocate(table, {"bytes": bound}).options for bound in (2.0, 3.0, 3.999999, 4.0)] == [
        (0, 0),
        (1, 0),
        (1, 0),
        (1, 1),
    ]


def test_tiny_differences_count_beside_large_costs() -> None:
    table = RateDistortionTable(
        ([1e-9, 0.0], [2e-9, 0.0]), {"bit_ops": ([1e12, 1e12 + 1], [1e12, 1e12 + 1])}, fixed={"bit_ops": 5e12}
    )
    assert allocate(table, {"bit_ops": 7e12 + 1}).options == (0, 1)
    assert allocate(table, {"bit_ops": 8e12}).options == (1, 1)


def test_layers_may_have_options_of_their_own() -> None:
    table = RateDistortionTable(([0.5], [4.0, 1.0, 0.0]), {"bytes": ([9.0], [1.0, 2.0, 4.0])})
    assert allocate(table, {"bytes": 11.5}).options == (0, 1)


def test_a_budget_out_of_reach_names_the_least() -> None:
    table = RateDistortionTable(([1.0, 0.0],), {"bytes": ([3.0, 5.0],), "bit_ops": ([8.0, 6.0],)}, {"bytes": 10.0})
    with pytest.raises(BudgetError, match=r"bytes <= 12 cannot be kept: the least is 13"):
        allocate(table, {"bytes": 12.0})
    with pytest.raises(BudgetError, match=r"cannot be kept together: the least bytes with bit_ops <= 7 is 15"):
        allocate(table, {"bytes": 14.0, "bit_ops": 7.0})


@pytest.mark.parametrize(
    ("distortion", "costs", "fixed", "message"),
    [
        ((), {}, {}, "one or more layers"),
        (([],), {}, {}, "one or more options"),
        (([1.0],), {"bytes": ([1.0, 2.0],)}, {}, r"costs\['bytes'\] must have the shapes"),
        (([math.nan],), {}, {}, "distortion must be finite"),
        (([1.0],), {}, {"bytes": 1.0}, "must name costs"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(distortion, costs, fixed, message) -> None:
    with pytest.raises(ValueError, match=message):
        RateDistortionTable(distortion, costs, fixed)


def test_wrong_budgets_are_refused() -> None:
    table = random_table(0)
    with pytest.raises(ValueError, match=r"must name costs of the table, which are \['bit_ops', 'bytes'\]"):
        allocate(table, {"latency": 1.0})
    with pytest.raises(ValueError, match="got nan for"):
        allocate(table, {"bytes": math.nan})
    with pytest.raises(ValueError, match="count >= 1"):
        front(table, "bytes", count=0)


def test_a_front_runs_from_the_cheapest_to_the_best_and_keeps_other_budgets() -> None:
    table = random_table(3)
    found = front(table, "bytes", {"bit_ops": 150.0}, count=6)
    sizes, errors = [a.costs["bytes"] for a in found], [a.distortion for a in found]
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)
    assert all(a.costs["bit_ops"] <= 150 for a in found)
    assert errors[-1] == pytest.approx(brute_force(table, {"bit_ops": 150.0}))
    least = min(
        sum(table.costs["bytes"][layer][o] for layer, o in enumerate(options))
        for options in itertools.product(range(4), repeat=6)
        if sum(table.costs["bit_ops"][layer][o] for layer, o in enumerate(options)) <= 150
    )
    assert sizes[0] == least
    for allocation in found:
        assert allocation.distortion == pytest.approx(
            brute_force(table, {"bit_ops": 150.0, "bytes": allocation.costs["bytes"]})
        )
