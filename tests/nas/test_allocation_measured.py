"""Rate-distortion tables of networks, one site at a time, and what is made of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.allocation import BudgetError, RateDistortion, distortion_between, sites_of
from nas.costs import Cost
from search_spaces import Architecture, Choice, MLPSpace, SearchSpace

BITS = (2, 4, 8)


class BitsOnly(SearchSpace):
    """Three sites of bits, one of them absent at depth 1; the module does not matter."""

    def __init__(self) -> None:
        self.choices = (
            Choice("depth", (1, 2)),
            Choice("a.weight_bits", BITS),
            Choice("a.input_bits", BITS),
            Choice("b.weight_bits", BITS),
            Choice("c.weight_bits", BITS, requires=("depth", 2)),
        )

    def build(self, architecture: Architecture) -> nn.Module:
        return nn.Linear(2, 2)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, 2),)


class Bits(Cost):
    name, unit, direction = "bits", "1", "minimize"

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        sizes = {"a": 3, "b": 5, "c": 2}
        return 7.0 + sum(sizes[n[0]] * int(v) for n, v in architecture.items() if n.endswith("weight_bits"))


GAINS = {"a.weight_bits": 1.0, "a.input_bits": 0.5, "b.weight_bits": 3.0, "c.weight_bits": 2.0}


def outputs(architecture: Architecture) -> Tensor:
    """One output for each choice of bits, off by gain * 2^-bits; the errors of a and b multiply."""
    errors = [GAINS[name] * 2.0 ** -int(architecture.get(name, 8)) for name in GAINS]
    return torch.tensor([[*errors, errors[0] * errors[2]]], dtype=torch.float64) * torch.tensor([[1.0], [2.0]])


def measured(**more: Any) -> RateDistortion:
    space = BitsOnly()
    return RateDistortion(space, space.largest(), outputs, [Bits(space)], **more)


def test_a_site_is_all_bits_of_one_module_that_the_architecture_has() -> None:
    space = BitsOnly()
    assert sites_of(space, space.largest()) == (
        ("a.weight_bits", "a.input_bits"),
        ("b.weight_bits",),
        ("c.weight_bits",),
    )
    assert sites_of(space, space.smallest()) == (("a.weight_bits", "a.input_bits"), ("b.weight_bits",))
    plain = MLPSpace(4, 2, widths=(4,), depths=(1,))
    with pytest.raises(ValueError, match=r"put the space into search_spaces.QuantizedSpace"):
        sites_of(plain, plain.largest())


def test_the_table_changes_one_site_at_a_time_and_its_costs_add_up() -> None:
    found = measured()
    table = found.table()
    space = found.space
    reference = outputs(space.largest()).numpy()
    for site, names in enumerate(found.sites):
        for option, values in enumerate(found.options[site]):
            changed = space.architecture({**space.largest(), **dict(zip(names, values, strict=True))})
            expected = float(np.mean((outputs(changed).numpy() - reference) ** 2))
            assert table.distortion[site][option] == pytest.approx(expected, abs=1e-15)
    options = [2, 0, 1]
    architecture = found.architecture(options)
    assert dict(architecture) == {
        "depth": 2,
        "a.weight_bits": 2,
        "a.input_bits": 8,
        "b.weight_bits": 2,
        "c.weight_bits": 4,
    }
    assert table.cost("bits", options) == 7 + 3 * 2 + 5 * 2 + 2 * 4
    assert found.meter(architecture)["bits"] == table.cost("bits", options)


def test_a_table_around_a_point_is_exact_there_and_at_its_neighbours() -> None:
    found = measured()
    table = found.table(around=[0, 0, 0])
    for options in ([0, 0, 0], [4, 0, 0], [0, 2, 0], [0, 0, 1]):
        exact = found.measure(found.architecture(options))
        assert table.selection(options).distortion == pytest.approx(exact, abs=1e-15)


def test_an_allocation_keeps_its_budget_and_is_measured_as_a_whole() -> None:
    found = measured()
    best = found.allocate({"bits": 47.0})
    candidates = {
        a: found.measure(a) for a in found.space.architectures() if a["depth"] == 2 and found.meter(a)["bits"] <= 47
    }
    assert best.costs["bits"] <= 47
    assert best.measured == min(candidates.values()) == candidates[best.architecture]
    assert best.predicted == pytest.approx(best.measured, rel=0.2)
    with pytest.raises(BudgetError, match=r"bits <= 20 cannot be kept: the least is 27"):
        found.allocate({"bits": 20.0})


def test_rounds_mend_what_a_table_of_single_changes_cannot_see() -> None:
    """Together, low bits at a and b cancel: the first table refuses them, the one around its answer does not."""

    def cancelling(architecture: Architecture) -> Tensor:
        errors = [2.0 ** -int(architecture[name]) for name in ("a.weight_bits", "b.weight_bits")]
        return torch.tensor([[errors[0] - errors[1], 0.05 * 2.0 ** -int(architecture["c.weight_bits"])]])

    space = BitsOnly()
    found = RateDistortion(space, space.largest(), cancelling, [Bits(space)])
    budget = {"bits": 7.0 + 3 * 4 + 5 * 4 + 2 * 8}
    plain, refined = found.allocate(budget, rounds=0), found.allocate(budget, rounds=2)
    assert refined.measured <= plain.measured
    assert refined.measured == found.measure(refined.architecture)


def test_the_front_is_ordered_and_within_other_budgets() -> None:
    found = measured().front("bits", {"bits": 80.0}, count=4)
    costs = [allocated.costs["bits"] for allocated in found]
    assert len(found) > 2
    assert costs == sorted(set(costs))
    assert costs[0] == 27
    assert costs[-1] <= 80
    errors = [allocated.measured for allocated in found]
    assert errors == sorted(errors, reverse=True)


def test_distortions_are_what_their_equations_say() -> None:
    generator = np.random.default_rng(0)
    reference, other = generator.normal(size=(5, 3)), generator.normal(size=(5, 3))
    errors = [float(np.mean((reference[n] - other[n]) ** 2)) for n in range(5)]
    divergence = 0.0
    for n in range(5):
        p, q = (np.exp(logits[n]) / np.exp(logits[n]).sum() for logits in (reference, other))
        divergence += float(sum(p[i] * math.log(p[i] / q[i]) for i in range(3))) / 5
    given = torch.from_numpy(reference), torch.from_numpy(other)
    assert distortion_between(*given, "mse") == pytest.approx(np.mean(errors))
    assert distortion_between(*given, "worst") == pytest.approx(max(errors))
    assert distortion_between(*given, "kl") == pytest.approx(divergence)
    with pytest.raises(ValueError, match="no numbers"):
        distortion_between(given[0], given[1] * math.inf, "mse")
    with pytest.raises(ValueError, match="as large as the reference"):
        distortion_between(given[0], given[1][:2], "mse")


def test_a_reference_in_full_precision_makes_the_highest_bits_lossy_too() -> None:
    full = torch.zeros(2, 5, dtype=torch.float64)
    found = measured(reference=full)
    top = found.measure(found.top)
    assert top == pytest.approx(float(outputs(found.space.largest()).square().mean()))
    assert found.table().selection([8, 2, 2]).distortion == pytest.approx(top)


def test_budgets_out_of_reach_are_refused_together_before_anything_is_measured() -> None:
    class Doubled(Cost):
        name, unit, direction = "doubled", "1", "minimize"

        def __call__(self, architecture: Architecture, model: nn.Module) -> float:
            return 2.0 * Bits(space)(architecture, model)

    space = BitsOnly()
    asked: list[Architecture] = []
    reference = outputs(space.largest())
    found = RateDistortion(space, space.largest(), asked.append, [Bits(space), Doubled()], reference=reference)
    both = r"bits <= 1 cannot be kept: the least is 27; the budget doubled <= 2 cannot be kept: the least is 54"
    for refused in (lambda: found.allocate({"bits": 1.0, "doubled": 2.0}), lambda: found.front("bits", {"bits": 1.0})):
        with pytest.raises(BudgetError, match="bits <= 1 cannot"):
            refused()
    with pytest.raises(BudgetError, match=both):
        found.require({"bits": 1.0, "doubled": 2.0})
    found.require({"bits": 27.0, "doubled": 54.0})
    assert not asked
