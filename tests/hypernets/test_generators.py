"""The contract of every generator."""

import pytest
import torch
from torch import nn

from hypernets import Categorical, Examples, Gaussian, HyperCard, Target, Unit, apply, apply_many
from tests.hypernets.family import GENERATORS, make, module

SEEDED = torch.Generator


def some(hypernet, count, seed=0):
    return hypernet.draw(count, generator=torch.Generator().manual_seed(seed))


def of_set(condition, k):
    return {name: value[k : k + 1] for name, value in condition.items()}


@pytest.fixture(params=GENERATORS)
def name(request):
    return request.param


@pytest.mark.parametrize("count", [0, 1, 3])
def test_k_is_always_in_front(name, count):
    hypernet = make(name)
    weights = hypernet.generate(some(hypernet, count))
    assert {n: tuple(v.shape) for n, v in weights.items()} == {
        n: (count, *s) for n, s in hypernet.target.shapes.items()
    }
    assert list(weights) == list(hypernet.target.names)
    hypernet.target.check(weights, sets=count)


def test_k_sets_at_once_equal_k_sets_one_by_one(name):
    hypernet = make(name)
    condition = some(hypernet, 3)
    together = hypernet.generate(condition)
    for k in range(3):
        alone = hypernet.generate(of_set(condition, k))
        for n, value in alone.items():
            torch.testing.assert_close(value[0], together[n][k], rtol=1e-5, atol=1e-6)


def test_different_conditions_give_different_weights_in_every_weight_tensor(name):
    hypernet = make(name)
    weights = hypernet.generate(some(hypernet, 2))
    assert all((value[0] != value[1]).any() for n, value in weights.items() if n.endswith("weight"))


def test_a_part_equals_that_part_of_the_whole(name):
    hypernet = make(name)
    condition = some(hypernet, 2)
    whole = hypernet.generate(condition)
    for asked in (("3.bias",), ("0.weight", "3.weight"), ("1.weight", "1.bias"), ("3.weight", "0.bias")):
        part = hypernet.generate(condition, {n: hypernet.target.shapes[n] for n in asked})
        assert set(part) == set(asked)
        for n in asked:
            torch.testing.assert_close(part[n], whole[n], rtol=1e-5, atol=1e-6)


def test_nothing_asked_gives_nothing_and_no_sets_stream_no_values(name):
    hypernet = make(name)
    assert hypernet.generate(some(hypernet, 2), {}) == {}
    assert list(hypernet.stream(some(hypernet, 2), {})) == []
    streamed = {n: tuple(value.shape) for n, value in hypernet.stream(some(hypernet, 0))}
    assert streamed == {n: (0, *shape) for n, shape in hypernet.target.shapes.items()}


def test_other_names_and_shapes_are_refused(name):
    hypernet = make(name)
    with pytest.raises(
        ValueError, match=r"unknown=\['9.weight'\], wrong=\['0.weight is \(7, 5\) instead of \(6, 5\)'\]"
    ):
        hypernet.generate(some(hypernet, 1), {"9.weight": (1,), "0.weight": (7, 5)})


@pytest.mark.parametrize("max_bytes", [1, 200, 1 << 30])
def test_streaming_yields_the_same_tensors_in_order_without_gradients(name, max_bytes):
    hypernet = make(name)
    condition = some(hypernet, 2)
    whole = hypernet.generate(condition)
    streamed = []
    for n, value in hypernet.stream(condition, max_bytes=max_bytes):
        assert torch.is_grad_enabled()
        assert not value.requires_grad
        torch.testing.assert_close(value, whole[n], rtol=1e-5, atol=1e-6)
        streamed.append(n)
    assert streamed == list(hypernet.target.names)
    part = dict(hypernet.stream(condition, {"3.weight": (3, 6)}, max_bytes=max_bytes))
    torch.testing.assert_close(part["3.weight"], whole["3.weight"], rtol=1e-5, atol=1e-6)


def test_streaming_checks_before_it_starts(name):
    hypernet = make(name)
    with pytest.raises(ValueError, match="must lie in"):
        hypernet.stream({"strength": 2.0, "mix": torch.rand(1, 3)})
    with pytest.raises(ValueError, match="max_bytes must be >= 1"):
        hypernet.stream(some(hypernet, 1), max_bytes=0)


def test_gradients_reach_every_parameter_and_are_finite(name):
    hypernet = make(name)
    inputs = torch.randn(4, 5)
    for _ in range(2):  # parts of biases start at zero: what lies before them learns from the second step on
        hypernet.zero_grad()
        apply_many(module(), hypernet(some(hypernet, 3)), inputs).square().sum().backward()
        with torch.no_grad():
            for parameter in hypernet.parameters():
                parameter -= 1e-3 * parameter.grad
    for n, parameter in hypernet.named_parameters():
        assert parameter.grad is not None, n
        assert parameter.grad.isfinite().all(), n
        assert (parameter.grad != 0).any(), n


def test_conditions_have_gradients_of_first_and_second_order(name):
    target = Target.of(nn.Linear(3, 2).double())
    hypernet = make(name, target=target, conditions={"g": Unit(2)}).double()

    def function(values):
        return hypernet.generate({"g": values})["weight"]

    values = torch.rand(2, 2, dtype=torch.float64) * 0.8 + 0.1
    values.requires_grad_()
    assert torch.autograd.gradcheck(function, values)
    assert torch.autograd.gradgradcheck(function, values)


def test_generation_draws_no_random_numbers_and_changes_nothing(name):
    hypernet = make(name)
    condition = some(hypernet, 2)
    kept = {n: value.clone() for n, value in condition.items()}
    state = {n: value.clone() for n, value in hypernet.state_dict().items()}
    before = torch.get_rng_state()
    first, second = hypernet.generate(condition), hypernet.generate(condition)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert all(torch.equal(condition[n], kept[n]) for n in kept)
    assert all(torch.equal(value, state[n]) for n, value in hypernet.state_dict().items())


def test_a_wrong_condition_changes_nothing(name):
    hypernet = make(name)
    expected = hypernet.generate(some(hypernet, 1))
    with pytest.raises(ValueError, match="must lie in"):
        hypernet.generate({"strength": 7.0, "mix": torch.rand(1, 3)})
    found = hypernet.generate(some(hypernet, 1))
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_state_dict_round_trip(name):
    first, second = make(name, seed=1), make(name, seed=2)
    condition = some(first, 2)
    assert (first.generate(condition)["0.weight"] != second.generate(condition)["0.weight"]).any()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(value, second.generate(condition)[n]) for n, value in first.generate(condition).items())


def test_constructor_arguments_are_kept(name):
    hypernet = make(name)
    for argument, value in GENERATORS[name].keywords.items():
        assert getattr(hypernet, argument) == value
    assert hypernet.target == Target.of(module())
    assert hypernet.conditions == {"mix": Unit(3), "strength": Unit()}


def test_every_kind_of_condition_works(name):
    conditions = {"task": Categorical(3), "noise": Gaussian(2), "data": Examples(4)}
    hypernet = make(name, conditions=conditions)
    condition = {"task": torch.tensor([0, 1]), "noise": torch.randn(2, 2), "data": torch.randn(1, 6, 4)}
    weights = hypernet.generate(condition)
    assert weights["0.weight"].shape == (2, 6, 5)
    assert hypernet.add_task() == 3
    after = hypernet.generate(condition)
    assert all(torch.equal(after[n], weights[n]) for n in weights)
    assert hypernet.generate({**condition, "task": 3})["0.weight"].isfinite().all()


class Shared(nn.Module):
    """Tied embedding and output, a layer used twice, a scalar, an empty tensor, a buffer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.block = nn.Linear(4, 4)
        self.again = self.block
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.ones(()))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("shift", torch.tensor(2.0))

    def forward(self, tokens):
        hidden = self.again(self.block(self.embed(tokens)).tanh())
        return self.head(hidden * self.gain + self.shift + self.empty.sum())


def test_ties_scalars_empty_tensors_and_buffers(name):
    target = Shared()
    hypernet = make(name, target=Target.of(target), conditions={"g": Unit()})
    weights = hypernet.generate({"g": torch.rand(2)})
    assert weights["gain"].shape == (2,)
    assert weights["empty"].shape == (2, 0, 3)
    assert "head.weight" not in weights
    tokens = torch.tensor([[1, 2, 3]])
    assert apply_many(target, weights, tokens).shape == (2, 1, 3, 7)
    chosen = {n: value[1] for n, value in weights.items()}
    own = Shared()
    own.load_state_dict({**chosen, "head.weight": chosen["embed.weight"], "again.weight": chosen["block.weight"],
                         "again.bias": chosen["block.bias"], "shift": target.shift})  # fmt: skip
    torch.testing.assert_close(apply(target, chosen, tokens), own(tokens))
    asked = hypernet.generate({"g": torch.rand(2)}, {"head.weight": (7, 4)})
    assert list(asked) == ["embed.weight"]


def test_partial_targets_leave_the_rest_to_the_module(name):
    target = module()
    hypernet = make(name, target=Target.of(target, include=("3.*",)), conditions={"g": Unit()})
    weights = hypernet.generate({"g": torch.rand(2)})
    assert set(weights) == {"3.weight", "3.bias"}
    inputs = torch.randn(4, 5)
    found = apply_many(target, weights, inputs, partial=True)
    hidden = target[:3](inputs)
    for k in range(2):
        torch.testing.assert_close(found[k], hidden @ weights["3.weight"][k].T + weights["3.bias"][k])


def test_autocast_keeps_the_dtype_of_the_target(name):
    hypernet = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = hypernet.generate(some(hypernet, 1))
    assert {value.dtype for value in weights.values()} == {torch.float32}


@pytest.mark.parametrize("wrong", [{"hidden": ()}, {"hidden": (4, 0)}, {"width": 0}, {"chunk": 0}, {"rank": 0}])
def test_wrong_sizes_are_refused(name, wrong):
    if not hasattr(make(name), next(iter(wrong))):
        return
    with pytest.raises(ValueError, match=r">= 1|at least 1"):
        make(name, **wrong)


# The five criteria of the card, against what the generator does.


def test_card_is_complete_and_names_its_inputs(name):
    card = make(name).card
    assert isinstance(card, HyperCard)
    assert (card.inputs, card.input_variability) == (("task",), "dynamic")
    assert make(name, conditions={"task": Categorical(2)}).card.input_variability == "static"
    several = make(name, conditions={"a": Gaussian(2), "b": Examples(2), "c": Categorical(2)}).card
    assert (several.inputs, several.input_variability) == (("task", "data", "noise"), "dynamic")
    assert HyperCard(**{**card.to_json(), "inputs": tuple(card.to_json()["inputs"])}) == card


def test_card_on_inputs_matches_behaviour(name):
    """Static inputs are a finite set; dynamic ones give new weights for values never seen."""
    static = make(name, conditions={"task": Categorical(2)})
    with pytest.raises(ValueError, match="must lie in"):
        static.generate({"task": 2})
    dynamic = make(name, conditions={"g": Unit()})
    sets = dynamic.generate({"g": torch.linspace(0, 1, 17)})["0.weight"].flatten(1)
    assert len(sets.unique(dim=0)) == 17


def test_card_on_outputs_matches_behaviour(name):
    """A head for all weights, chunks that a vector of their own decides, or parts that later parts depend on."""
    hypernet = make(name)
    condition = some(hypernet, 1)
    specs = hypernet.target.tensors

    def flat():
        return torch.cat([value.detach().flatten() for value in hypernet.deltas(condition).values()])

    if hypernet.card.outputs == "multi-head":
        if hypernet.card.architecture == "implicit":
            for place, spec in enumerate(specs):
                before = hypernet.deltas(condition)
                with torch.no_grad():
                    hypernet.functions.shift[place] += 1.0
                    hypernet.functions.head_shift[place] += 1.0
                after = hypernet.deltas(condition)
                assert [n for n in after if (after[n] != before[n]).any()] == [spec.name]
            return
        heads = [value for n, value in hypernet.named_parameters() if n.startswith("gates")]
        assert [len(head) for head in heads] == [spec.shape[0] for spec in specs]
        return
    if hypernet.card.outputs == "once":
        assert hypernet.head.shape[0] == hypernet.target.numel
        return
    with torch.no_grad():
        hypernet.head.scale += 1.0  # parts of biases start at zero
    before = flat()
    chosen = hypernet.head.pieces["1.weight"][0].first
    with torch.no_grad():
        hypernet.table[chosen] += 1.0
    changed = (flat() != before).nonzero().flatten()
    first = sum(spec.numel for spec in specs[:2])
    assert changed.min() == first
    if hypernet.card.outputs == "chunk-wise":
        assert changed.max() < first + specs[2].numel
    else:
        assert hypernet.card.outputs == "component-wise"
        assert changed.max() > first + specs[2].numel


def test_card_on_variability_of_outputs_and_architecture_matches_behaviour(name):
    hypernet = make(name)
    assert hypernet.card.output_variability == ("dynamic" if name == "implicit" else "static")
    if name == "implicit":
        assert hypernet.generate(some(hypernet, 1), {"0.weight": (4, 5)})["0.weight"].shape == (1, 4, 5)
        assert hypernet.card.architecture == "implicit"
        return
    with pytest.raises(ValueError, match="instead of"):
        hypernet.generate(some(hypernet, 1), {"0.weight": (7, 5)})
    recurrent = any(isinstance(layer, nn.RNNBase) for layer in hypernet.modules())
    gated = any(n.startswith("gates") for n, _ in hypernet.named_parameters())
    assert hypernet.card.architecture == ("rnn" if recurrent else "gates" if gated else "mlp")


def test_a_card_with_an_unknown_criterion_is_refused():
    card = make("dense").card
    with pytest.raises(ValueError, match="outputs of a card must be one of"):
        HyperCard(**{**card.to_json(), "outputs": "sometimes"})
    with pytest.raises(ValueError, match="inputs out of"):
        HyperCard(**{**card.to_json(), "inputs": ()})
