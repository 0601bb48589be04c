"""The one way to batch: slices of in-memory tensors, in an order that is a function of (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from search_spaces import derive_seed

__all__ = ["Augmentation", "EpochOrder", "ImageSplit", "Standardization", "TensorLoader"]


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images (N, C, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "ImageSplit":
        """Return an owned copy of the examples at ``indices``, in that order."""
        return ImageSplit(images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class Standardization:
    """Per-channel affine map of pixels to floats: ``(x - mean[c]) / std[c]``, in units of the stored pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> "Standardization":
        """Return the map that gives ``images`` (N, C, H, W) uint8 zero mean and unit deviation in every channel.

        Counted exactly from pixel histograms, so it depends on neither order nor batch size. A constant channel keeps
        deviation one.
        """
        levels = torch.arange(256, dtype=torch.float64)
        means, deviations = [], []
        for channel in range(images.shape[1]):
            weights = torch.bincount(images[:, channel].flatten(), minlength=256).double()
            weights /= weights.sum()
            mean = (weights * levels).sum()
            means.append(float(mean))
            deviations.append(float((weights * (levels - mean) ** 2).sum().sqrt()) or 1.0)
        return cls(mean=tuple(means), std=tuple(deviations))

    def __call__(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) uint8 to float32 of the same shape."""
        shape = (1, -1, 1, 1)
        return (images.float() - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)


@dataclass(frozen=True)
class Augmentation:
    """Random crops of zero-padded images and horizontal flips, drawn for each image of a batch.

    Args:
        crop_padding: pixels of zero padding on every side before a crop of the original size; 0 crops nothing.
        flip: mirror each image left-right with probability one half.
    """

    crop_padding: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return augmented copies of ``images`` (B, C, H, W), same shape and type."""
        batch, _, height, width = images.shape
        rows = torch.arange(height).expand(batch, height)
        columns = torch.arange(width).expand(batch, width)
        if self.flip:
            mirrored = torch.randint(2, (batch, 1), generator=generator, dtype=torch.bool)
            columns = torch.where(mirrored, columns.flip(1), columns)
        if self.crop_padding:
            offsets = torch.randint(2 * self.crop_padding + 1, (2, batch, 1), generator=generator)
            rows, columns = rows + offsets[0], columns + offsets[1]
            images = F.pad(images, (self.crop_padding,) * 4)
        picked = images[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
        return picked.permute(0, 3, 1, 2).contiguous()


@final
class EpochOrder:
    """The examples one rank sees in one epoch; Lightning calls ``set_epoch`` on a loader's ``sampler``.

    Shuffled, the epoch's permutation depends on (seed, epoch) only and every rank takes its own equal share of it, so
    fewer than ``world_size`` examples are left out of an epoch. Unshuffled, the ranks share all examples exactly once.
    """

    def __init__(self, size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def __len__(self) -> int:
        if self.shuffle:
            return self.size // self.world_size
        return len(range(self.rank, self.size, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass follows."""
        self.epoch = epoch

    def indices(self) -> Tensor:
        """Return the (len(self),) indices of this rank in the current epoch."""
        if not self.shuffle:
            return torch.arange(self.size)[self.rank :: self.world_size]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.size, generator=generator)
        return order[self.rank :: self.world_size][: len(self)]


@final
class TensorLoader:
    """Batches ``(float images (B, C, H, W), labels (B,))`` cut from in-memory tensors, without worker processes.

    The augmentation of a batch is drawn from (seed, epoch, rank, position of the batch). ``state_dict`` holds the
    position inside an epoch, which makes Lightning resume in the middle of one exactly where it stopped.

    Args:
        split: the examples.
        order: which of them, in which order; Lightning finds it as ``sampler``.
        batch_size: examples per batch.
        standardization: applied to every batch, last.
        augmentation: applied to the pixels first; ``None`` for evaluation.
        drop_last: leave out an incomplete last batch.
    """

    def __init__(
        self,
        split: ImageSplit,
        *,
        order: EpochOrder,
        batch_size: int,
        standardization: Standardization,
        augmentation: Augmentation | None = None,
        drop_last: bool = False,
    ) -> None:
        self.split = split
        self.sampler = order
        self.batch_sampler = None  # Lightning looks for one wherever it finds a sampler
        self.batch_size = batch_size
        self.standardization = standardization
        self.augmentation = augmentation
        self.drop_last = drop_last
        self._position = (0, 0)  # (epoch, batches handed out in it)
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        examples = len(self.sampler)
        return examples // self.batch_size if self.drop_last else -(-examples // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Lightning asks for the iterator of the first epoch before it calls set_epoch: nothing is read until next().
        epoch = self.sampler.epoch
        resume, self._resume = self._resume, None
        first = resume[1] if resume is not None and resume[0] == epoch else 0
        batches = torch.split(self.sampler.indices(), self.batch_size)[: len(self)]
        for number, indices in enumerate(batches[first:], start=first):
            images = self.split.images[indices]
            if self.augmentation is not None:
                seed = derive_seed(self.sampler.seed, "augment", epoch, self.sampler.rank, number)
                images = self.augmentation(images, torch.Generator().manual_seed(seed))
            self._position = (epoch, number + 1)
            yield self.standardization(images), self.split.labels[indices]

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of batches handed out in it."""
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass, if it is over the saved epoch, start after the batches already handed out."""
        self._position = self._resume = (int(state_dict["epoch"]), int(state_dict["batches"]))
