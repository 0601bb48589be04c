"""Every weight quantiser against its equation, written out here, and against other people's."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from search_spaces import InputQuantizer, fake_quantize
from search_spaces.quantizer import input_range
from supernets import LSQ, SBS, Binary, FixedPoint, StatsQ, Ternary, WeightQuantizer

Array = np.ndarray[Any, np.dtype[np.float64]]


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lsq(w: Array, bits: int, s: Array) -> Array:
    return s * np.round(np.clip(w / s, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))


def sbs(w: Array, bits: int, v: Array) -> Array:
    z = (np.clip(w / v, -1, 1) + 1) / 2
    return v * (2 * np.round(z * (2**bits - 1)) / (2**bits - 1) - 1)


def statsq(w: Array, bits: int, _: Array) -> Array:
    n, s = 2 ** (bits - 1), 2 * np.abs(w).mean(1, keepdims=True)
    return s * (np.round(n * np.clip(w / s, -1, 1 - 1e-6) - 0.5) + 0.5) / n


def fixed_point(w: Array, bits: int, _: Array) -> Array:
    return np.clip(np.round(w * 2**3), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * 2.0**-3


def ternary(w: Array, bits: int, _: Array) -> Array:
    rows = []
    for row in w:
        kept = np.abs(row) > 0.7 * np.abs(row).mean()
        rows.append(np.abs(row[kept]).mean() * np.sign(row) * kept)
    return np.stack(rows)


def binary(w: Array, bits: int, _: Array) -> Array:
    return np.sign(w) * np.abs(w).mean(1, keepdims=True)


KINDS: dict[str, tuple[WeightQuantizer, Callable[[Array, int, Array], Array], tuple[int, ...]]] = {
    "lsq": (LSQ(), lsq, (2, 3, 4, 8, 12)),
    "lsq_tensor": (LSQ("tensor"), lsq, (2, 4, 8)),
    "sbs": (SBS(), sbs, (1, 2, 4, 8)),
    "statsq": (StatsQ(), statsq, (2, 3, 4, 8)),
    "fixed_point": (FixedPoint(3), fixed_point, (2, 4, 8)),
    "ternary": (Ternary(), ternary, (2,)),
    "binary": (Binary(), binary, (1,)),
}
CASES = [(name, bits) for name, (_, _, widths) in KINDS.items() for bits in widths]


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_values_are_those_of_the_equation_and_codes_give_them_to_the_bit(name: str, bits: int) -> None:
    quantizer, equation, _ = KINDS[name]
    w = weights(5, 40)
    scale = quantizer.initial(w, bits) if quantizer.learned else None
    quantizer.check([bits])
    given = quantizer(w, bits, scale)
    expected = equation(w.numpy(), bits, np.asarray(scale if scale is not None else 0.0))
    np.testing.assert_allclose(given.numpy(), expected, rtol=1e-12, atol=1e-12)
    codes = quantizer.codes(w, bits, scale)
    assert torch.equal(codes.value(), given)
    assert not codes.codes.is_floating_point()
    assert codes.codes.shape == w.shape
    assert int(codes.codes.max() - codes.codes.min()) < 2**bits
    leaf = w.clone().requires_grad_()
    assert torch.equal(quantizer(leaf, bits, scale), given), "gradients must not change values"


@pytest.mark.parametrize("quantizer", [StatsQ(), Ternary(), Binary()], ids=["statsq", "ternary", "binary"])
def test_gradients_pass_a_quantiser_of_statistics_unchanged(quantizer: WeightQuantizer) -> None:
    w = weights(3, 8).requires_grad_()
    upstream = weights(3, 8, seed=1)
    quantizer(w, 1 if isinstance(quantizer, Binary) else 2).backward(upstream)
    assert torch.equal(w.grad, upstream)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_gradients_of_a_learned_step_are_those_of_the_paper(offset: float) -> None:
    x, upstream = weights(4, 6) * 3, weights(4, 6, seed=1)
    s = torch.full((4, 1), 0.4, dtype=torch.float64)
    low, high, factor = -4, 3, 0.25
    of_x, of_s = np.zeros((4, 6)), np.zeros((4, 1))
    for row in range(4):
        for column in range(6):
            v = float(x[row, column] / s[row, 0]) - offset
            g = float(upstream[row, column])
            if low <= v <= high:
                of_x[row, column] = g
                of_s[row] += g * (round(v) - v)
            else:
                of_s[row] += g * ((low if v < low else high) + offset)
    x.requires_grad_()
    s.requires_grad_()
    fake_quantize(x, s, low, high, offset=offset, gradient_factor=factor).backward(upstream)
    np.testing.assert_allclose(x.grad, of_x)
    np.testing.assert_allclose(s.grad, of_s * factor)


def test_the_gradient_of_a_shared_range_is_the_derivative_of_its_equation() -> None:
    """``v (2 D(z) - 1)`` with the rounding taken for the identity in derivatives."""
    w, v = weights(1, 50), torch.tensor([[1.1]], dtype=torch.float64, requires_grad=True)
    SBS()(w, 2, v).sum().backward()
    inside = w.abs() <= v
    rounded = torch.from_numpy(sbs(w.numpy(), 2, v.detach().numpy()))
    slope = torch.where(inside, rounded / v - w / v, w.sign())
    assert v.grad.item() == pytest.approx(float(slope.sum().detach()) / math.sqrt(50 * 1), rel=1e-9)


def test_gradients_agree_with_the_learnable_fake_quantisation_of_torch() -> None:
    x, s = (weights(3, 7) * 2).float().requires_grad_(), torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    upstream = weights(3, 7, seed=1).float()
    zeros = torch.zeros(3, requires_grad=True)
    theirs = torch._fake_quantize_learnable_per_channel_affine(x, s, zeros, 0, -8, 7, 0.3)
    expected = torch.autograd.grad(theirs, (x, s), upstream)
    ours = fake_quantize(x, s[:, None], -8, 7, gradient_factor=0.3)
    given = torch.autograd.grad(ours, (x, s), upstream)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_gives_the_numbers_of_torchao_and_of_brevitas_at_the_same_scales(bits: int) -> None:
    from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp
    from brevitas.core.quant import IntQuant
    from torchao.quantization.quant_primitives import _fake_quantize_affine

    w = weights(5, 12).float()
    scale = LSQ().initial(w, bits)
    ours, low, high = LSQ()(w, bits, scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    zeros = torch.zeros(5, dtype=torch.int32)
    assert torch.equal(ours, _fake_quantize_affine(w, (1, 12), scale.flatten(), zeros, torch.int8, low, high))
    theirs = IntQuant(
        narrow_range=False,
        signed=True,
        float_to_int_impl=RoundSte(),
        tensor_clamp_impl=TensorClamp(),
        input_view_impl=Identity(),
    )
    assert torch.equal(ours, theirs(scale, torch.tensor(0.0), torch.tensor(float(bits)), w))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_step_of_lsq_starts_where_the_paper_starts_and_its_gradient_is_scaled(granularity: Any) -> None:
    quantizer, w = LSQ(granularity), weights(4, 3, 2, 2).requires_grad_()
    scale = quantizer.initial(w.detach(), 4)
    for row in range(4):
        part = w.detach() if granularity == "tensor" else w.detach()[row]
        expected = 2 * part.abs().mean() / math.sqrt(7)
        assert float(scale if granularity == "tensor" else scale[row]) == pytest.approx(float(expected))
    scale.requires_grad_()
    quantizer(w, 4, scale).sum().backward()
    unscaled = scale.detach().clone().requires_grad_()
    fake_quantize(w.detach(), unscaled, -8, 7).sum().backward()
    count = 48 if granularity == "tensor" else 12
    torch.testing.assert_close(scale.grad, unscaled.grad / math.sqrt(count * 7))


def test_shared_bits_are_nested_and_add_up_to_the_finer_grid() -> None:
    w, v = weights(1, 20_000), torch.tensor([[1.5]], dtype=torch.float64)

    def d(z: Tensor, bits: int) -> Tensor:
        s = 1 / (2**bits - 1)
        return s * (z / s).round()

    z = ((w / v).clamp(-1, 1) + 1) / 2
    for bits in (2, 4):
        coarse = d(z, bits)
        finer = coarse + d(z - coarse, 2 * bits)
        assert torch.allclose(v * (2 * finer - 1), SBS()(w, 2 * bits, v), atol=1e-12)
        values = {round(float(x), 9) for x in SBS()(w, bits, v).unique()}
        assert values <= {round(float(x), 9) for x in SBS()(w, 2 * bits, v).unique()}


def test_a_fixed_point_has_a_power_of_two_and_holds_the_largest_weight() -> None:
    for seed in range(5):
        w = weights(3, 9, seed=seed) * 10.0 ** (seed - 2)
        codes = FixedPoint().codes(w, 8)
        assert math.log2(float(codes.scale)).is_integer()
        assert float((codes.value() - w).abs().max()) <= float(codes.scale) / 2
        assert float(w.abs().max()) > float(codes.scale) * 127 / 2


@pytest.mark.parametrize("signed", [True, False])
def test_an_input_quantiser_rounds_to_its_grid_and_learns_its_scale(signed: bool) -> None:
    quantizer = InputQuantizer(3, signed=signed)
    assert bool(quantizer.scale.isnan()), "a scale nobody has set must not look like one"
    x = weights(5, 4, 2).float().requires_grad_()
    with torch.no_grad():
        quantizer.scale.fill_(0.3)
    low, high = (-4, 3) if signed else (0, 7)
    assert input_range(3, signed=signed) == (low, high)
    expected = 0.3 * np.clip(np.round(x.detach().numpy() / np.float32(0.3)), low, high)
    np.testing.assert_allclose(quantizer(x).detach().numpy(), expected, rtol=1e-6)
    quantizer(x).sum().backward()
    unscaled = torch.tensor(0.3, requires_grad=True)
    fake_quantize(x.detach(), unscaled, low, high).sum().backward()
    torch.testing.assert_close(quantizer.scale.grad, unscaled.grad / math.sqrt(8 * high))


@pytest.mark.parametrize(
    ("quantizer", "bits", "message"),
    [
        (LSQ(), [1, 4], "LSQ quantises to 2 bits or more, got weight bits \\(1, 4\\); change weight_bits"),
        (SBS(), [3], "SBS quantises to 1, 2, 4, 8 or 16 bits"),
        (Ternary(), [2, 4], "Ternary quantises to 2 bits"),
        (Binary(), [2], "Binary quantises to 1 bit"),
        (FixedPoint(), [1], "FixedPoint quantises to 2 bits or more"),
    ],
    ids=["lsq", "sbs", "ternary", "binary", "fixed_point"],
)
def test_bits_that_a_quantiser_does_not_have_are_refused(
    quantizer: WeightQuantizer, bits: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        quantizer.check(bits)
    with pytest.raises(ValueError, match="must be 'tensor' or 'channel', got 'row'"):
        LSQ("row")  # type: ignore[arg-type]
