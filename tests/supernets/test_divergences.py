"""KL and the adaptive alpha-divergence against independent float64 formulas, values and gradients."""

import math

import pytest
import torch
from torch import Tensor

from supernets import KL, AlphaDivergence, Classification, Distillation, SoftTargets

ROWS, CLASSES = 7, 5


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Student and teacher logits ``(ROWS, CLASSES)``, far enough apart that some ratios are clipped."""
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64) * 2 for _ in range(2))  # type: ignore[return-value]


def softmax(row: Tensor) -> list[float]:
    powers = [math.exp(float(value)) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p: list[float], q: list[float], alpha: float, clip: float) -> tuple[float, list[float]]:
    """D_alpha and its surrogate gradient in the logits of ``q``, by loops over Wang et al.'s definition."""
    value, rho = 0.0, []
    for p_c, q_c in zip(p, q, strict=True):
        ratio = p_c / q_c
        if alpha == 0:
            value += q_c * math.log(q_c / p_c)
            rho.append(math.log(ratio) - 1)
        elif alpha == 1:
            value += p_c * math.log(p_c / q_c)
            rho.append(ratio)
        else:
            power = min(ratio**alpha, clip)
            value += q_c * (power - 1) / (alpha * (alpha - 1))
            rho.append(power / alpha + 1 / (alpha * (alpha - 1)))
    mean = sum(q_c * rho_c for q_c, rho_c in zip(q, rho, strict=True))
    # d(-sum_c w_c log q_c) / d z_k = -w_k + q_k sum_c w_c, with w = q rho held fixed
    return value, [-q_c * rho_c + q_c * mean for q_c, rho_c in zip(q, rho, strict=True)]


def of_rows(loss: Distillation, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = logits.clone().requires_grad_()
    values = loss(student, teacher)
    values.sum().backward()
    assert student.grad is not None
    return values.detach(), student.grad


@pytest.mark.parametrize("clip", [5.0, 1e9])
@pytest.mark.parametrize("alphas", [(-1.0, 1.0), (-1.0, 0.0), (0.0, 0.0), (0.5, 2.0), (1.0, 1.0), (-2.0, -0.5)])
def test_each_row_takes_the_larger_divergence_with_its_surrogate_gradient(
    pair: tuple[Tensor, Tensor], alphas: tuple[float, float], clip: float
) -> None:
    logits, teacher = pair
    values, gradients = of_rows(AlphaDivergence(*alphas, clip=clip), logits, teacher)
    winners = set()
    for row in range(ROWS):
        p, q = softmax(teacher[row]), softmax(logits[row])
        both = [divergence(p, q, alpha, clip) for alpha in alphas]
        winner = max((0, 1), key=lambda index: both[index][0])
        winners.add(winner)
        assert float(values[row]) == pytest.approx(both[winner][0], rel=1e-10, abs=1e-12)
        assert gradients[row].tolist() == pytest.approx(both[winner][1], rel=1e-9, abs=1e-12)
    if alphas == (-1.0, 1.0) and clip > 5:
        assert winners == {0, 1}


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_without_clipping_the_surrogate_has_the_gradient_of_the_divergence(
    pair: tuple[Tensor, Tensor], alpha: float
) -> None:
    logits, teacher = pair
    _, gradients = of_rows(AlphaDivergence(alpha, alpha, clip=1e9), logits, teacher)
    step = 1e-6
    for row in range(ROWS):
        p = softmax(teacher[row])
        for k in range(CLASSES):
            up, down = logits[row].clone(), logits[row].clone()
            up[k] += step
            down[k] -= step
            slope = divergence(p, softmax(up), alpha, 1e9)[0] - divergence(p, softmax(down), alpha, 1e9)[0]
            assert float(gradients[row, k]) == pytest.approx(slope / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_the_limits_are_continuous(pair: tuple[Tensor, Tensor], limit: float) -> None:
    logits, teacher = pair
    at, at_gradient = of_rows(AlphaDivergence(limit, limit, clip=1e9), logits, teacher)
    for near in (limit - 2e-3, limit + 2e-3):
        value, gradient = of_rows(AlphaDivergence(near, near, clip=1e9), logits, teacher)
        torch.testing.assert_close(value, at, rtol=2e-2, atol=0)
        torch.testing.assert_close(gradient, at_gradient, rtol=5e-2, atol=1e-2)


def test_alpha_zero_is_a_value_and_no_default(pair: tuple[Tensor, Tensor]) -> None:
    logits, teacher = pair
    zero = AlphaDivergence(0.0, 0.0)(logits, teacher)
    assert not torch.allclose(zero, AlphaDivergence(-1.0, 1.0)(logits, teacher))
    expected = [
        sum(b * math.log(b / a) for a, b in zip(softmax(t), softmax(s), strict=True))
        for s, t in zip(logits, teacher, strict=True)
    ]
    assert zero.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [KL(), KL(2.0), AlphaDivergence()])
def test_a_student_that_agrees_has_no_loss_and_no_gradient(pair: tuple[Tensor, Tensor], loss: Distillation) -> None:
    values, gradients = of_rows(loss, pair[0], pair[0].clone())
    torch.testing.assert_close(values, torch.zeros(ROWS, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, torch.zeros_like(gradients), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_soft_cross_entropy_without_the_entropy_of_the_teacher(
    pair: tuple[Tensor, Tensor], temperature: float
) -> None:
    logits, teacher = pair
    values, gradients = of_rows(KL(temperature), logits, teacher)
    _, cross_gradients = of_rows(SoftTargets(temperature), logits, teacher)
    for row in range(ROWS):
        p, q = softmax(teacher[row] / temperature), softmax(logits[row] / temperature)
        expected = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(values[row]) == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(gradients, cross_gradients)


@pytest.mark.parametrize("loss", [KL(), AlphaDivergence(), AlphaDivergence(-2.0, 3.0)])
def test_extreme_logits_stay_finite_and_tokens_keep_their_shape(loss: Distillation) -> None:
    logits = torch.tensor([[[80.0, -80.0, 0.0], [0.0, 0.0, 90.0]]])
    values, gradients = of_rows(loss, logits, -logits)
    assert values.shape == (1, 2)
    assert bool(values.isfinite().all())
    assert bool(gradients.isfinite().all())


def test_classification_takes_them_and_gives_the_teacher_no_gradient() -> None:
    task = Classification(CLASSES, distillation=AlphaDivergence())
    student, teacher = torch.randn(4, CLASSES, requires_grad=True), torch.randn(4, CLASSES, requires_grad=True)
    loss = task.distil(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(AlphaDivergence()(student, teacher).mean().item())
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AlphaDivergence(1.0, -1.0),
            r"alpha_min <= alpha_max and clip >= 1, got alpha_min=1.0, alpha_max=-1.0",
        ),
        (lambda: AlphaDivergence(clip=0.5), r"clip=0.5"),
        (lambda: KL(0), r"KL.temperature must be > 0, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
