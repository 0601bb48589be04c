"""Progressive shrinking: what each stage trains, and which lists of stages are refused."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import pytest
from jsonargparse import ArgumentParser

from search_spaces import CellSpace, Choice, ConvNetSpace, MLPSpace, SearchSpace, Stage, construct, describe
from supernets import (
    Classification,
    ProgressiveRule,
    SharedWeights,
    ShrinkingStage,
    Slot,
    Supernet,
    UniformRule,
)
from tests.search_spaces.test_coupling import Operations

SPACE = ConvNetSpace(
    [Stage((4, 6, 8), (1, 2, 3), (3, 5, 7), (1, 2), block="residual")], 4, resolutions=(6, 8), per_block=True
)
OFA = """
stages:
- {until: 10}
- {until: 20, elastic: {"*.kernel": all, resolution: all}}
- {until: 30, elastic: {"*.depth": 2}}
- {until: 40, elastic: {"*.depth": all}, n_random: 2}
- {elastic: {"*.width": all, "*.expansion": all}, n_random: 4, smallest: false, sort_channels: true}
"""


def parsed(text: str) -> ProgressiveRule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ProgressiveRule, "rule")
    indented = "\n".join(f"  {line}" for line in text.strip().splitlines())
    rule: ProgressiveRule = parser.instantiate(parser.parse_string(f"rule:\n{indented}")).rule
    return rule


@pytest.fixture(scope="module")
def rule() -> ProgressiveRule:
    return parsed(OFA)


def slots(rule: ProgressiveRule, step: int, space: SearchSpace = SPACE) -> list[Slot]:
    return list(rule.slots(space, seed=5, step=step, score=lambda _: 0.0))


def values(rule: ProgressiveRule, steps: range) -> dict[str, set[object]]:
    """Candidates that the students of some steps take, by last part of the name of the choice."""
    seen: dict[str, set[object]] = {}
    for step in steps:
        for slot in slots(rule, step)[1:]:
            for name, value in slot.architecture.items():
                seen.setdefault(name.rpartition(".")[2], set()).add(value)
    return seen


def test_yaml_spells_the_order_of_once_for_all(rule: ProgressiveRule) -> None:
    top = {"depth": {3}, "width": {8}, "expansion": {2}, "kernel": {7}, "resolution": {8}}
    opened = top | {"kernel": {3, 5, 7}, "resolution": {6, 8}}
    assert values(rule, range(10)) == {}
    assert values(rule, range(10, 20)) == opened
    assert values(rule, range(20, 30)) == opened | {"depth": {2, 3}}
    assert values(rule, range(30, 40)) == opened | {"depth": {1, 2, 3}}
    assert values(rule, range(40, 60)) == opened | {"depth": {1, 2, 3}, "width": {4, 6, 8}, "expansion": {1, 2}}


def test_the_largest_learns_alone_then_teaches(rule: ProgressiveRule) -> None:
    assert slots(rule, 0) == [Slot(SPACE.largest(), "labels")]
    first, smallest, *randoms = slots(rule, 35)
    assert first == Slot(SPACE.largest(), "teacher")
    expected = dict(SPACE.largest()) | {"resolution": 6, "stage1.depth": 1, "stage1.block1.kernel": 3}
    assert smallest == Slot(SPACE.architecture(expected), "student")
    assert [slot.role for slot in randoms] == ["student"] * 2
    assert [slot.role for slot in slots(rule, 50)] == ["teacher"] + ["student"] * 4


def test_without_distillation_all_learn_from_labels() -> None:
    rule = ProgressiveRule([ShrinkingStage(elastic={"*": "all"}, distillation=False)])
    assert [slot.role for slot in slots(rule, 3)] == ["labels"] * 3
    assert slots(rule, 3)[1].architecture == SPACE.smallest()


def test_slots_depend_on_seed_and_step_alone(rule: ProgressiveRule) -> None:
    assert slots(rule, 47) == slots(parsed(OFA), 47)
    draws = {slot.architecture for step in range(40, 60) for slot in slots(rule, step)[1:]}
    assert len(draws) > 60


def test_channels_are_sorted_once_where_the_stage_begins(rule: ProgressiveRule) -> None:
    assert [step for step in range(60) if rule.sorts(step)] == [40]
    assert not any(UniformRule().sorts(step) for step in range(5))


def test_it_is_described_and_built_again(rule: ProgressiveRule) -> None:
    again = construct(describe(rule))
    assert describe(again) == describe(rule)
    assert slots(again, 47) == slots(rule, 47)


def stage(**options: Any) -> ShrinkingStage:
    return ShrinkingStage(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProgressiveRule([]), "at least one ShrinkingStage, got none"),
        (lambda: ProgressiveRule([stage(until=5), stage(until=5), stage()]), r"ascending .* got \[5, 5, None\]"),
        (lambda: ProgressiveRule([stage(until=5), stage(until=9)]), r"last stage.* none; got \[5, 9\]"),
        (lambda: ProgressiveRule([stage(), stage()]), r"ascending .* got \[None, None\]"),
        (lambda: stage(until=0), "until must be a step >= 1, got 0"),
        (lambda: stage(n_random=-1), "n_random must be >= 0, got -1"),
        (lambda: stage(elastic={"*": 1}), r"elastic\['\*'\] must be 'all' or .* at least 2, got 1; leave"),
        (lambda: stage(elastic={"*": "some"}), "got 'some'"),
    ],
)
def test_bad_stages_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("elastic", "message"),
    [
        ({"*.kernels": "all"}, r"stage 1: elastic\['\*.kernels'\] matches no choice; give one of \['resolution', "),
        ({"*.kernel": 4}, r"asks for 4 candidates, but there are at most 3; use 'all'"),
        ({"*.kernel": "all"}, r"never open all candidates of \['resolution', 'stage1.width'.*; give the last stage"),
        ({"*": "all", "stage1.depth": 2}, r"never open all candidates of \['stage1.depth'\]"),
    ],
)
def test_stages_that_do_not_fit_the_space_are_refused_when_the_supernet_is_made(
    elastic: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Supernet(SPACE, Classification(4), rule=ProgressiveRule([stage(elastic=elastic)]))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            CellSpace(4, resolution=4, widths=(2, 2, 2), cells=1),
            r"channels of CellSpace .*, but no width does; set sort",
        ),
        (
            Operations("pool", "relu"),
            r"something else when those of \['0.weight'\] are reordered; set sort_channels: fa",
        ),
    ],
)
def test_sorting_is_refused_where_no_channels_can_be_sorted(space: SearchSpace, message: str) -> None:
    source = SharedWeights(space)
    ProgressiveRule([stage(elastic={"*": "all"})]).check(space, source)
    with pytest.raises(ValueError, match=message):
        ProgressiveRule([stage(elastic={"*": "all"}, sort_channels=True)]).check(space, source)


def test_categorical_choices_open_all_at_once() -> None:
    space = Operations("tanh", "relu")
    assert isinstance(space.choices[1], Choice)
    source = SharedWeights(space)
    with pytest.raises(ValueError, match=r"\['operation'\] have no largest candidates, being categorical; use 'all'"):
        ProgressiveRule([stage(elastic={"*": 2})]).check(space, source)
    rule = ProgressiveRule([stage(elastic={"*": "all"})])
    rule.check(space, source)
    drawn = {slot.architecture["operation"] for step in range(20) for slot in slots(rule, step, space)}
    assert drawn == {"tanh", "relu"}


def test_a_training_that_ends_before_the_last_stage_is_refused(labelled: Any, fit: Callable[..., L.Trainer]) -> None:
    space = MLPSpace(12, 4, widths=(4, 6), depths=(1, 2))
    rule = ProgressiveRule([stage(until=4), stage(elastic={"*": "all"})])
    supernet = Supernet(space, Classification(4), rule=rule)
    with pytest.raises(ValueError, match=r"begins at step 4, but training ends after 4; give more epochs"):
        fit(supernet, labelled(space), 4)
    fit(supernet, labelled(space), 5)
    rule.check_length(float("inf"))
