import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from supernets import Classification, SoftTargets


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 5) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_the_soft_cross_entropy_of_the_docstring(logits: torch.Tensor, temperature: float) -> None:
    teacher = torch.randn(6, 5) * 3
    student_t, teacher_t = (x.double().numpy() / temperature for x in (logits, teacher))
    expected = -(temperature**2) * (np.exp(log_softmax(teacher_t)) * log_softmax(student_t)).sum(1).mean()
    given = SoftTargets(temperature)(logits, teacher).mean()
    assert given.item() == pytest.approx(expected, rel=1e-5)


def test_the_teacher_gets_no_gradient(logits: torch.Tensor) -> None:
    student, teacher = logits.clone().requires_grad_(), logits.flip(0).clone().requires_grad_()
    Classification(5).distil(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_dense_logits_have_a_loss_too() -> None:
    outputs, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    chosen = torch.log_softmax(outputs, 1).gather(1, labels[:, None])
    assert float(Classification(3).loss(outputs, (None, labels))) == pytest.approx(-float(chosen.mean()), rel=1e-5)


def test_label_smoothing_applies_only_where_regularised(logits: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    task = Classification(5, label_smoothing=0.2)
    log_p = log_softmax(logits.double().numpy())
    hard = -log_p[np.arange(6), labels].mean()
    smooth = -(0.8 * log_p[np.arange(6), labels] + 0.2 * log_p.mean(1)).mean()
    assert task.loss(logits, (None, labels)).item() == pytest.approx(hard, rel=1e-5)
    assert task.loss(logits, (None, labels), regularise=True).item() == pytest.approx(smooth, rel=1e-5)


def test_metrics_over_unequal_batches_are_those_of_all_examples(logits: torch.Tensor) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    task = Classification(5)
    metrics = task.metrics()
    for rows in (slice(0, 1), slice(1, 6)):
        task.update(metrics, logits[rows], (None, labels[rows]))
    values = {name: float(value) for name, value in metrics.compute().items()}
    log_p = log_softmax(logits.double().numpy())
    assert values["accuracy"] == pytest.approx((log_p.argmax(1) == labels.numpy()).mean())
    assert values["loss"] == pytest.approx(-log_p[np.arange(6), labels].mean(), rel=1e-5)
    assert task.headline in values


def test_metrics_are_fresh_at_every_call(logits: torch.Tensor) -> None:
    task = Classification(5)
    task.update(task.metrics(), logits, (None, logits.argmax(1)))
    fresh = task.metrics()
    task.update(fresh, logits, (None, logits.argmin(1)))
    assert float(fresh.compute()["accuracy"]) == 0.0


@pytest.mark.parametrize("arguments", [{"num_classes": 1}, {"label_smoothing": 1.0}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=rf"Classification needs num_classes >= 2.*{name}={value}"):
        Classification(**({"num_classes": 3} | arguments))  # type: ignore[arg-type]


def test_a_temperature_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SoftTargets.temperature must be > 0, got 0"):
        SoftTargets(0)
