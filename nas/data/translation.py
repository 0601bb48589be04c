"""Pairs of sentences in two languages."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from nas.data.loader import EpochLoader
from nas.data.sentences import Sentences, read_pairs, to_text, tokenize
from nas.data.source import cached_tensors, parquet_files
from nas.data.splits import check_fraction
from nas.data.tensors import EpochOrder
from search_spaces import derive_seed

__all__ = ["Pairs", "TranslationData"]

Batch = tuple[Tensor, Tensor, Tensor]
_POOL = 64  # batches whose sentences are sorted by length together


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sentences and their translations."""

    source: Sentences
    target: Sentences

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> Tensor:
        """The longer of both, with the one special token that either side has in a batch: ``(S,)``."""
        return 1 + torch.maximum(self.source.lengths, self.target.lengths)

    def take(self, indices: Tensor) -> "Pairs":
        """Return the pairs at ``indices``, in that order."""
        return Pairs(self.source.take(indices), self.target.take(indices))

    def batch(self, indices: Tensor) -> Batch:
        """Return ``(source, target, labels)`` of the pairs at ``indices``, padded to the longest of each."""
        return (
            self.source.padded(indices, end=True),
            self.target.padded(indices, begin=True),
            self.target.padded(indices, end=True),
        )


@final
class TranslationData(LightningDataModule):
    """Sentence pairs of a parquet folder, for ``supernets.Translation``.

    One vocabulary of byte pairs (arXiv 1508.07909) serves both languages; it is learnt from the training split alone
    and kept, with the tokens of all splits, beside the Hugging Face cache. Token 0 is padding, 1 begins and 2 ends a
    sentence. Batches are ``(source, target, labels)``: ``(B, S)``, and twice ``(B, T)`` with labels one position later.
    Sentences of like length share a batch. The order is a function of (seed, epoch).

    Args:
        path: folder with ``train*.parquet``, ``test*.parquet`` and, if any, ``validation*.parquet``, absolute or
            relative to the environment variable ``NAS_DATA_DIR``.
        source_column: column of the sentences to translate.
        target_column: column of their translations.
        vocabulary: the most different tokens, of which 3 are special and 256 single bytes.
        max_length: the most tokens of a sentence with its special one. Longer training pairs are left out; validation
            and test pairs must fit.
        batch_size: pairs per training batch and rank; an incomplete last batch is left out.
        eval_batch_size: pairs per validation and test batch.
        validation_fraction: of the training pairs, where there is no validation file.
        split_seed: of that split.
        seed: of the training order.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        path: str,
        *,
        source_column: str,
        target_column: str,
        vocabulary: int = 4000,
        max_length: int = 64,
        batch_size: int = 64,
        eval_batch_size: int = 128,
        validation_fraction: float = 0.05,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for field, value, least in (
            ("vocabulary", vocabulary, 260),
            ("max_length", max_length, 2),
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"data.{field} must be at least {least}, got {value}")
        if source_column == target_column:
            raise ValueError(f"data.source_column and data.target_column must differ, got {source_column!r} for both")
        check_fraction("validation_fraction", validation_fraction)
        self.path = path
        self.source_column = source_column
        self.target_column = target_column
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.seed = seed
        self._splits: dict[str, Pairs] | None = None
        self._tokenizer = torch.zeros(0, dtype=torch.uint8)
        self.save_hyperparameters(logger=False)  # a run logs its whole configuration; the supernet has a seed too

    @property
    def splits(self) -> dict[str, Pairs]:
        """``train``, ``validation`` and ``test``, read on first use.

        Raises:
            FileNotFoundError: the folder or its files do not exist.
            ValueError: columns are missing, hold no sentences, or a held-out pair is too long.
        """
        if self._splits is None:
            self._splits = self._load()
        return self._splits

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens that a network must know; few sentences may make fewer."""
        return self.vocabulary

    def _load(self) -> dict[str, Pairs]:
        files = parquet_files(self.path)
        stats = [(name, Path(name).stat()) for names in files.values() for name in names]
        identity = {
            "files": [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
            "columns": [self.source_column, self.target_column],
            "vocabulary": self.vocabulary,
            "validation": [self.validation_fraction, self.split_seed],
        }

        def make() -> dict[str, Tensor]:
            texts = {
                split: read_pairs(names, (self.source_column, self.target_column)) for split, names in files.items()
            }
            if "validation" not in texts:
                texts["train"], texts["validation"] = self._split(*texts["train"])
            sides = {f"{split}.{side}": t for split, p in texts.items() for side, t in zip("st", p, strict=True)}
            return tokenize(sides, ["train.s", "train.t"], self.vocabulary)

        tensors = cached_tensors("texts", identity, make)
        self._tokenizer = tensors["tokenizer"]
        splits: dict[str, Pairs] = {}
        for split in ("train", "validation", "test"):
            sides = [Sentences(tensors[f"{split}.{side}.tokens"], tensors[f"{split}.{side}.ends"]) for side in "st"]
            splits[split] = Pairs(*sides)
            longest = int(splits[split].lengths.max())
            if split != "train" and longest > self.max_length:
                raise ValueError(
                    f"data.max_length must be at least {longest}, the longest {split} sentence in tokens, got "
                    f"{self.max_length}; raise it here and the context of the search space, or raise data.vocabulary"
                )
        fitting = torch.nonzero(splits["train"].lengths <= self.max_length).flatten()
        if len(fitting) < self.batch_size:
            raise ValueError(
                f"data.batch_size must be at most {len(fitting)}, the training pairs of at most data.max_length="
                f"{self.max_length} tokens, got {self.batch_size}"
            )
        if len(fitting) < len(splits["train"]):
            splits["train"] = splits["train"].take(fitting)
        return splits

    def _split(
        self, source: list[str], target: list[str]
    ) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
        """Set some training pairs aside."""
        generator = torch.Generator().manual_seed(derive_seed(self.split_seed, "validation"))
        order = torch.randperm(len(source), generator=generator).tolist()
        taken = set(order[: max(1, round(self.validation_fraction * len(source)))])

        def part(texts: list[str], held: bool) -> list[str]:
            return [text for number, text in enumerate(texts) if (number in taken) is held]

        return (part(source, False), part(target, False)), (part(source, True), part(target, True))

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the text of each row of ``(B, T)`` tokens up to its end, special tokens left out."""
        _ = self.splits
        return to_text(self._tokenizer, tokens)

    def prepare_data(self) -> None:
        """Fill the cache on disk from one process, before the others read it."""
        _ = self.splits

    def setup(self, stage: str) -> None:
        """Read the data on this rank."""
        _ = self.splits

    def train_dataloader(self) -> EpochLoader:
        """Return shuffled batches of pairs of like length.

        Raises:
            ValueError: a rank has fewer pairs than one batch.
        """
        pairs = self.splits["train"]
        order = self._order(len(pairs), shuffle=True)
        if len(order) < self.batch_size:
            raise ValueError(
                f"data.batch_size must be at most {len(order)}, the training pairs of each of {order.world_size} "
                f"process(es), got {self.batch_size}"
            )
        lengths = pairs.lengths

        def plan(order: EpochOrder) -> list[Tensor]:
            indices = order.indices()[: len(order) // self.batch_size * self.batch_size]
            batches: list[Tensor] = []
            for pool in torch.split(indices, _POOL * self.batch_size):
                batches += torch.split(pool[lengths[pool].argsort(stable=True)], self.batch_size)
            seed = derive_seed(self.seed, "batches", order.epoch)
            shuffled = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
            return [batches[position] for position in shuffled.tolist()]

        return EpochLoader(order, plan=plan, read=lambda epoch, indices: pairs.batch(indices))

    def val_dataloader(self) -> EpochLoader:
        """Return validation batches, short sentences first."""
        return self._evaluation_loader(self.splits["validation"])

    def test_dataloader(self) -> EpochLoader:
        """Return test batches, short sentences first."""
        return self._evaluation_loader(self.splits["test"])

    def calibration_batches(self, count: int) -> list[Batch]:
        """Return ``count`` fixed training batches; the first n of them are the same whatever ``count`` is.

        Raises:
            ValueError: the training split does not hold ``count`` batches.
        """
        pairs = self.splits["train"]
        available = len(pairs) // self.batch_size
        if not 1 <= count <= available:
            raise ValueError(
                f"calibration takes between 1 and {available} batches of data.batch_size={self.batch_size} pairs, "
                f"got {count}"
            )
        generator = torch.Generator().manual_seed(derive_seed(self.split_seed, "calibration"))
        order = torch.randperm(len(pairs), generator=generator)[: count * self.batch_size]
        return [pairs.batch(indices) for indices in torch.split(order, self.batch_size)]

    def _evaluation_loader(self, pairs: Pairs) -> EpochLoader:
        by_length = pairs.lengths.argsort(stable=True)
        return EpochLoader(
            self._order(len(pairs), shuffle=False),
            plan=lambda order: torch.split(by_length[order.indices()], self.eval_batch_size),
            read=lambda epoch, indices: pairs.batch(indices),
        )

    def _order(self, size: int, *, shuffle: bool) -> EpochOrder:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochOrder(size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size)
