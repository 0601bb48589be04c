"""Equations of magnitude-invariant parametrization (arXiv 2304.07645) and the switches around them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hypernets import Bounded, Categorical, Examples, Gaussian, Parametrization, Target, Unit
from hypernets.parametrization import ConditionEncoder, Residual, encode_unit
from tests.hypernets.family import ENCODED, HOMOGENEOUS, make


def code(fields, condition, encoding):
    encoder = ConditionEncoder(fields, encoding)
    return encoder(encoder.read(condition, like=torch.zeros(1)))


def test_cos_sin_is_the_equation_of_the_paper_divided_by_the_root_of_the_number_of_components():
    values = torch.rand(7, 3)
    numpy = values.numpy().astype(np.float64)
    expected = np.concatenate([np.cos(np.pi * numpy / 2), np.sin(np.pi * numpy / 2)], axis=1) / np.sqrt(3)
    np.testing.assert_allclose(encode_unit(values, "cos_sin"), expected, atol=1e-6)


def test_the_other_encodings():
    values = torch.tensor([[0.0, 0.3], [0.6, 0.8]])
    torch.testing.assert_close(
        encode_unit(values, "complement"), torch.tensor([[0, 0.3, 1, 0.7], [0.6, 0.8, 0.4, 0.2]]) / 2
    )
    torch.testing.assert_close(encode_unit(values, "unit_norm"), torch.tensor([[0.0, 1.0], [0.6, 0.8]]))
    assert encode_unit(values, "none") is values


@pytest.mark.parametrize("encoding", ["cos_sin", "complement", "unit_norm"])
def test_codes_have_norm_one_whatever_the_condition(encoding):
    fields = {"a": Bounded(-5, 5, size=3), "b": Categorical(4), "c": Examples(6), "d": Gaussian(2)}
    condition = {
        "a": torch.rand(9, 3) * 10 - 5,
        "b": torch.arange(9) % 4,
        "c": torch.randn(9, 5, 6) * torch.logspace(-2, 2, 9)[:, None, None],
        "d": torch.randn(9, 2),
    }
    found = code(fields, condition, encoding)
    if encoding == "complement":
        for part in ("a", "d"):
            assert code({part: fields[part]}, {part: condition[part]}, encoding).sum(1).tolist() == pytest.approx(
                [1] * 9
            )
    else:
        assert found.norm(dim=1).tolist() == pytest.approx([1] * 9, abs=1e-5)
    assert found.shape == (9, ConditionEncoder(fields, encoding).width)


def test_without_encoding_numbers_enter_as_they_are():
    found = code({"a": Gaussian(2), "b": Bounded(0, 10)}, {"a": torch.tensor([[2.0, -3.0]]), "b": 4.0}, "none")
    assert found.tolist() == [[2, -3, pytest.approx(0.4)]]


def test_order_of_fields_does_not_matter():
    fields = {"a": Unit(), "b": Unit(2)}
    condition = {"a": torch.rand(3), "b": torch.rand(3, 2)}
    swapped = {name: condition[name] for name in reversed(condition)}
    expected = code(fields, condition, "cos_sin")
    assert torch.equal(code({name: fields[name] for name in reversed(fields)}, swapped, "cos_sin"), expected)


def test_a_set_has_no_order():
    torch.manual_seed(0)
    encoder = ConditionEncoder({"data": Examples(3)}, "cos_sin")
    examples = torch.randn(2, 6, 3)
    first, second = (encoder({"data": values}) for values in (examples, examples[:, torch.randperm(6)]))
    torch.testing.assert_close(first, second)
    assert (encoder({"data": examples[:, :3]}) - first).abs().max() > 1e-3


def test_fields_and_counts_must_agree():
    encoder = ConditionEncoder({"a": Unit(), "b": Unit()}, "cos_sin")
    read = encoder.read({"a": torch.rand(4), "b": 0.5}, like=torch.zeros(1))
    assert {name: value.shape for name, value in read.items()} == {"a": (4,), "b": (4,)}
    assert encoder.read({"a": torch.rand(0), "b": 0.5}, like=torch.zeros(1))["b"].shape == (0,)
    with pytest.raises(ValueError, match=r"missing=\['b'\], unknown=\['c'\]"):
        encoder.read({"a": 0.5, "c": 0.5}, like=torch.zeros(1))
    with pytest.raises(ValueError, match="the same K in front"):
        encoder.read({"a": torch.rand(4), "b": torch.rand(3)}, like=torch.zeros(1))
    with pytest.raises(ValueError, match="at least one condition field"):
        ConditionEncoder({}, "cos_sin")
    with pytest.raises(ValueError, match=r"maps every value of .* to 1; use 'cos_sin'"):
        ConditionEncoder({"a": Unit()}, "unit_norm")


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"encoding": "fourier"}, "encoding must be one of"),
        ({"residual": "yes"}, "residual must be one of"),
        ({"head_init": "xavier"}, "head_init must be one of"),
        ({"head_init": "zero", "residual": "none"}, "starts all weights at zero"),
        ({"head_init": "zero", "residual": "zero"}, "starts all weights at zero"),
    ],
)
def test_wrong_switches_are_refused(switches, message):
    with pytest.raises(ValueError, match=message):
        Parametrization(**switches)


@pytest.mark.parametrize("name", ENCODED)
def test_weights_are_the_residual_plus_the_delta_of_the_code(name):
    hypernet = make(name)
    condition = hypernet.draw(4, generator=torch.Generator().manual_seed(0))
    weights, deltas = hypernet.generate(condition), hypernet.deltas(condition)
    for spec in hypernet.target:
        torch.testing.assert_close(weights[spec.name], hypernet.residual(spec.name) + deltas[spec.name])
    without = make(name, parametrization=Parametrization(residual="none"))
    assert set(without.generate(condition)) == set(weights)
    assert not list(without.residual.parameters())


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("kind", ["none", "zero", "learned", "frozen"])
def test_residual_kinds(name, kind):
    hypernet = make(name, parametrization=Parametrization(residual=kind))
    shapes = hypernet.target.shapes
    values = {n: hypernet.residual(n) for n in shapes}
    if kind == "none":
        assert set(values.values()) == {None}
    else:
        assert {n: tuple(v.shape) for n, v in values.items()} == shapes
        assert all(v.requires_grad == (kind != "frozen") for v in values.values())
        assert (values["0.weight"].abs().sum() == 0) == (kind == "zero")
        assert (values["1.weight"] == (0 if kind == "zero" else 1)).all()


def norms(hypernet, scales):
    direction = torch.tensor([[0.6, 0.0, 0.8]])
    with torch.no_grad():
        sets = hypernet.generate({"g": direction * torch.tensor(scales)[:, None]})
    return torch.stack([value.flatten(1).square().sum(1) for value in sets.values()]).sum(0).sqrt()


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_ordinary_weights_are_proportional_to_the_condition_and_magnitude_invariant_ones_are_not(name):
    """Section 3 of the paper: with zero biases and leaky ReLU the norm of the weights is that of the condition."""
    scales = [0.01, 0.1, 1.0]
    options = {"target": Target.of(nn.Linear(60, 70)), "conditions": {"g": Unit(3)}, "hidden": (16, 64, 128)}
    ordinary = norms(make(name, **options, parametrization=Parametrization.ordinary()), scales)
    torch.testing.assert_close(ordinary / ordinary[-1], torch.tensor(scales), rtol=1e-3, atol=0)
    invariant = norms(make(name, **options), scales)
    slopes = np.polyfit(np.log(scales), np.log(invariant.numpy()), 1)
    assert abs(slopes[0]) < 0.02


@pytest.mark.parametrize("name", ENCODED)
def test_zero_heads_start_at_the_residual_and_still_learn(name):
    hypernet = make(name, parametrization=Parametrization(head_init="zero"))
    condition = {"strength": torch.rand(3), "mix": torch.rand(3, 3)}
    assert all((value == 0).all() for value in hypernet.deltas(condition).values())
    sum(value.square().sum() + value.sum() for value in hypernet.generate(condition).values()).backward()
    with torch.no_grad():
        for parameter in hypernet.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    deltas = hypernet.deltas(condition)
    assert all((value != 0).any() for value in deltas.values())


@pytest.mark.parametrize("name", ENCODED)
def test_hyperfan_heads_start_with_the_deviations_of_an_ordinary_network(name):
    hypernet = make(name, target=Target.of(nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 20))),
                    parametrization=Parametrization(residual="none", head_init="hyperfan"))  # fmt: skip
    sets = hypernet.generate(hypernet.draw(200, generator=torch.Generator().manual_seed(1)))
    for index, fan_in in ((0, 30), (1, 40)):
        measured = sets[f"{index}.weight"].square().mean().sqrt().item()
        assert measured == pytest.approx(math.sqrt(2 / fan_in), rel=0.25)
        assert (sets[f"{index}.bias"] == 0).all()


def test_hyperfan_needs_conditions_that_can_be_drawn():
    with pytest.raises(ValueError, match="take it from data"):
        make("dense", conditions={"data": Examples(3)}, parametrization=Parametrization(head_init="hyperfan"))


def test_fan_out_heads_start_each_tensor_by_its_number_of_values():
    hypernet = make("dense", target=Target.of(nn.Sequential(nn.Linear(50, 60), nn.Linear(60, 4))))
    rows = hypernet.head.split([3000, 60, 240, 4])
    assert rows[0].std().item() == pytest.approx(math.sqrt(2 / 3000), rel=0.05)
    assert rows[2].std().item() == pytest.approx(math.sqrt(2 / 240), rel=0.05)
    assert (rows[1] == 0).all()
    assert (rows[3] == 0).all()


@pytest.mark.parametrize("kind", ["learned", "frozen"])
def test_the_residual_starts_from_given_weights(kind):
    module = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    hypernet = make("dense", parametrization=Parametrization(residual=kind, head_init="zero"))
    hypernet.start_from(module)
    weights = hypernet.generate({"strength": 0.3, "mix": torch.rand(1, 3)})
    assert all(torch.equal(weights[name][0], value) for name, value in module.named_parameters())
    hypernet.start_from({name: value + 1 for name, value in module.state_dict().items()})
    torch.testing.assert_close(hypernet.residual("3.bias"), module[3].bias + 1)
    with pytest.raises(ValueError, match=r"missing \['1.weight'"):
        hypernet.start_from(nn.Sequential(nn.Linear(5, 6)))
    with pytest.raises(ValueError, match="start_from needs a residual"):
        make("dense", parametrization=Parametrization(residual="none")).start_from(module)


def test_residual_stays_exact_when_generated_weights_are_bfloat16():
    target = Target.of(nn.Linear(40, 30).bfloat16())
    hypernet = make("chunked", target=target, conditions={"g": Unit()})
    assert {value.dtype for value in hypernet.residual.parameters()} == {torch.float32}
    weights = hypernet.generate({"g": 0.5})
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    exact = hypernet.residual("weight") + hypernet.deltas({"g": 0.5})["weight"]
    assert torch.equal(weights["weight"], exact.bfloat16())


def test_growing_a_category_keeps_the_others():
    encoder = ConditionEncoder({"a": Unit(), "task": Categorical(2, embedding=5)}, "cos_sin")
    condition = {"a": torch.rand(2), "task": torch.arange(2)}
    before = encoder(encoder.read(condition, like=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        encoder.read({"a": 0.5, "task": 2}, like=torch.zeros(1))
    assert encoder.grow("task") == 2
    assert encoder.fields["task"] == Categorical(3, embedding=5)
    assert torch.equal(encoder(encoder.read(condition, like=torch.zeros(1))), before)
    assert encoder(encoder.read({"a": 0.5, "task": 2}, like=torch.zeros(1))).shape == (1, encoder.width)
    for wrong in ("a", "b"):
        with pytest.raises(ValueError, match="must be a Categorical field to grow"):
            encoder.grow(wrong)


def test_residuals_of_names_with_dots_are_told_apart():
    target = Target.of(nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(1, 1)}), "a_b": nn.Linear(1, 1)}))
    residual = Residual(target, "learned")
    assert len(list(residual.parameters())) == len(target.tensors) == 4
    assert residual("a.b.weight") is not residual("a_b.weight")
