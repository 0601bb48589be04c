"""Training steps of the supernet, through Lightning."""

import copy
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from search_spaces import Architecture, Choice, FactorySpace, MLPSpace, SearchSpace
from supernets import Classification, SandwichRule, SharedWeights, Slot, SoftTargets, Supernet, UniformRule
from tests.supernets.conftest import Batches

Fit = Callable[..., L.Trainer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def places(space: SearchSpace, architecture: Architecture) -> dict[str, Tensor]:
    """Flat positions in the stored tensors of every number of a subnetwork."""
    source = SharedWeights(space)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
        return {name: tensor.long().flatten() for name, tensor in source(architecture).items()}


@pytest.mark.parametrize("rule", [SandwichRule(2), SandwichRule(2, distillation=False), UniformRule(3)])
def test_a_step_sums_the_gradients_of_the_same_architectures_as_separate_modules(
    space: SearchSpace, labelled: Any, fit: Fit, recorder: Any, rule: SandwichRule | UniformRule
) -> None:
    task = Classification(4, label_smoothing=0.1, distillation=SoftTargets(2.0))
    supernet = Supernet(space, task, rule=rule, optimizer=still, seed=3)
    loader = labelled(space, count=1)
    (batch,) = loader.batches
    expected = {name: torch.zeros(p.numel()) for name, p in supernet.source.largest.named_parameters()}  # type: ignore[union-attr]
    teacher = None
    for slot in rule.slots(space, seed=3, step=0, score=lambda _: 0.0):
        module = supernet.extract(slot.architecture).train()
        outputs = module(batch[0])
        if slot.role == "student":
            task.distil(outputs, teacher).backward()
        else:
            task.loss(outputs, batch, regularise=True).backward()
        teacher = outputs if slot.role == "teacher" else teacher
        positions = places(space, slot.architecture)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            expected[name].index_add_(0, positions[name], parameter.grad.flatten())
    fit(supernet, loader, steps=1, callbacks=[recorder])
    for name, gradient in expected.items():
        given = recorder.gradients[f"source.largest.{name}"].flatten()
        torch.testing.assert_close(given, gradient, rtol=1e-5, atol=1e-6)


class Noisy(SearchSpace):
    choices = (Choice("depth", (1, 2)),)

    def build(self, architecture: Architecture) -> nn.Module:
        return nn.Sequential(*[nn.Linear(12, 12) for _ in range(architecture.integer("depth"))], nn.Dropout(0.5))

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, 12),)


def test_students_are_not_regularised() -> None:
    space = Noisy()
    supernet = Supernet(space, Classification(12))
    batch = (torch.randn(6, 12), torch.zeros(6, dtype=torch.long))
    _, outputs = supernet.step_loss(Slot(space.largest(), "teacher"), batch, None)
    assert (outputs == 0).any()
    _, outputs = supernet.step_loss(Slot(space.largest(), "student"), batch, outputs)
    assert not (outputs == 0).any()
    _, outputs = supernet.step_loss(Slot(space.largest(), "labels"), batch, None)
    assert (outputs == 0).any()


def test_training_lowers_the_loss_of_every_anchor(labelled: Any, fit: Fit) -> None:
    space = MLPSpace(12, 4, widths=(16, 32), depths=(1, 2))
    supernet = Supernet(space, Classification(4), optimizer=sgd)
    loader = labelled(space, count=2, size=16)

    def losses() -> dict[str, float]:
        scores = {}
        for name, architecture in supernet.anchors().items():
            module = supernet.calibrated(supernet.bind(architecture), loader)
            scores[name] = sum(float(supernet.task.loss(module(b[0]), b)) for b in loader)
        return scores

    before = losses()
    fit(supernet, loader, steps=60)
    after = losses()
    assert all(after[name] < 0.5 * before[name] for name in before), (before, after)


def test_a_resumed_run_sees_the_same_architectures_and_ends_at_the_same_weights(
    labelled: Any, fit: Fit, tmp_path: Any
) -> None:
    space = MLPSpace(12, 4, widths=(4, 6, 8, 10), depths=(1, 2, 3))
    loader = labelled(space, count=1)

    def new() -> tuple[Supernet, list[Architecture]]:
        supernet = Supernet(space, Classification(4), rule=UniformRule(2), seed=11)
        seen: list[Architecture] = []
        step_loss = supernet.step_loss

        def recording(slot: Slot, batch: Any, teacher: Any) -> Any:
            seen.append(slot.architecture)
            return step_loss(slot, batch, teacher)

        supernet.step_loss = recording  # type: ignore[method-assign]
        return supernet, seen

    whole, all_seen = new()
    fit(whole, loader, steps=6)
    first, first_seen = new()
    fit(first, loader, steps=2).save_checkpoint(tmp_path / "half.ckpt")
    second, second_seen = new()
    fit(second, loader, steps=6, ckpt_path=str(tmp_path / "half.ckpt"))
    assert first_seen + second_seen == all_seen
    assert len(all_seen) == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights(
    space: SearchSpace, labelled: Any, fit: Fit
) -> None:
    supernet = Supernet(space, Classification(4), optimizer=sgd)
    before = copy.deepcopy(supernet.state_dict())
    seen: set[torch.dtype] = set()
    step_loss = supernet.step_loss

    def recording(slot: Slot, batch: Any, teacher: Any) -> Any:
        loss, outputs = step_loss(slot, batch, teacher)
        seen.add(outputs.dtype)
        return loss, outputs

    supernet.step_loss = recording  # type: ignore[method-assign]
    fit(supernet, labelled(space), steps=2, precision="bf16-mixed")
    assert seen == {torch.bfloat16}
    after = supernet.state_dict()
    assert all(value.dtype == before[name].dtype and value.isfinite().all() for name, value in after.items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_once_over_the_whole_step(labelled: Any, fit: Fit, recorder: Any, algorithm: Any) -> None:
    space = MLPSpace(12, 4, widths=(6, 10), depths=(1, 2))

    def gradients(clip: float | None) -> Tensor:
        supernet = Supernet(space, Classification(4), optimizer=still, clip=clip, clip_algorithm=algorithm)
        fit(supernet, labelled(space, count=1), steps=1, callbacks=[recorder])
        return torch.cat([gradient.flatten() for gradient in recorder.gradients.values()])

    free, clipped = gradients(None), gradients(1e-2)
    if algorithm == "norm":
        torch.testing.assert_close(clipped, free * (1e-2 / free.norm()), rtol=1e-3, atol=1e-8)
    else:
        torch.testing.assert_close(clipped, free.clamp(-1e-2, 1e-2))


def test_norms_and_biases_are_exempt_from_weight_decay_unless_asked(labelled: Any, fit: Fit) -> None:
    space = MLPSpace(12, 4, widths=(6,), depths=(1,))

    def decayed(**options: Any) -> set[str]:
        supernet = Supernet(
            space,
            Classification(4),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5),
            **options,
        )
        optimizer = fit(supernet, labelled(space), steps=1).optimizers[0]
        names = {id(p): n.removeprefix("source.largest.") for n, p in supernet.named_parameters()}
        return {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}

    assert decayed() == {"linear1.weight", "head.weight"}
    everything = {"linear1.weight", "head.weight", "norm1.weight", "norm1.bias", "head.bias"}
    assert decayed(decay_norms=True) == everything


def test_the_schedule_scales_the_learning_rate_by_training_progress(labelled: Any, fit: Fit) -> None:
    space = MLPSpace(12, 4, widths=(6,), depths=(1,))
    rates: list[float] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    supernet = Supernet(space, Classification(4), optimizer=sgd, schedule=lambda progress: 1 - progress)
    fit(supernet, labelled(space), steps=4, callbacks=[Watch()])
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize(
    ("features", "classes", "reason"), [(11, 4, "shapes cannot be multiplied"), (12, 9, "Target 8 is out of bounds")]
)
def test_data_that_do_not_fit_are_told_at_the_first_batch_and_defects_later_keep_their_error(
    features: int, classes: int, reason: str, fit: Fit
) -> None:
    supernet = Supernet(MLPSpace(12, 4, widths=(6,), depths=(1,)), Classification(4), rule=UniformRule())
    good = torch.zeros(3, 12), torch.tensor([0, 1, 3])
    bad = torch.zeros(3, features), torch.tensor([0, 1, classes - 1])
    with pytest.raises(ValueError, match=rf"{reason}.*; its inputs are \[\({features},\)\] .* space \[\(12,\)\]; make"):
        fit(supernet, Batches([bad]), 1)
    with pytest.raises((RuntimeError, IndexError), match=reason):
        fit(supernet, Batches([good, bad]), 2)


class Normed(nn.Module):
    """Norms of every kind, and dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(12, width)
        self.group, self.root, self.layer = nn.GroupNorm(2, width), nn.RMSNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.layer(self.root(self.group(self.inner(x))))))
        return logits


def test_every_kind_of_norm_is_spared_weight_decay(labelled: Any, fit: Fit) -> None:
    space = FactorySpace(Normed, {"width": [4, 8]}, input_shape=(12,))
    supernet = Supernet(space, Classification(4))
    optimizer = fit(supernet, labelled(space), steps=1).optimizers[0]
    names = {id(p): n.removeprefix("source.largest.") for n, p in supernet.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed == {"inner.weight", "head.weight"}


def test_a_score_is_that_of_a_student_without_regularisation(labelled: Any) -> None:
    space = FactorySpace(Normed, {"width": [4, 8]}, input_shape=(12,))
    supernet = Supernet(space, Classification(4, label_smoothing=0.2))
    (batch, *_) = labelled(space).batches
    with torch.no_grad():
        expected = nn.functional.cross_entropy(supernet.extract(space.largest())(batch[0]), batch[1])
    assert supernet.score(space.largest(), batch) == pytest.approx(float(expected), rel=1e-5)
