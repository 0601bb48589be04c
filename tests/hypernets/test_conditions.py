import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from hypernets import ArchitectureCode, Bits, Bounded, Categorical, Examples, Gaussian, Real, Size, Unit
from hypernets.conditions import field_from_json

LIKE = torch.zeros(1)
FIELDS = [
    Unit(),
    Unit(3, clamp=True),
    Bounded(-2, 5),
    Bounded(0.1, 0.7, size=2),
    ArchitectureCode(4),
    Gaussian(3),
    Real(2),
    Size(8, 64),
    Bits((2, 4, 8)),
    Categorical(5, embedding=3),
]


@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_drawn_values_are_accepted_and_repeatable(field):
    drawn = field.draw(200, torch.Generator().manual_seed(0))
    read = field.read(drawn, "x", like=LIKE)
    assert read.shape == (200, *field.shape)
    assert torch.equal(drawn, field.draw(200, torch.Generator().manual_seed(0)))
    assert len(drawn.unique()) > (100 if read.is_floating_point() and not isinstance(field, Bits) else 2)


@pytest.mark.parametrize("field", [*FIELDS, Examples(4)], ids=str)
def test_json_round_trip(field):
    assert field_from_json(field.to_json()) == field


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match=r"field must be one of .* got 'Colour'"):
        field_from_json({"field": "Colour"})


@pytest.mark.parametrize(
    ("field", "values", "expected"),
    [
        (Unit(), [0, 0.25, 1], [0, 0.25, 1]),
        (Bounded(-2, 6), [-2, 0, 6], [0, 0.25, 1]),
        (Bounded(0.1, 0.7), [0.1, 0.7], [0, 1]),  # ends that float32 rounds are inside
        (Size(8, 32), [8, 16, 32, 24], [0, 0.5, 1, math.log(3) / math.log(4)]),
        (Bits((2, 4, 8)), [2, 4, 8], [0, 0.5, 1]),
    ],
    ids=str,
)
def test_values_have_a_place_in_the_unit_interval(field, values, expected):
    found = field.unit(field.read(torch.tensor(values), "x", like=LIKE))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_real_numbers_are_mapped_by_the_logistic_function():
    values = torch.tensor([[-3.0, 0.0, 1.5]])
    np.testing.assert_allclose(Real(3).unit(values), 1 / (1 + np.exp(-values.numpy())), rtol=1e-5)
    assert torch.equal(Real(3).raw(values), values)


def test_noise_is_mapped_by_its_distribution_function():
    noise = torch.tensor([[-3.0, 0.0, 1.5]])
    np.testing.assert_allclose(Gaussian(3).unit(noise), norm.cdf(noise.numpy()), rtol=1e-5)
    assert torch.equal(Gaussian(3).raw(noise), noise)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (Unit(), 1.001, r"'x' must lie in \[0, 1\], got values from 1.001"),
        (Unit(), -0.1, "must lie in"),
        (Unit(), math.nan, "must lie in"),
        (Unit(clamp=True), math.nan, "must lie in"),
        (Unit(2), torch.full((2,), 0.5), r"must have shape \(K, 2\).*got \(2,\)"),
        (
            Unit(2),
            torch.full(
                (
                    4,
                    3,
                ),
                0.5,
            ),
            "must have shape",
        ),
        (
            Unit(),
            torch.full(
                (
                    4,
                    1,
                ),
                0.5,
            ),
            "must have shape",
        ),
        (Bounded(1, 2), 0.5, "clamp=True"),
        (Gaussian(2), torch.tensor([[0.0, math.inf]]), "must lie in"),
        (Real(1), torch.tensor([[math.nan]]), "must lie in"),
        (Size(8, 32), 4, "must lie in"),
        (Bits((2, 4)), 3, r"must be one of \(2, 4\), got \[3.0\]"),
        (Categorical(3), 3, r"must lie in \[0, 2\]"),
        (Categorical(3), -1, "must lie in"),
        (Categorical(3), 0.5, "must be integers"),
        (ArchitectureCode(2), torch.tensor([[0.0, 2.0]]), "must lie in"),
        (
            Examples(4),
            torch.full(
                (
                    2,
                    0,
                    4,
                ),
                0.5,
            ),
            "must have shape",
        ),
        (
            Examples(4),
            torch.full(
                (
                    2,
                    5,
                    3,
                ),
                0.5,
            ),
            "must have shape",
        ),
        (Examples(2), torch.full((1, 1, 2), math.nan), "must be finite"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        field.read(value, "x", like=LIKE)


def test_values_outside_are_clamped_where_asked_for():
    assert Bounded(1, 2, clamp=True).read(torch.tensor([0.0, 1.5, 9.0]), "x", like=LIKE).tolist() == [1, 1.5, 2]
    assert Size(8, 32, clamp=True).read(100, "x", like=LIKE).tolist() == [32]


def test_a_value_is_not_changed_in_place_and_keeps_its_gradient():
    value = torch.tensor([0.5, 2.0], requires_grad=True)
    read = Bounded(0, 1, clamp=True).read(value, "x", like=LIKE.double())
    assert read.dtype == torch.float64
    assert value.tolist() == [0.5, 2.0]
    read.sum().backward()
    assert value.grad.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bounded(2, 2), "low < high must hold"),
        (lambda: Bounded(0, math.inf), "both be finite"),
        (lambda: Size(0, 4), "0 < low < high"),
        (lambda: Bits((4, 2)), "ascending"),
        (lambda: Bits((4,)), "two or more"),
        (lambda: Unit(0), ">= 1"),
        (lambda: Categorical(0), ">= 1"),
        (lambda: Examples(3, embedding=0), ">= 1"),
    ],
)
def test_wrong_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_examples_are_not_drawn():
    with pytest.raises(ValueError, match="take it from data"):
        Examples(3).draw(2, torch.Generator())
