import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces import InvalidArchitectureError, MLPSpace
from supernets import Classification, SandwichRule, SharedWeights, SingleRule, Slot, Supernet, UniformRule

SPACE = MLPSpace(12, 4, widths=(4, 6, 8, 10), depths=(1, 2, 3))


@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 10**9), count=st.integers(1, 4))
def test_uniform_slots_depend_on_seed_and_step_alone(seed: int, step: int, count: int) -> None:
    slots = UniformRule(count).slots(SPACE, seed=seed, step=step, score=lambda _: 0.0)
    assert slots == UniformRule(count).slots(SPACE, seed=seed, step=step, score=lambda _: 0.0)
    assert len(slots) == count
    assert all(slot.role == "labels" and SPACE.contains(slot.architecture) for slot in slots)


@pytest.mark.parametrize("rule", [UniformRule(2), SandwichRule(2)])
def test_other_seeds_and_other_steps_give_other_architectures(rule: UniformRule | SandwichRule) -> None:
    def draws(seed: int, steps: range) -> list[tuple[str, ...]]:
        return [
            tuple(s.architecture.arch_id for s in rule.slots(SPACE, seed=seed, step=step, score=lambda _: 0.0))
            for step in steps
        ]

    steps = range(20)
    assert draws(0, steps) != draws(1, steps)
    assert draws(0, range(10, 15)) == draws(0, steps)[10:15]
    assert len(set(draws(0, steps))) > 10


def test_slots_of_one_step_are_independent_draws() -> None:
    pairs = [UniformRule(2).slots(SPACE, seed=0, step=step, score=lambda _: 0.0) for step in range(50)]
    assert sum(a.architecture != b.architecture for a, b in pairs) > 40


def test_uniform_draws_every_candidate_of_every_choice() -> None:
    seen = {
        item
        for step in range(300)
        for item in UniformRule().slots(SPACE, seed=0, step=step, score=lambda _: 0.0)[0].architecture.items()
    }
    assert seen == {(choice.name, candidate) for choice in SPACE.choices for candidate in choice.candidates}


def test_the_sandwich_is_largest_then_smallest_then_random() -> None:
    first, second, *randoms = SandwichRule(3).slots(SPACE, seed=0, step=4, score=lambda _: 0.0)
    assert first == Slot(SPACE.largest(), "teacher")
    assert second == Slot(SPACE.smallest(), "student")
    assert [slot.role for slot in randoms] == ["student"] * 3


def test_without_distillation_everyone_learns_from_labels() -> None:
    slots = SandwichRule(1, distillation=False).slots(SPACE, seed=0, step=0, score=lambda _: 0.0)
    assert [slot.role for slot in slots] == ["labels"] * 3
    assert [s.architecture for s in slots[:2]] == [SPACE.largest(), SPACE.smallest()]


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"UniformRule.count must be >= 1, got 0"):
        UniformRule(0)
    with pytest.raises(ValueError, match=r"SandwichRule.n_random must be >= 0, got -1"):
        SandwichRule(-1)


def test_a_single_architecture_is_trained_reported_and_nothing_else() -> None:
    wanted = dict(SPACE.middle())
    net = Supernet(SPACE, Classification(4), rule=SingleRule(wanted))
    assert net.rule.slots(SPACE, seed=0, step=3, score=lambda _: 0.0) == [Slot(SPACE.middle(), "labels")]
    assert net.rule.selected() == SPACE.middle()
    assert net.anchors() == {"selected": SPACE.middle()}


def test_a_single_architecture_must_be_one_of_the_space() -> None:
    with pytest.raises(ValueError, match=r"SingleRule.architecture must be a mapping of choices, or one of .*'best'"):
        SingleRule("best")  # type: ignore[arg-type]
    name = SPACE.choices[0].name
    with pytest.raises(InvalidArchitectureError, match=name):
        SingleRule({**SPACE.middle(), name: 7777}).check(SPACE, SharedWeights(SPACE))
