"""What the image data modules have in common: splits in memory, loaders, calibration batches."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from nas.data.splits import check_fraction
from nas.data.tensors import Augmentation, EpochOrder, ImageSplit, Standardization, TensorLoader
from search_spaces import derive_seed

__all__ = ["ImageDataModule", "Splits"]


@dataclass(frozen=True, eq=False)
class Splits:
    """The three disjoint parts of a data set and its number of classes."""

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    num_classes: int


class ImageDataModule(LightningDataModule, ABC):
    """Image classification from tensors in memory.

    Life cycle: the constructor only checks its arguments. The data is read once, on first use: by ``prepare_data``,
    ``setup``, ``num_classes``, ``image_shape`` or a loader, whichever comes first. Subclasses implement ``load``, whose
    result may depend on the constructor arguments only, and save their hyperparameters, so that a checkpoint holds
    all it takes to build the module again.

    Invariants: splits depend on the data and ``split_seed``; the order and the augmentation of training batches on
    (seed, epoch, rank, position); images are standardised by the training split; the test split is never part of
    training, validation or calibration. Ranks of a distributed run see disjoint shares.

    Args:
        batch_size: training examples per batch and rank; an incomplete last batch is left out.
        eval_batch_size: validation and test examples per batch.
        validation_fraction: of the training data, between 0 and 1.
        crop_padding: pixels of padding for random crops in training, 0 for none.
        flip: random left-right flips in training.
        split_seed: of the splits.
        seed: of the training order and the augmentation.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        validation_fraction: float,
        crop_padding: int,
        flip: bool,
        split_seed: int,
        seed: int,
    ) -> None:
        super().__init__()
        for field, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("crop_padding", crop_padding, 0),
        ):
            if value < least:
                raise ValueError(f"data.{field} must be at least {least}, got {value}")
        check_fraction("validation_fraction", validation_fraction)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation_fraction = validation_fraction
        self.crop_padding = crop_padding
        self.flip = flip
        self.split_seed = split_seed
        self.seed = seed
        self._splits: Splits | None = None
        self._standardization: Standardization | None = None

    @abstractmethod
    def load(self) -> Splits:
        """Read the data and split it; called once per module and process."""

    @property
    def splits(self) -> Splits:
        """The splits, read on first use."""
        if self._splits is None:
            self._splits = self.load()
        return self._splits

    @property
    def standardization(self) -> Standardization:
        """The affine map from stored pixels to model inputs, from the training split."""
        if self._standardization is None:
            self._standardization = Standardization.of(self.splits.train.images)
        return self._standardization

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.splits.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.splits.train.images.shape
        return channels, height, width

    def prepare_data(self) -> None:
        """Fill the caches on disk from one process, before the others read them."""
        _ = self.splits

    def setup(self, stage: str) -> None:
        """Read the data on this rank."""
        _ = self.standardization

    def train_dataloader(self) -> TensorLoader:
        """Return shuffled, augmented training batches.

        Raises:
            ValueError: a rank has fewer training images than one batch.
        """
        order = self._order(len(self.splits.train), shuffle=True)
        if len(order) < self.batch_size:
            raise ValueError(
                f"data.batch_size must be at most {len(order)}, the training images of each of {order.world_size} "
                f"process(es), got {self.batch_size}; lower it or give more images"
            )
        augmentation = Augmentation(crop_padding=self.crop_padding, flip=self.flip)
        return TensorLoader(
            self.splits.train,
            order=order,
            batch_size=self.batch_size,
            standardization=self.standardization,
            augmentation=augmentation if augmentation != Augmentation() else None,
            drop_last=True,
        )

    def val_dataloader(self) -> TensorLoader:
        """Return validation batches in a fixed order."""
        return self._evaluation_loader(self.splits.validation)

    def test_dataloader(self) -> TensorLoader:
        """Return test batches in a fixed order."""
        return self._evaluation_loader(self.splits.test)

    def calibration_batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return ``count`` fixed training batches, un-augmented and equal on every rank, for batch-norm statistics.

        The first n of them are the same whatever ``count`` is.

        Raises:
            ValueError: the training split does not hold ``count`` batches.
        """
        train = self.splits.train
        available = len(train) // self.batch_size
        if not 1 <= count <= available:
            raise ValueError(
                f"calibration takes between 1 and {available} batches of data.batch_size={self.batch_size} from "
                f"{len(train)} training images, got {count}"
            )
        generator = torch.Generator().manual_seed(derive_seed(self.split_seed, "calibration"))
        order = torch.randperm(len(train), generator=generator)[: count * self.batch_size]
        picked = (train.take(indices) for indices in torch.split(order, self.batch_size))
        return [(self.standardization(part.images), part.labels) for part in picked]

    def _evaluation_loader(self, split: ImageSplit) -> TensorLoader:
        return TensorLoader(
            split,
            order=self._order(len(split), shuffle=False),
            batch_size=self.eval_batch_size,
            standardization=self.standardization,
        )

    def _order(self, size: int, *, shuffle: bool) -> EpochOrder:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochOrder(size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size)
