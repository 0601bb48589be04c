"""Gates between nested bitwidths."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from supernets.bit_gates import gate, open_gates, residual_metric, shares
from supernets.quantizers import SBS
from supernets.relaxed_bits import superposed


def single_shot(z: np.ndarray, bits: int) -> np.ndarray:
    """``D(z, s_b) = s_b round(z / s_b)`` with ``s_b = 1 / (2^b - 1)``."""
    step = 1 / (2**bits - 1)
    return step * np.round(z / step)


def test_the_decomposition_of_shared_bits_equals_single_shot_rounding_off_ties() -> None:
    z = np.random.default_rng(0).random(20_000)
    two = single_shot(z, 2)
    four = two + single_shot(z - two, 4)
    eight = four + single_shot(z - four, 8)
    assert np.abs(four - single_shot(z, 4)).max() < 1e-12
    assert np.abs(eight - single_shot(z, 8)).max() < 1e-12


def test_the_superposition_of_shared_bits_is_the_gated_decomposition() -> None:
    """``z_2 + g_4 (e_4 + g_8 e_8)`` for any values of the gates, by the equations of the paper."""
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = torch.tensor(1.7, dtype=torch.float64)
    gates = torch.tensor([0.7, 0.4], dtype=torch.float64)
    z = (np.clip(weight.numpy() / 1.7, -1, 1) + 1) / 2
    two = single_shot(z, 2)
    four = single_shot(z - two, 4)
    eight = single_shot(z - two - four, 8)
    expected = 1.7 * (2 * (two + 0.7 * (four + 0.4 * eight)) - 1)
    quantizer = SBS("tensor")
    found = superposed([partial(quantizer, weight, b, scale) for b in (2, 4, 8)], shares(gates))
    assert np.abs(found.numpy() - expected).max() < 1e-12


@pytest.mark.parametrize(
    ("gates", "expected"), [((0, 0), (1, 0, 0)), ((1, 0), (0, 1, 0)), ((1, 1), (0, 0, 1)), ((0, 1), (1, 0, 0))]
)
def test_hard_gates_lead_to_one_bitwidth_and_a_closed_one_closes_the_rest(gates, expected) -> None:
    assert shares(torch.tensor(gates, dtype=torch.float32)).tolist() == list(expected)
    metric = torch.ones(2)
    assert expected[open_gates(metric, torch.tensor([0.5 if g else 1.5 for g in gates]))] == 1


def test_shares_add_up_to_one_and_are_differentiable() -> None:
    gates = torch.tensor([0.8, 0.5, 0.25], requires_grad=True)
    found = shares(gates)
    assert found.tolist() == pytest.approx([0.2, 0.8 * 0.5, 0.8 * 0.5 * 0.75, 0.8 * 0.5 * 0.25])
    (gradient,) = torch.autograd.grad(found[2], gates)
    assert gradient.tolist() == pytest.approx([0.5 * 0.75, 0.8 * 0.75, -0.8 * 0.5])


def test_a_gate_is_hard_and_its_threshold_gets_the_slope_of_a_sigmoid() -> None:
    metric = torch.tensor([1.0, 1.0], requires_grad=True)
    threshold = torch.tensor([0.25, 2.0], requires_grad=True)
    found = gate(metric, threshold)
    assert found.tolist() == [1.0, 0.0]
    found.sum().backward()
    for value, distance in zip(threshold.grad.tolist(), (0.75, -1.0), strict=True):
        sigma = 1 / (1 + math.exp(-distance))
        assert value == pytest.approx(-sigma * (1 - sigma))
    assert metric.grad is None


def test_the_metric_is_one_for_spread_out_values_at_any_bits_and_less_on_the_grid() -> None:
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 3
    for bits in (2, 4, 8):
        step = torch.tensor(3 / (2**bits - 1))
        quantized = (values / step).round() * step
        assert float(residual_metric(values, quantized, step, (0, 2**bits - 1))) == pytest.approx(1, abs=0.02)
        assert float(residual_metric(quantized, quantized, step, (0, 2**bits - 1))) == pytest.approx(0, abs=1e-6)
    wide = torch.tensor([10.0, -5.0])
    assert float(residual_metric(wide, torch.tensor([3.0, 0.0]), torch.tensor(1.0), (0, 3))) == 0


def test_what_is_certain_and_needs_no_gradient_is_not_computed() -> None:
    asked = []

    def at(position: int) -> torch.Tensor:
        asked.append(position)
        return torch.tensor(float(position))

    parts = [partial(at, position) for position in range(3)]
    assert superposed(parts, torch.tensor([0.0, 1.0, 0.0])) == 1
    assert asked == [1]
    assert superposed(parts, torch.tensor([0.0, 1.0, 0.0], requires_grad=True)) == 1
    assert asked == [1, 0, 1, 2]
