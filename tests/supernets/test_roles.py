"""What teachers and students of a training step go through: regularisation, batch statistics, structured outputs."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces import FactorySpace
from supernets import Classification, SandwichRule, Slot, Supernet, Task


class FunctionalDropout(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.leave(F.dropout(self.enter(x), 0.5, self.training))
        return outputs


class AttentionDropout(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(1, width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.5, batch_first=True)
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x[..., None])
        outputs: Tensor = self.leave(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))
        return outputs


class Normed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.enter(x))
        return outputs


def supernet(builder: Callable[..., nn.Module]) -> Supernet:
    space = FactorySpace(builder, {"width": [4, 8]}, input_shape=(6,))
    return Supernet(space, Classification(4))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 6), torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("builder", [FunctionalDropout, AttentionDropout])
def test_dropout_that_is_no_layer_is_off_for_students_alone(
    builder: type[nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    given = supernet(builder)
    largest = given.space.largest()
    expected = given.extract(largest)(batch[0])
    for role in ("teacher", "student", "labels", "student"):
        _, outputs = given.step_loss(Slot(largest, role), batch, expected.detach())
        assert torch.allclose(outputs, expected, atol=1e-6) == (role == "student"), role


def test_batch_norm_of_students_uses_batch_statistics(batch: tuple[Tensor, Tensor]) -> None:
    given = supernet(Normed)
    architecture = given.space.smallest()
    weights = given.source(architecture)
    features = F.linear(batch[0], weights["enter.weight"], weights["enter.bias"])
    expected = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
    _, outputs = given.step_loss(Slot(architecture, "student"), batch, torch.zeros(5, 4))
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


class Structured(nn.Module):
    def __init__(self, width: int, container: str) -> None:
        super().__init__()
        self.container = container
        self.enter = nn.Linear(6, width)
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = self.enter(x)
        if self.container == "dict":
            return {"logits": self.leave(hidden), "hidden": hidden, "note": None}
        return self.leave(hidden), (hidden, "a note")


class Picked(Task):
    """Classification by one entry of structured outputs; keeps what it was taught with."""

    headline = Classification.headline
    quantities = Classification.quantities

    def __init__(self, key: Any) -> None:
        self.key = key
        self.plain = Classification(4)
        self.teachers: list[Any] = []

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        return self.plain.inputs(batch)

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        return self.plain.loss(outputs[self.key], batch, regularise=regularise)

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        self.teachers.append(teacher)
        soft = torch.softmax(teacher[self.key], dim=-1)  # a gradient would flow if the supernet had left one
        return F.cross_entropy(outputs[self.key], soft)

    def metrics(self) -> torchmetrics.MetricCollection:
        return self.plain.metrics()

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        self.plain.update(metrics, outputs[self.key], batch)


@pytest.mark.parametrize(("container", "key"), [("dict", "logits"), ("tuple", 0)])
def test_structured_outputs_of_a_teacher_distil(
    container: str, key: Any, labelled: Any, fit: Callable[..., L.Trainer]
) -> None:
    space = FactorySpace(Structured, {"width": [4, 8]}, input_shape=(6,), fixed={"container": container})
    task = Picked(key)
    given = Supernet(space, task, rule=SandwichRule(1))
    loader = labelled(space, count=1)
    before = given.extract(space.largest())(loader.batches[0][0])
    fit(given, loader, steps=1)
    assert len(task.teachers) == 2, "the smallest and one random architecture"
    for teacher in task.teachers:
        assert not teacher[key].requires_grad
        torch.testing.assert_close(teacher[key], before[key].detach())
