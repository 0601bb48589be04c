"""Attentive sampling: the table of costs, the draws within a bucket, and who is chosen."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

import nas
from nas.costs import measure
from search_spaces import Architecture, ArchitectureCost, MLPSpace, SearchSpace, construct, cost_of, describe
from supernets import AttentiveRule, Classification, SamplingRule, Slot, Supernet
from supernets.attentive import CostTable

SPACE = MLPSpace(12, 4, widths=(4, 6, 8, 10), depths=(1, 2, 3))


def widths(architecture: Architecture) -> float:
    return float(sum(int(value) for name, value in architecture.items() if name != "depth"))


class Widths(ArchitectureCost):
    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        del model
        return widths(architecture)


@pytest.fixture(scope="module")
def table() -> CostTable:
    return CostTable(SPACE, widths, buckets=5, draws=600, seed=3)


@functools.cache
def drawn(seed: int = 3, draws: int = 600) -> tuple[Architecture, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(SPACE.sample(generator) for _ in range(draws))


def place(cost: float, buckets: int = 5) -> int:
    """Bucket of a cost by comparison with the edges between the lowest and highest cost drawn."""
    costs = [widths(architecture) for architecture in drawn()]
    low, high = min(costs), max(costs)
    edges = [low + (high - low) * i / buckets for i in range(1, buckets)]
    return sum(cost >= edge for edge in edges)


def test_shares_and_marginals_are_those_of_random_architectures(table: CostTable) -> None:
    places = [place(widths(architecture)) for architecture in drawn()]
    assert table.shares.tolist() == pytest.approx([places.count(bucket) / 600 for bucket in range(5)])
    for bucket in range(5):
        members = [a for a, where in zip(drawn(), places, strict=True) if where == bucket]
        for choice in SPACE.choices:
            counts = Counter(a[choice.name] for a in members if choice.name in a)
            expected = [counts[candidate] for candidate in choice.candidates] if counts else [1] * choice.size
            assert table.marginals[bucket][choice.name].tolist() == expected


def test_draws_lie_in_their_bucket_and_targets_follow_the_shares(table: CostTable) -> None:
    generator = torch.Generator().manual_seed(0)
    for bucket in range(5):
        assert {place(widths(table.draw(bucket, generator))) for _ in range(20)} == {bucket}
    targets = Counter(table.target(generator) for _ in range(2000))
    for bucket, share in enumerate(table.shares.tolist()):
        assert targets[bucket] / 2000 == pytest.approx(share, abs=0.04)


def test_a_bucket_that_cannot_be_hit_ends_after_a_hundred_tries() -> None:
    asked: list[Architecture] = []

    def cost(architecture: Architecture) -> float:
        asked.append(architecture)
        return widths(architecture)

    table = CostTable(SPACE, cost, buckets=5, draws=50, seed=0)
    table.bucket = lambda _: -1  # type: ignore[method-assign]
    table.cost = cost  # type: ignore[assignment]
    asked.clear()
    assert SPACE.contains(table.draw(2, torch.Generator()))
    assert len(asked) == 100


class Scores:
    """Loss that prefers a narrow first layer; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Architecture] = []

    def __call__(self, architecture: Architecture) -> float:
        self.asked.append(architecture)
        return float(architecture.integer("layer1.width")) + 0.01 * len(architecture)


def attended(rule: AttentiveRule, step: int) -> tuple[list[Slot], list[Architecture]]:
    scores = Scores()
    return list(rule.slots(SPACE, seed=1, step=step, score=scores)), scores.asked


@pytest.mark.parametrize(("target", "choose"), [("best", min), ("worst", max)])
def test_the_best_or_the_worst_of_some_architectures_of_one_cost_is_trained(target: Any, choose: Any) -> None:
    rule = AttentiveRule(target, candidates=4, n_attentive=1, buckets=5, draws=300, cost=Widths)
    table = rule.table(SPACE, 1)
    several = 0
    for step in range(30):
        (first, second, third), asked = attended(rule, step)
        assert (first, second) == (Slot(SPACE.largest(), "teacher"), Slot(SPACE.smallest(), "student"))
        assert third.role == "student"
        if asked:
            several += 1
            assert 2 <= len(asked) <= 4
            assert third.architecture == choose(asked, key=Scores())
            assert len({table.bucket(widths(architecture)) for architecture in asked}) == 1
    assert several > 20


def test_slots_depend_on_seed_step_and_scores_alone() -> None:
    def sequence(seed: int) -> list[list[Slot]]:
        rule = AttentiveRule(draws=100, cost=Widths)
        return [list(rule.slots(SPACE, seed=seed, step=step, score=Scores())) for step in range(10)]

    assert sequence(1) == sequence(1)
    assert sequence(1) != sequence(2)
    assert len({slot.architecture for slots in sequence(1) for slot in slots[2:]}) > 10


def test_one_candidate_needs_no_score_and_labels_need_no_teacher() -> None:
    rule = AttentiveRule(candidates=1, n_attentive=3, draws=50, distillation=False, cost=Widths)
    slots, asked = attended(rule, 0)
    assert not asked
    assert [slot.role for slot in slots] == ["labels"] * 5


def test_costs_are_parameters_or_macs() -> None:
    for architecture in (SPACE.smallest(), SPACE.middle(), SPACE.largest()):
        built = sum(parameter.numel() for parameter in SPACE.build(architecture).parameters())
        assert AttentiveRule(draws=2).table(SPACE, 0).cost(architecture) == built
        counted = AttentiveRule(draws=2, cost=nas.MACs).table(SPACE, 0).cost(architecture)
        assert (
            counted == cost_of(SPACE, nas.MACs)(architecture) == measure([nas.MACs(SPACE)], SPACE, architecture)["macs"]
        )


def test_yaml_names_the_cost_and_the_rule_is_built_again() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--rule", type=SamplingRule)
    text = "rule: {class_path: supernets.AttentiveRule, init_args: {target: worst, cost: nas.MACs, draws: 20}}"
    rule = parser.instantiate(parser.parse_string(text)).rule
    again = construct(describe(rule))
    for made in (rule, again):
        assert made.target == "worst"
        assert cost_of(SPACE, made.cost)(SPACE.largest()) == cost_of(SPACE, nas.MACs)(SPACE.largest())


def test_it_trains_and_scores_on_the_present_batch(labelled: Any, fit: Callable[..., L.Trainer]) -> None:
    rule = AttentiveRule(candidates=3, n_attentive=1, draws=50, cost=Widths)
    supernet = Supernet(SPACE, Classification(4), rule=rule)
    trained: list[Architecture] = []
    expected: list[Architecture] = []
    step_loss, score = supernet.step_loss, supernet.score
    scored: dict[Architecture, float] = {}

    def scoring(architecture: Architecture, batch: Any) -> float:
        scored[architecture] = score(architecture, batch)
        return scored[architecture]

    def training(slot: Slot, batch: Any, teacher: Any) -> Any:
        if torch.is_grad_enabled():
            trained.append(slot.architecture)
            if len(trained) % 3 == 0 and scored:
                expected.append(min(scored, key=lambda a: scored[a]))
                assert slot.architecture == expected[-1]
                scored.clear()
        return step_loss(slot, batch, teacher)

    supernet.step_loss, supernet.score = training, scoring  # type: ignore[method-assign]
    fit(supernet, labelled(SPACE), 6)
    assert len(expected) >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "median"}, "target must be 'best' or 'worst', got 'median'"),
        ({"candidates": 0}, "candidates=0"),
        ({"buckets": 0}, "buckets=0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentiveRule(**options)


def test_a_cost_that_tells_nothing_apart_is_refused_when_the_supernet_is_made() -> None:
    rule = AttentiveRule(cost=lambda _: lambda architecture, model: 1.0)
    with pytest.raises(ValueError, match=r"grow from the smallest .* got 1.0 and 1.0; use another cost"):
        rule.check(SPACE, Supernet(SPACE, Classification(4)).source)
