"""Language modelling on the characters of one text file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from nas.data.loader import EpochLoader
from nas.data.source import DATA_DIR_VARIABLE
from nas.data.splits import check_fraction
from nas.data.tensors import EpochOrder
from search_spaces import derive_seed

__all__ = ["TextData", "TextSplits"]


@dataclass(frozen=True, eq=False)
class TextSplits:
    """A text as tokens, cut into three parts, and the characters that the tokens stand for.

    Attributes:
        train: ``(N,)`` int64 tokens.
        validation: what follows.
        test: the end of the text.
        characters: token ``i + 1`` is ``characters[i]``; token 0 is any character that the training part lacks.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    characters: str


@final
class TextData(LightningDataModule):
    """The characters of one text file, for ``supernets.LanguageModelling``.

    The file is cut in three in its own order: the first part trains, then follow validation and test. The vocabulary
    is made of the training part alone. A training epoch shows the training part once, in windows of ``context``
    characters in shuffled order, cut from a start that differs from epoch to epoch; validation and test are cut from
    their first character on, and every character of them but the first is predicted exactly once.

    Batches are ``(tokens, next tokens)``, both ``(B, context)``; the last validation and test window may be shorter
    and comes by itself. The order is a function of (seed, epoch).

    Args:
        path: of the file in UTF-8, absolute or relative to the environment variable ``NAS_DATA_DIR`` or, without it,
            to the working directory.
        context: characters of a window.
        batch_size: windows per training batch and rank; an incomplete last batch is left out.
        eval_batch_size: windows per validation and test batch.
        validation_fraction: of the text.
        test_fraction: of the text.
        vocabulary: size the network is made for; checked against the text. ``None``: not checked.
        seed: of the training order.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        path: str,
        *,
        context: int = 64,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        vocabulary: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for field, value in (("context", context), ("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ValueError(f"data.{field} must be at least 1, got {value}")
        check_fraction("validation_fraction", validation_fraction)
        check_fraction("test_fraction", test_fraction)
        if validation_fraction + test_fraction >= 1:
            raise ValueError(
                "data.validation_fraction and data.test_fraction must leave something to train on, got "
                f"{validation_fraction} and {test_fraction}"
            )
        self.path = path
        self.context = context
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.vocabulary = vocabulary
        self.seed = seed
        self._splits: TextSplits | None = None
        self.save_hyperparameters(logger=False)  # a run logs its whole configuration; the supernet has a seed too

    @property
    def splits(self) -> TextSplits:
        """The three parts, read on first use.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not text, too short, or of another vocabulary.
        """
        if self._splits is None:
            self._splits = self._load()
        return self._splits

    @property
    def vocabulary_size(self) -> int:
        """Number of different tokens: the characters of the training part, and one for any other."""
        return 1 + len(self.splits.characters)

    def _load(self) -> TextSplits:
        text = _read(self.path)
        test = round(len(text) * self.test_fraction)
        validation = round(len(text) * self.validation_fraction)
        train = len(text) - test - validation
        if min(train - self.context, validation, test) < 2:
            raise ValueError(
                f"data.path: {self.path!r} has {len(text)} characters, {train} to train, {validation} to validate and "
                f"{test} to test; training needs more than data.context={self.context} and the others at least 2"
            )
        characters = "".join(sorted(set(text[:train])))
        if self.vocabulary is not None and self.vocabulary != 1 + len(characters):
            raise ValueError(
                f"data.vocabulary must be {1 + len(characters)} for {self.path!r} (its training part has "
                f"{len(characters)} different characters, and one token stands for any other), got {self.vocabulary}; "
                "correct it here and in the search space"
            )
        index = {character: number for number, character in enumerate(characters, start=1)}
        tokens = torch.tensor([index.get(character, 0) for character in text])
        parts = torch.split(tokens, [train, validation, test])
        return TextSplits(train=parts[0], validation=parts[1], test=parts[2], characters=characters)

    def encode(self, text: str) -> Tensor:
        """Return ``(N,)`` tokens of a text; 0 for characters that the training part lacks."""
        return torch.tensor([self.splits.characters.find(character) + 1 for character in text], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of ``(N,)`` tokens, with U+FFFD for token 0."""
        letters = "�" + self.splits.characters
        return "".join(letters[token] for token in tokens.tolist())

    def prepare_data(self) -> None:
        """Read the file, so that a wrong path is an error before anything is trained."""
        _ = self.splits

    def setup(self, stage: str) -> None:
        """Read the file on this rank."""
        _ = self.splits

    def train_dataloader(self) -> EpochLoader:
        """Return shuffled windows.

        Raises:
            ValueError: a rank has fewer windows than one batch.
        """
        tokens, context = self.splits.train, self.context
        windows = (len(tokens) - context) // context  # whatever the start within the first window
        order = self._order(windows, shuffle=True)
        if len(order) < self.batch_size:
            raise ValueError(
                f"data.batch_size must be at most {len(order)}, the windows of {context} characters of each of "
                f"{order.world_size} process(es), got {self.batch_size}; lower it or data.context"
            )

        def read(epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
            return _windows(tokens, _offset(self.seed, epoch, context) + indices * context, context)

        return EpochLoader(
            order,
            plan=lambda order: torch.split(order.indices(), self.batch_size)[: len(order) // self.batch_size],
            read=read,
        )

    def val_dataloader(self) -> EpochLoader:
        """Return the windows of the validation part in their order."""
        return self._evaluation_loader(self.splits.validation)

    def test_dataloader(self) -> EpochLoader:
        """Return the windows of the test part in their order."""
        return self._evaluation_loader(self.splits.test)

    def calibration_batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return ``count`` fixed training batches; the first n of them are the same whatever ``count`` is.

        Raises:
            ValueError: the training part does not hold ``count`` batches.
        """
        windows = (len(self.splits.train) - 1) // self.context
        available = windows // self.batch_size
        if not 1 <= count <= available:
            raise ValueError(
                f"calibration takes between 1 and {available} batches of data.batch_size={self.batch_size} windows, "
                f"got {count}"
            )
        order = torch.randperm(windows, generator=torch.Generator().manual_seed(derive_seed(0, "calibration")))
        picked = torch.split(order[: count * self.batch_size], self.batch_size)
        return [_windows(self.splits.train, indices * self.context, self.context) for indices in picked]

    def _evaluation_loader(self, tokens: Tensor) -> EpochLoader:
        whole, rest = divmod(len(tokens) - 1, self.context)
        order = self._order(whole + (rest > 0), shuffle=False)

        def plan(order: EpochOrder) -> list[Tensor]:
            indices = order.indices()
            last = indices[indices == whole]
            batches = list(torch.split(indices[indices < whole], self.eval_batch_size)) if whole else []
            return [batch for batch in (*batches, last) if len(batch)]

        def read(epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
            del epoch
            return _windows(tokens, indices * self.context, self.context if int(indices[0]) < whole else rest)

        return EpochLoader(order, plan=plan, read=read)

    def _order(self, size: int, *, shuffle: bool) -> EpochOrder:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return EpochOrder(size, shuffle=shuffle, seed=self.seed, rank=rank, world_size=world_size)


def _read(path: str) -> str:
    root = os.environ.get(DATA_DIR_VARIABLE, "")
    file = (Path(root) / Path(path).expanduser()).absolute()
    if not file.is_file():
        where = f"{DATA_DIR_VARIABLE} is {root!r}" if root else f"{DATA_DIR_VARIABLE} is not set"
        raise FileNotFoundError(
            f"data.path must be a text file, got {path!r}, and {file} is no file ({where}); give an absolute path or "
            f"set {DATA_DIR_VARIABLE} to the folder that holds it"
        )
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.path: {file} must be text in UTF-8 ({error}); convert it") from error


def _offset(seed: int, epoch: int, context: int) -> int:
    """Where the windows of an epoch start."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "offset", epoch))
    return int(torch.randint(context, (), generator=generator))


def _windows(tokens: Tensor, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return ``(B, length)`` tokens from ``starts`` on, and those one position later."""
    places = starts[:, None] + torch.arange(length)
    return tokens[places], tokens[places + 1]
