"""What the trainer must be given: a strategy, an end of training, a data module."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nas.trainer import NASTrainer
from search_spaces import MLPSpace
from supernets import Classification, Cosine, Supernet

Fit = Callable[..., L.Trainer]


def supernet(**options: Any) -> Supernet:
    return Supernet(MLPSpace(12, 4, widths=(6, 10), depths=(1, 2)), Classification(4), calibration=2, **options)


def quiet(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, **options
    )


class Foreign(L.LightningDataModule):
    """Reads each split in the stage that needs it, as Lightning's own examples do."""

    def setup(self, stage: str) -> None:
        labels = torch.arange(12) % 4
        data = TensorDataset(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)), labels)
        if stage == "fit":
            self.training = data
        if stage in ("fit", "validate"):
            self.validation = data

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.training, batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.validation, batch_size=6)


@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
def test_a_foreign_data_module_validates_without_a_fit() -> None:
    given = supernet()
    trainer = quiet()
    (first,) = trainer.validate(given, datamodule=Foreign(), verbose=False)
    assert first.keys() == {f"val/{anchor}/{metric}" for anchor in given.anchors() for metric in ("accuracy", "loss")}
    torch.manual_seed(99)
    (second,) = trainer.validate(given, datamodule=Foreign(), verbose=False)
    assert second == first, "shuffling must not reach calibration"


@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
def test_validation_without_a_data_module_says_what_is_missing() -> None:
    data = Foreign()
    data.setup("validate")
    with pytest.raises(
        ValueError, match=r"calibrates batch norm on training batches, so the trainer must be given a da"
    ):
        quiet().validate(supernet(), data.val_dataloader(), verbose=False)


def test_plain_ddp_is_refused_before_anything_is_trained() -> None:
    given = supernet()
    given.trainer = quiet(strategy="ddp")
    with pytest.raises(ValueError, match=r"set trainer.strategy to ddp_find_unused_parameters_true"):
        given.on_fit_start()
    for strategy in ("ddp_find_unused_parameters_true", DDPStrategy(find_unused_parameters=True), "auto"):
        given.trainer = quiet(strategy=strategy)
        given.on_fit_start()


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (StochasticWeightAveraging(1e-3), r"would train on from the average; use .*EMAWeightAveraging"),
        (GradientAccumulationScheduler({0: 2}), r"GradientAccumulationScheduler.*raise data.batch_size"),
    ],
    ids=["average", "accumulation"],
)
def test_callbacks_that_need_automatic_optimisation_are_refused(callback: L.Callback, message: str) -> None:
    given = supernet()
    given.trainer = quiet(callbacks=[callback])
    with pytest.raises(ValueError, match=message):
        given.on_fit_start()


def test_a_compiled_supernet_is_refused_before_anything_is_traced() -> None:
    given, trainer = supernet(), quiet()
    given.trainer = trainer
    given._compiler_ctx = {"compiler": "dynamo"}  # what Lightning makes of ``torch.compile(supernet)``
    trainer.strategy.connect(given)
    with pytest.raises(ValueError, match=r"cannot compile a supernet.*compile the module that supernet.extract"):
        given.on_fit_start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 0.5}, r"trainer.gradient_clip_val.*got 0.5; set model.clip"),
        ({"accumulate_grad_batches": 2}, r"trainer.accumulate_grad_batches.*raise data.batch_size instead, got 2"),
    ],
    ids=["clip", "accumulate"],
)
def test_options_of_the_trainer_that_a_supernet_has_itself_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NASTrainer(logger=False, enable_checkpointing=False, accelerator="cpu", **options).fit(supernet())


class Stop(L.Callback):
    """Ends a training that has no end of its own."""

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.global_step >= 3


def test_a_schedule_needs_an_end_of_training(labelled: Any, fit: Fit) -> None:
    given = supernet(schedule=Cosine())
    with pytest.raises(ValueError, match=r"model.schedule needs to know when training ends; set trainer.max_epochs or"):
        fit(given, labelled(given.space), steps=-1, callbacks=[Stop()])


def test_training_without_an_end_needs_no_schedule(labelled: Any, fit: Fit) -> None:
    given = supernet()
    before = [parameter.detach().clone() for parameter in given.parameters()]
    trainer = fit(given, labelled(given.space), steps=-1, callbacks=[Stop()])
    assert trainer.global_step >= 3
    assert any(not torch.equal(new, old) for new, old in zip(given.parameters(), before, strict=True))
