"""Batch-norm calibration against statistics computed independently."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from search_spaces import MLPSpace, SearchSpace
from supernets import Classification, Supernet, calibrate, calibration_batches, uncalibrated
from supernets.noise import seed_all

SIZES = (3, 8, 2, 5)


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 12, generator=generator) * 3 + 1 for size in SIZES]


def perceptron(depth: int) -> nn.Sequential:
    space = MLPSpace(12, 4, widths=(7,), depths=(depth,))
    module = space.build(space.largest())
    assert isinstance(module, nn.Sequential)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    return module


def layer_by_layer(module: nn.Sequential, batches: list[Tensor]) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Mean and biased variance over all rows that reach each norm, every batch normalised by its own statistics."""
    rows = [batch.double().numpy() for batch in batches]
    state = {name: value.double().numpy() for name, value in module.state_dict().items()}
    statistics = []
    depth = sum(isinstance(layer, nn.BatchNorm1d) for layer in module)
    for i in range(1, depth + 1):
        rows = [batch @ state[f"linear{i}.weight"].T for batch in rows]
        pooled = np.concatenate(rows)
        statistics.append((pooled.mean(0), pooled.var(0)))
        scale, shift = state[f"norm{i}.weight"], state[f"norm{i}.bias"]
        normal = [(batch - batch.mean(0)) / np.sqrt(batch.var(0) + 1e-5) for batch in rows]
        rows = [np.maximum(batch * scale + shift, 0) for batch in normal]
    return statistics


def test_statistics_are_those_of_the_pooled_data_at_every_layer(batches: list[Tensor]) -> None:
    module = perceptron(depth=3)
    calibrate(module, batches)
    for i, (mean, variance) in enumerate(layer_by_layer(module, batches), 1):
        norm = module.get_submodule(f"norm{i}")
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-5, atol=1e-5)


def test_the_way_the_data_is_cut_into_batches_does_not_matter_at_the_first_layer(batches: list[Tensor]) -> None:
    rows = torch.cat(batches)
    modules = [copy.deepcopy(m) for m in [perceptron(depth=1)] * 3]
    for module, size in zip(modules, (2, 9, len(rows)), strict=True):
        calibrate(module, rows.split(size))
    for buffer in ("running_mean", "running_var"):
        first, *others = [module.get_submodule("norm1").get_buffer(buffer) for module in modules]
        for other in others:
            torch.testing.assert_close(first, other, rtol=1e-5, atol=1e-6)


def test_convolutions_pool_over_positions_too() -> None:
    module = nn.Sequential(nn.BatchNorm2d(3))
    batches = [torch.randn(size, 3, size + 1, 4) * 2 + 5 for size in SIZES]
    calibrate(module, batches)
    pooled = np.concatenate([batch.double().numpy().transpose(1, 0, 2, 3).reshape(3, -1) for batch in batches], 1)
    np.testing.assert_allclose(module.get_buffer("0.running_mean").numpy(), pooled.mean(1), rtol=1e-5)
    np.testing.assert_allclose(module.get_buffer("0.running_var").numpy(), pooled.var(1), rtol=1e-5)


def test_nothing_is_written_to_the_supernet(space: SearchSpace, inputs: Tensor) -> None:
    supernet = Supernet(space, Classification(4))
    before = copy.deepcopy(supernet.state_dict())
    module = supernet.calibrated(supernet.bind(space.smallest()), [(inputs, None)])
    assert not uncalibrated(module)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_dropout_is_off_and_the_module_is_left_in_evaluation_mode(batches: list[Tensor]) -> None:
    module = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(12, momentum=0.3)).train()
    calibrate(module, batches)
    pooled = torch.cat(batches)
    torch.testing.assert_close(module.get_buffer("1.running_mean"), pooled.mean(0), rtol=1e-5, atol=1e-5)
    assert not any(child.training for child in module.modules())
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.momentum == 0.3


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.BatchNorm1d(12)
        self.unused = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.used(x)
        return outputs


def test_layers_that_no_batch_reaches_stay_uncalibrated(batches: list[Tensor]) -> None:
    module = Branched()
    assert uncalibrated(module) == ["used", "unused"]
    calibrate(module, batches)
    assert uncalibrated(module) == ["unused"]
    assert torch.equal(module.unused.get_buffer("running_mean"), torch.zeros(12))


def test_no_batches_leave_everything_uncalibrated() -> None:
    assert uncalibrated(calibrate(Branched(), [])) == ["used", "unused"]


def test_calibrating_again_replaces_the_statistics(batches: list[Tensor]) -> None:
    once, twice = perceptron(depth=2), perceptron(depth=2)
    twice.load_state_dict(once.state_dict())
    calibrate(twice, [batch * 7 for batch in batches])
    calibrate(twice, batches)
    calibrate(once, batches)
    assert all(torch.equal(value, twice.state_dict()[name]) for name, value in once.state_dict().items())


def test_an_exception_in_a_batch_leaves_no_hook_and_no_training_mode(batches: list[Tensor]) -> None:
    module = perceptron(depth=1)
    with pytest.raises(RuntimeError):
        calibrate(module, [batches[0], torch.zeros(2, 99)])
    assert not any(layer._forward_hooks or layer.training for layer in module.modules())


def test_a_module_without_batch_norm_needs_no_batches() -> None:
    unread = iter([torch.zeros(1, 2)])
    assert uncalibrated(calibrate(nn.Linear(2, 2), unread)) == []
    assert len(list(unread)) == 1


def test_calibration_batches_are_the_first_of_a_foreign_loader_or_what_our_own_offer(
    labelled: Callable[..., Any],
) -> None:
    loader = labelled(MLPSpace(12, 4), count=5)

    class Foreign:
        def train_dataloader(self) -> Any:
            return loader

    class Own(Foreign):
        def calibration_batches(self, count: int) -> list[str]:
            return ["plain"] * count

    assert calibration_batches(Foreign(), 2) == loader.batches[:2]
    assert calibration_batches(Own(), 2) == ["plain", "plain"]


def jittered(rows: list[tuple[Tensor]]) -> tuple[Tensor]:
    """A batch with the augmentation of somebody who uses whatever random numbers are at hand."""
    return (torch.stack([row + random.random() + np.random.rand() + torch.rand(()) for (row,) in rows]),)


@pytest.mark.parametrize("collate", [None, jittered])
def test_a_shuffled_foreign_loader_gives_the_same_batches_at_every_call(collate: Any) -> None:
    class Shuffled:
        def train_dataloader(self) -> Any:
            data = TensorDataset(torch.arange(40.0))
            return DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)

    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]

    first = calibration_batches(Shuffled(), 3)
    seed_all(1234)
    before = states()
    second = calibration_batches(Shuffled(), 3)
    assert states() == before
    assert len(first) == len(second) == 3
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first, second, strict=True))
    assert not torch.equal(first[0][0], torch.arange(4.0)), "still shuffled: consecutive examples may be of one class"
