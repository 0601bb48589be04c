"""Recordings of speakers as log-mel features, for speaker verification."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from nas.data.loader import EpochLoader
from nas.data.source import cached_tensors, folder_splits, parquet_files
from nas.data.splits import check_fraction
from nas.data.tensors import EpochOrder
from nas.data.utterances import SpeechSplits, Utterances, decode, split
from nas.data.waveforms import LogMel
from search_spaces import derive_seed

__all__ = ["SpeechData"]


@final
class SpeechData(LightningDataModule):
    """Recordings of speakers, decoded once to log-mel features that are cached beside the Hugging Face cache.

    The folder holds parquet files of recordings (uncompressed WAV) with their speaker. ``held_out`` names speakers of
    whom nothing is trained or validated on: all their recordings, of every file, are the test split. Without it the
    test files are. Validation recordings are by the speakers of the training split: those of the validation files if
    there are any, or else ``validation_fraction`` of the training files, in proportion to the speakers.

    ``speeds`` makes few speakers many: a recording played faster or slower, and so higher or lower, counts as one by
    another speaker, as is usual in training (Yamamoto et al. 2019, Interspeech). All speeds of a recording are in one
    split. Test recordings are as they were recorded unless ``test_speeds`` says otherwise; with several, the pairs to
    tell apart include one person at two speeds, which is no usual trial.

    Batches are ``(features (B, mels, frames), speakers (B,))``. Training crops are a function of (seed, epoch,
    recording), validation and test crops are from the middle. Shorter recordings are repeated.

    Args:
        path: folder with ``train*.parquet`` and ``test*.parquet``, absolute or relative to the environment variable
            ``NAS_DATA_DIR``.
        audio_column: of structs with the bytes of a WAV file under ``bytes``.
        speaker_column: of text or integers.
        held_out: at least two speakers, or none.
        speeds: ascending factors on the speed of training and validation recordings, among them 1.
        test_speeds: those of ``speeds`` at which the test recordings are played.
        sample_rate: in Hz; recordings at another one are resampled.
        mels: features per frame.
        window: of the transform, in seconds.
        hop: between frames, in seconds.
        centre: subtract the mean of each recording; see :class:`nas.data.waveforms.LogMel`.
        frames: of a training crop.
        eval_frames: of a validation or test crop. ``None``: whole recordings, one per batch, which takes longer.
        batch_size: recordings per training batch and rank; an incomplete last batch is left out.
        eval_batch_size: recordings per validation and test batch.
        validation_fraction: of the training recordings, where the folder has no validation files.
        speakers: what the network is made for; checked against the training split. ``None``: not checked.
        split_seed: of the split into training and validation.
        seed: of the training order and the crops.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        path: str,
        *,
        audio_column: str = "audio",
        speaker_column: str = "speaker",
        held_out: Sequence[str] = (),
        speeds: Sequence[float] = (1.0,),
        test_speeds: Sequence[float] = (1.0,),
        sample_rate: int = 16_000,
        mels: int = 80,
        window: float = 0.025,
        hop: float = 0.01,
        centre: bool = True,
        frames: int = 200,
        eval_frames: int | None = 300,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        validation_fraction: float = 0.1,
        speakers: int | None = None,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        held_out, speeds = tuple(str(name) for name in held_out), tuple(float(speed) for speed in speeds)
        test_speeds = tuple(float(speed) for speed in test_speeds)
        for field, value in (
            ("frames", frames),
            ("eval_frames", 1 if eval_frames is None else eval_frames),
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
        ):
            if value < 1:
                raise ValueError(f"data.{field} must be at least 1, got {value}")
        check_fraction("validation_fraction", validation_fraction)
        front_end = LogMel(sample_rate, mels, window, hop, centre)
        if 1.0 not in speeds or list(speeds) != sorted(set(speeds)) or min(speeds) <= 0:
            raise ValueError(f"data.speeds must be ascending factors above 0, among them 1, got {list(speeds)}")
        if not test_speeds or not set(test_speeds) <= set(speeds):
            raise ValueError(f"data.test_speeds must be some of data.speeds={list(speeds)}, got {list(test_speeds)}")
        if len(set(held_out)) != len(held_out) or len(held_out) == 1:
            raise ValueError(
                f"data.held_out must be none or at least two different speakers, got {list(held_out)}; pairs of two "
                "speakers are needed beside those of one"
            )
        self.path = path
        self.audio_column = audio_column
        self.speaker_column = speaker_column
        self.held_out = held_out
        self.speeds = speeds
        self.test_speeds = test_speeds
        self.sample_rate = sample_rate
        self.mels = mels
        self.window = window
        self.hop = hop
        self.centre = centre
        self.frames = frames
        self.eval_frames = eval_frames
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation_fraction = validation_fraction
        self.speakers = speakers
        self.split_seed = split_seed
        self.seed = seed
        self._front_end = front_end
        self._splits: SpeechSplits | None = None
        self.save_hyperparameters(logger=False)  # a run logs its whole configuration; the supernet has a seed too

    @property
    def splits(self) -> SpeechSplits:
        """The splits, read on first use; features have zero mean and unit deviation over the training recordings.

        Raises:
            FileNotFoundError: the folder or its files do not exist.
            ValueError: columns, recordings or speakers cannot be used as asked.
        """
        if self._splits is None:
            self._splits = self._load()
        return self._splits

    def _load(self) -> SpeechSplits:
        files = parquet_files(self.path)
        stats = [(name, Path(name).stat()) for names in files.values() for name in names]
        columns = {"audio_column": self.audio_column, "speaker_column": self.speaker_column}
        identity = {
            "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
            "front_end": asdict(self._front_end),
            "speeds": self.speeds,
            **columns,
        }
        decoded = cached_tensors(
            "speech",
            identity,
            lambda: decode(folder_splits(files), **columns, speeds=self.speeds, front_end=self._front_end),
        )
        splits = split(
            decoded,
            held_out=self.held_out,
            speeds=self.speeds,
            test_speeds=self.test_speeds,
            validation_fraction=self.validation_fraction,
            seed=self.split_seed,
        )
        if self.speakers not in (None, splits.speakers):
            raise ValueError(
                f"data.speakers must be {splits.speakers} for {self.path!r} (each training speaker at "
                f"{len(self.speeds)} speeds), got {self.speakers}; correct it here and in the search space"
            )
        return splits

    def prepare_data(self) -> None:
        """Fill the cache from one process, before the others read it."""
        _ = self.splits

    def setup(self, stage: str) -> None:
        """Read the data on this rank."""
        _ = self.splits

    def train_dataloader(self) -> EpochLoader:
        """Return shuffled random crops.

        Raises:
            ValueError: a rank has fewer recordings than one batch.
        """
        train = self.splits.train
        order = self._order(len(train), shuffle=True)
        if len(order) < self.batch_size:
            raise ValueError(
                f"data.batch_size must be at most {len(order)}, the training recordings of each of "
                f"{order.world_size} process(es), got {self.batch_size}; lower it or give more recordings"
            )

        def read(epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
            places = _uniform(len(train), derive_seed(self.seed, "crop", epoch))[indices]
            return train.crop(indices, places, self.frames), train.speakers[indices]

        return EpochLoader(
            order,
            plan=lambda order: torch.split(order.indices(), self.batch_size)[: len(order) // self.batch_size],
            read=read,
        )

    def val_dataloader(self) -> EpochLoader:
        """Return validation recordings in a fixed order."""
        return self._evaluation_loader(self.splits.validation)

    def test_dataloader(self) -> EpochLoader:
        """Return test recordings in a fixed order."""
        return self._evaluation_loader(self.splits.test)

    def calibration_batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return ``count`` fixed training batches, equal on every rank, for batch-norm statistics.

        The first n of them are the same whatever ``count`` is.

        Raises:
            ValueError: the training split does not hold ``count`` batches.
        """
        train = self.splits.train
        available = len(train) // self.batch_size
        if not 1 <= count <= available:
            raise ValueError(
                f"calibration takes between 1 and {available} batches of data.batch_size={self.batch_size} from "
                f"{len(train)} training recordings, got {count}"
            )
        seed = derive_seed(self.split_seed, "calibration")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: count * self.batch_size]
        places = _uniform(len(train), derive_seed(seed, "crop"))
        frames = self.frames if self.eval_frames is None else self.eval_frames
        return [
            (train.crop(indices, places[indices], frames), train.speakers[indices])
            for indices in torch.split(order, self.batch_size)
        ]

    def _evaluation_loader(self, split: Utterances) -> EpochLoader:
        def read(epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
            del epoch
            whole = int(split.lengths[indices[0]])
            places = torch.where(split.lengths[indices] >= (self.eval_frames or whole), 0.5, 0.0)
            return split.crop(indices, places, self.eval_frames or whole), split.speakers[indices]

        size = 1 if self.eval_frames is None else self.eval_batch_size
        order = self._order(len(split), shuffle=False)
        return EpochLoader(order, plan=lambda order: torch.split(order.indices(), size), read=read)

    def _order(self, size: int, *, shuffle: bool) -> EpochOrder:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochOrder(size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size)


def _uniform(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
