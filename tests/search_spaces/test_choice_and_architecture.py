import pickle
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces import Architecture, Choice, InvalidArchitectureError, MLPSpace, SearchSpace, derive_seed
from tests.programs import run_code

SCALARS = st.one_of(st.booleans(), st.integers(-9, 9), st.floats(-2, 2), st.text(max_size=4))


class Nested(SearchSpace):
    """Choices that hang on a choice that hangs on a choice; it is only counted, never built."""

    def __init__(self, choices) -> None:
        self.choices = tuple(choices)

    def build(self, architecture: Architecture) -> nn.Module:
        raise NotImplementedError

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError


NESTED = Nested(
    [
        Choice.integer("stages", 1, 3),
        Choice("stage2.depth", (1, 2, 4), requires=("stages", 2)),
        Choice("stage2.width", (8, 16), requires=("stage2.depth", 2)),
        Choice("operation", ("conv", "pool", "none"), "categorical"),
    ]
)


def test_nested_conditions_are_counted_and_listed_alike():
    listed = list(NESTED.architectures())
    # stages=1: 1; stages 2 and 3: depth 1 without width, depth 2 and 4 with two widths each; times three operations
    assert NESTED.size() == len(listed) == len(set(listed)) == (1 + 2 * (1 + 2 * 2)) * 3
    assert listed[0] == NESTED.smallest()
    assert len({tuple(NESTED.encode(a).tolist()) for a in listed}) == len(listed)


@given(st.dictionaries(st.text(min_size=1, max_size=5), SCALARS, max_size=5))
def test_an_architecture_survives_json_and_pickle(values):
    architecture = Architecture(values)
    assert dict(Architecture.from_json(architecture.to_json())) == values
    assert pickle.loads(pickle.dumps(architecture)) == architecture
    assert Architecture(dict(reversed(values.items()))).arch_id == architecture.arch_id


def test_true_is_not_one():
    assert Architecture({"a": True}) != Architecture({"a": 1})
    with pytest.raises(ValueError, match="must be one of"):
        Choice("a", (0, 1)).index(True)


def test_ids_digests_and_seeds_are_equal_in_another_process(tmp_path):
    space = MLPSpace(4, 2)
    here = f"{space.middle().arch_id} {space.digest} {derive_seed(1, 'a')}"
    code = (
        "from search_spaces import MLPSpace, derive_seed\n"
        "s = MLPSpace(4, 2)\n"
        "print(s.middle().arch_id, s.digest, derive_seed(1, 'a'))"
    )
    there = run_code(code, folder=tmp_path, scratch=tmp_path / "outputs")
    assert there.stdout == f"{here}\n", there.stderr


def test_the_digest_tells_spaces_apart():
    assert MLPSpace(4, 2).digest == MLPSpace(4, 2).digest
    assert MLPSpace(4, 2).digest != MLPSpace(5, 2).digest
    assert MLPSpace(4, 2).digest != MLPSpace(4, 2, depths=(1, 2)).digest


def test_a_draw_is_uniform_over_the_candidates():
    generator = torch.Generator().manual_seed(0)
    drawn = [NESTED.sample(generator)["stages"] for _ in range(3000)]
    for stages in (1, 2, 3):
        assert 900 < drawn.count(stages) < 1100


@pytest.mark.parametrize("text", ["", "[1]", '{"a": [1]}', '{"a": null}'])
def test_text_that_is_no_architecture_is_refused(text):
    with pytest.raises(InvalidArchitectureError, match="an architecture must be a JSON object"):
        Architecture.from_json(text)


def test_an_integer_is_asked_for_by_name():
    architecture = Architecture({"depth": 2, "flag": True})
    assert architecture.integer("depth") == 2
    for name in ("flag", "missing"):
        with pytest.raises(InvalidArchitectureError, match=rf"architecture\['{name}'\] must be an integer"):
            architecture.integer(name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choice("", (1,)), "a choice needs a non-empty name"),
        (lambda: Choice("a", ()), "choice 'a' needs at least one candidate, got none"),
        (lambda: Choice("a", (1, 1)), r"choice 'a': candidates must be distinct, got \(1, 1\)"),
        (lambda: Choice("a", (1,), cast("Any", "nominal")), "kind must be 'categorical' or 'ordinal', got 'nominal'"),
        (lambda: Choice("a", (2, 1)), r"must be ascending numbers, got \(2, 1\); sort them, or say kind="),
        (lambda: Choice("a", ("x",)), r"must be ascending numbers, got \('x',\)"),
        (lambda: Choice.integer("a", 3, 2), "low <= high and step >= 1 must hold, got low=3, high=2, step=1"),
        (lambda: Choice.parse("a", {"low": 1}), r"low, high and optionally step, got keys \['low'\]"),
        (lambda: Choice.parse("a", cast("Any", "8")), r"must be a list of candidates, e.g. \[8, 16, 32\], got '8'"),
    ],
)
def test_a_bad_choice_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([8, 16], Choice("a", (8, 16))),
        ((16, 8), Choice("a", (16, 8), "categorical")),
        (["x", "y"], Choice("a", ("x", "y"), "categorical")),
        ([False, True], Choice("a", (False, True), "categorical")),
        ({"low": 1, "high": 5, "step": 2}, Choice("a", (1, 3, 5))),
        (Choice("a", (1, 2)), Choice("a", (1, 2))),
    ],
)
def test_choices_are_read_as_yaml_spells_them(given, expected):
    assert Choice.parse("a", given) == expected


def test_choices_of_a_space_are_checked_together():
    with pytest.raises(ValueError, match="choices must have distinct names"):
        Nested([Choice("a", (1,)), Choice("a", (1,))]).smallest()
    with pytest.raises(ValueError, match="choice 'b' requires 'a', which must be an ordinal choice listed before it"):
        Nested([Choice("b", (1,), requires=("a", 1)), Choice("a", (1,))]).smallest()
    with pytest.raises(InvalidArchitectureError, match="no choice 'colour'; it has"):
        NESTED.choice("colour")


def test_a_space_of_one_architecture_mutates_into_itself():
    lonely = Nested([Choice("a", (1,))])
    assert lonely.mutate(lonely.smallest(), torch.Generator()) == lonely.smallest()
    assert lonely.size() == 1


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=3))
def test_seeds_are_63_bit_and_depend_on_the_kind_of_every_part(parts):
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    assert derive_seed(*parts, 0) != seed
    assert derive_seed(*parts, 1) != derive_seed(*parts, "1")


@pytest.mark.parametrize("sizes", [[1], [4] * 20, [2, 3, 4, 5, 7], [2**13, 3**5, 5**4]], ids=len)
def test_indices_are_those_of_one_draw_for_each_choice(sizes):
    space = Nested(Choice.integer(f"c{i}", 1, size) for i, size in enumerate(sizes))
    bulk, single = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    drawn = space.sample_indices(bulk)
    assert list(drawn.values()) == [int(torch.randint(size, (), generator=single)) for size in sizes]
    assert torch.equal(bulk.get_state(), single.get_state())
