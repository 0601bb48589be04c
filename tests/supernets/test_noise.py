"""Dropout, the order of the data and its augmentation, in a training that was interrupted."""

import copy
import random
from collections.abc import Callable, Iterator, Sized
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from search_spaces import FactorySpace
from supernets import Classification, Supernet, UniformRule
from supernets.noise import EpochSeeded


class Augmented(Dataset[tuple[Tensor, int]]):
    """Noise from every global random state there is, drawn anew for each pass."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shift = random.random() + np.random.rand() + torch.rand(())
        return torch.full((6,), float(index) / 8) + shift, index % 2


class Dropping(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(6, width), nn.Dropout(0.5), nn.Linear(width, 2))


def shuffled() -> Any:
    return DataLoader(Augmented(), 4, shuffle=True)


class Fixed:
    """Batches of a class of its own, always the same."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(torch.ones(4, 6), torch.tensor([0, 1, 1, 0]))] * 2)


def train(loader: Any, epochs: int, checkpoint: Path | None = None, **given: Any) -> tuple[Supernet, L.Trainer]:
    torch.manual_seed(3)
    for _ in range(0 if checkpoint is None else 5):  # what a resumed program has drawn by now is another number
        torch.rand(1), random.random(), np.random.rand()
    space = FactorySpace(Dropping, {"width": [4, 8]}, input_shape=(6,))
    supernet = Supernet(space, Classification(2), rule=UniformRule(2))
    options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | given
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, enable_model_summary=False, **options)
    trainer.fit(supernet, loader, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return supernet, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loader", [shuffled, Fixed])
def test_a_resumed_training_ends_at_the_same_weights(loader: Callable[[], Any], tmp_path: Path) -> None:
    whole, _ = train(loader(), 3)
    train(loader(), 1)[1].save_checkpoint(tmp_path / "one.ckpt")
    resumed, trainer = train(loader(), 3, tmp_path / "one.ckpt")
    assert trainer.global_step == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_epochs_differ_and_a_sampler_hears_of_them() -> None:
    sampler: Sampler[int] = DistributedSampler(Augmented(), num_replicas=1, rank=0, shuffle=True)
    loader = EpochSeeded(DataLoader(Augmented(), 4, sampler=sampler), root=1)
    passes = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        passes.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(passes[0], passes[2])
    assert not torch.equal(passes[0].sort(0).values, passes[1].sort(0).values)
    assert isinstance(sampler, Sized)
    assert sampler.epoch == 0  # type: ignore[attr-defined]
    assert len(loader) == 2
    assert loader.dataset is loader.loader.dataset
    assert copy.copy(loader).batch_size == 4


class Stateful(DataLoader[Any]):
    """Keeps its place by itself."""

    def state_dict(self) -> dict[str, int]:
        return {"place": 3}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise AssertionError(state)


@pytest.mark.filterwarnings("ignore")
def test_a_loader_that_keeps_its_place_is_left_as_it_is() -> None:
    loader = Stateful(Augmented(), 4)
    _, trainer = train(loader, 1)
    assert trainer.train_dataloader is loader


class Streamed(IterableDataset[tuple[Tensor, int]]):
    """Examples whose number nobody knows before, augmented."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        rows = Augmented()
        return (rows[index] for index in range(len(rows)))


class Anew(L.LightningDataModule):
    """Makes its loader again for every epoch."""

    def train_dataloader(self) -> Any:
        return shuffled()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["streamed", "anew"])
def test_loaders_of_no_length_and_of_one_epoch_resume_too(case: str, tmp_path: Path) -> None:
    def data() -> Any:
        return Anew() if case == "anew" else DataLoader(Streamed(), 4)

    every = {"reload_dataloaders_every_n_epochs": 1} if case == "anew" else {}
    whole, _ = train(data(), 3, **every)
    train(data(), 1, **every)[1].save_checkpoint(tmp_path / "one.ckpt")
    resumed, _ = train(data(), 3, tmp_path / "one.ckpt", **every)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


class Saving(L.Callback):
    """Saves a checkpoint after so many steps."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class Placed(Fixed):
    """Batches that differ, and the number of those handed out."""

    place = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first, self.place = self.place, 0
        for number in range(first, 4):
            self.place = (number + 1) % 4
            yield torch.full((4, 6), number / 4), torch.tensor([0, 1, 1, 0])

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


@pytest.mark.filterwarnings("ignore")
def test_a_training_resumed_within_an_epoch_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    whole, _ = train(Placed(), 2, callbacks=[Saving(3, tmp_path / "three.ckpt")])
    resumed, trainer = train(Placed(), 2, tmp_path / "three.ckpt")
    assert trainer.global_step == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
