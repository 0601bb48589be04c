"""Random numbers of training as functions of where a training stands, so that a resumed one draws the same again."""

import random
from collections.abc import Iterator
from typing import Any, final

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from search_spaces import derive_seed

__all__ = ["EpochSeeded", "Resumable", "seed_all"]


def seed_all(seed: int) -> None:
    """Seed the global random states of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@final
class EpochSeeded:
    """A loader that begins each epoch with the random state of that epoch; Lightning finds itself as its ``sampler``.

    The order of ``shuffle=True``, the seeds of worker processes and the first draws of an augmentation come from the
    global random states of Python, NumPy and torch, which a resumed training has elsewhere than the uninterrupted one.

    Args:
        loader: of the training batches.
        root: of the seeds.
        epoch: of the next pass.
    """

    def __init__(self, loader: DataLoader[Any], root: int, epoch: int = 0) -> None:
        self.loader = loader
        self.root = root
        self.sampler = self
        self.batch_sampler = None  # Lightning looks for one wherever it finds a sampler
        self._epoch = epoch

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader, for callbacks that look at its data set."""
        if name == "loader":  # not there yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass, also for a sampler of the loader that asks for it."""
        self._epoch = epoch
        for sampler in (self.loader.sampler, getattr(self.loader.batch_sampler, "sampler", None)):
            listener = getattr(sampler, "set_epoch", None)
            if callable(listener):
                listener(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # Lightning asks for the iterator of the first epoch before it calls set_epoch: nothing is drawn until next().
        seed_all(derive_seed(self.root, "epoch", self._epoch))
        yield from self.loader


class Resumable(L.LightningModule):
    """A module whose training draws the same when it is resumed, whatever the program has drawn before."""

    seed: int
    """Of the module; what is drawn depends on that of the program too."""
    _noise = 0

    def on_fit_start(self) -> None:
        """Choose the random numbers of this training."""
        self._noise = derive_seed(self.seed, torch.initial_seed())

    def on_train_start(self) -> None:
        """Make the order and the augmentation of the data functions of the epoch, and go on where one was left."""
        _restore_places(self.trainer)
        _seed_epochs(self.trainer, self._noise)

    def on_train_epoch_start(self) -> None:
        """Do the same with loaders that were made for this epoch."""
        _seed_epochs(self.trainer, self._noise)

    def seed_step(self) -> None:
        """Seed dropout, and what the data draws in this process until the next step; call it first in a step."""
        seed = derive_seed(self._noise, "noise", self.global_step, self.global_rank)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed keeps a note of every call for devices to come
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)


def _restore_places(trainer: L.Trainer) -> None:
    """Let loaders that keep their place (``state_dict``) go on from it where a training is resumed within an epoch.

    Lightning does so when it sets up its loaders, but whoever asks for the number of steps, as schedules do, has it set
    them up before it reads the checkpoint. Call it when training starts.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load:
        loop._load_combined_loader_states()
        _begin_again(trainer)


def _seed_epochs(trainer: L.Trainer, root: int) -> None:
    """Make the order and the augmentation of PyTorch's own loaders a function of the epoch.

    Loaders of other classes, ours among them, and those that keep their place (``state_dict``) are left as they are.
    Call it when training starts, and when an epoch does, for which Lightning may have made loaders anew.
    """
    loop = trainer.fit_loop
    combined = loop._combined_loader
    assert combined is not None  # noqa: S101 - training starts with loaders
    plain = [isinstance(loader, DataLoader) and not hasattr(loader, "state_dict") for loader in combined.flattened]
    if not any(plain):
        return
    current: Any = loop.epoch_progress.current  # Lightning declares less than it has
    pairs = zip(combined.flattened, plain, strict=True)
    combined.flattened = [
        EpochSeeded(loader, root, current.processed) if seeded else loader for loader, seeded in pairs
    ]
    _begin_again(trainer)


def _begin_again(trainer: L.Trainer) -> None:
    """Make the iterator anew that Lightning keeps, of the loaders as they were."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None  # noqa: S101 - there are loaders, and with them what reads them
    iter(fetcher)
