from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from nas.data import DigitsData
from search_spaces import MLPSpace, construct, describe
from supernets import Classification, Supernet


def pixels(images: Tensor) -> set[tuple[int, ...]]:
    return {tuple(image) for image in images.flatten(1).tolist()}


def test_splits_are_fixed_stratified_and_disjoint() -> None:
    splits, again = DigitsData().splits, DigitsData(batch_size=8, seed=9).splits
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1150, 288, 359]
    for part, same in zip(parts, (again.train, again.validation, again.test), strict=True):
        assert torch.equal(part.images, same.images)
        shares = torch.bincount(part.labels, minlength=10) / len(part)
        assert ((shares - 0.1).abs() < 0.01).all()
    assert len(set.union(*(pixels(part.images) for part in parts))) == 1797
    assert not torch.equal(DigitsData(split_seed=1).splits.test.images, splits.test.images)


def test_batches_are_standardised_by_the_training_split() -> None:
    data = DigitsData(batch_size=50)
    data.setup("fit")
    assert (data.num_classes, data.image_shape) == (10, (1, 8, 8))
    train = torch.cat([images for images, _ in data.train_dataloader()])
    assert train.shape == (1150, 1, 8, 8)
    assert train.dtype == torch.float32
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    images, labels = next(iter(data.test_dataloader()))
    assert torch.equal(images, data.standardization(data.splits.test.images))
    assert torch.equal(labels, data.splits.test.labels)


def test_training_is_shuffled_by_the_seed_and_evaluation_is_not() -> None:
    first, again, other = (next(iter(DigitsData(seed=seed).train_dataloader()))[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    data = DigitsData(eval_batch_size=100)
    assert torch.equal(torch.cat([labels for _, labels in data.val_dataloader()]), data.splits.validation.labels)


def test_calibration_batches_are_fixed_training_images() -> None:
    data, other = DigitsData(batch_size=32, crop_padding=1), DigitsData(batch_size=32, seed=5)
    batches = data.calibration_batches(3)
    assert [images.shape for images, _ in batches] == [(32, 1, 8, 8)] * 3
    for (images, labels), (same, same_labels) in zip(batches, other.calibration_batches(4), strict=False):
        assert torch.equal(images, same)
        assert torch.equal(labels, same_labels)
    seen = pixels(torch.cat([images for images, _ in batches]))
    assert len(seen) == 96
    assert seen <= pixels(data.standardization(data.splits.train.images))


@pytest.mark.parametrize("count", [0, 36])
def test_calibration_refuses_what_the_training_split_does_not_hold(count: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 35 batches of data.batch_size=32 .* got {count}"):
        DigitsData(batch_size=32).calibration_batches(count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"eval_batch_size": -1}, "data.eval_batch_size must be at least 1, got -1"),
        ({"crop_padding": -1}, "data.crop_padding must be at least 0, got -1"),
        ({"validation_fraction": 1.0}, "data.validation_fraction must be between 0 and 1"),
        ({"test_fraction": 0.0}, "data.test_fraction must be between 0 and 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsData(**arguments)


def test_a_batch_larger_than_the_training_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size must be at most 1150.* got 2000"):
        DigitsData(batch_size=2000).train_dataloader()


def test_the_module_is_rebuilt_from_its_description() -> None:
    data = DigitsData(16, crop_padding=1, split_seed=3)
    rebuilt = construct(describe(data))
    assert isinstance(rebuilt, DigitsData)
    assert dict(rebuilt.hparams) == dict(data.hparams)
    assert torch.equal(rebuilt.splits.test.images, data.splits.test.images)


class Recorder(LightningModule):
    """A linear classifier that remembers the batches it was trained on, and saves the run after one of its steps."""

    def __init__(self, checkpoint: Path | None = None, *, at_step: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.checkpoint = checkpoint
        self.at_step = at_step

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        self.seen.append(batch)
        return nn.functional.cross_entropy(self.linear(batch[0].flatten(1)), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        if self.checkpoint is not None and self.trainer.global_step == self.at_step:
            self.trainer.save_checkpoint(self.checkpoint)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.linear(batch[0].flatten(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(model: Recorder, ckpt_path: Path | None = None) -> list[tuple[Tensor, Tensor]]:
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitsData(batch_size=300, crop_padding=1)  # three batches an epoch
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return model.seen


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_resumed_run_sees_the_batches_the_whole_run_sees(tmp_path: Path, step: int) -> None:
    checkpoint = tmp_path / "run.ckpt"
    whole = fit(Recorder(checkpoint, at_step=step))
    assert len(whole) == 9
    resumed = fit(Recorder(), checkpoint)
    assert len(resumed) == 9 - step
    for (images, labels), (expected, expected_labels) in zip(resumed, whole[step:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["datamodule_hyper_parameters"]["crop_padding"] == 1


def test_the_seed_of_the_data_may_differ_from_that_of_the_supernet(tmp_path: Path) -> None:
    space = MLPSpace(64, 10, widths=(4, 8), depths=(1,))
    trainer = Trainer(
        accelerator="cpu", max_steps=1, limit_val_batches=0, logger=CSVLogger(tmp_path), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Supernet(space, Classification(10), seed=3), datamodule=DigitsData(seed=4))
    assert trainer.global_step == 1
