"""Pairs of sentences read from parquet files, and their tokens under one vocabulary of byte pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BEGIN", "END", "PADDING", "Sentences", "read_pairs", "to_text", "tokenize"]

PADDING, BEGIN, END = 0, 1, 2
_SPECIAL = ("<pad>", "<s>", "</s>")


@dataclass(frozen=True, eq=False)
class Sentences:
    """Sentences of unequal length in one tensor.

    Attributes:
        tokens: ``(N,)`` int64, all sentences one after another, without special tokens.
        ends: ``(S,)`` int64, where each ends.
    """

    tokens: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sentence, ``(S,)``."""
        return torch.diff(self.ends, prepend=torch.zeros(1, dtype=torch.int64))

    def take(self, indices: Tensor) -> "Sentences":
        """Return the sentences at ``indices``, in that order."""
        lengths = self.lengths[indices]
        ends = lengths.cumsum(0)
        moved = (self.ends[indices] - ends).repeat_interleave(lengths)
        return Sentences(self.tokens[torch.arange(len(moved)) + moved], ends)

    def __getitem__(self, index: int) -> Tensor:
        start = int(self.ends[index - 1]) if index else 0
        return self.tokens[start : int(self.ends[index])]

    def padded(self, indices: Tensor, *, begin: bool = False, end: bool = False) -> Tensor:
        """Return the sentences at ``indices`` as ``(B, T)``, with the begin and end token where asked."""
        before, after = torch.tensor([BEGIN] * begin), torch.tensor([END] * end)
        rows = [torch.cat((before, self[int(index)], after)).long() for index in indices]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)


def read_pairs(files: Sequence[str], columns: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Return the texts of two columns of parquet files.

    Raises:
        ValueError: a file cannot be read, a column is missing or holds something else than text.
    """
    import pyarrow
    from pyarrow import parquet

    texts: tuple[list[str], list[str]] = ([], [])
    for file in files:
        try:
            known = parquet.read_schema(file).names
            if missing := [name for name in columns if name not in known]:
                raise ValueError(
                    f"data.source_column and data.target_column must be columns of {file}: {known}, not {missing}"
                )
            table = parquet.read_table(file, columns=list(columns))
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"data.path: {file} cannot be read as parquet ({error}); download it again") from error
        for name, found in zip(columns, texts, strict=True):
            values = table.column(name).to_pylist()
            wrong = next((n for n, value in enumerate(values) if not isinstance(value, str) or not value.strip()), None)
            if wrong is not None:
                raise ValueError(
                    f"column {name!r} of {file} must hold sentences, got {values[wrong]!r} in row {wrong}; drop such "
                    "rows or choose another column"
                )
            found.extend(values)
    return texts


def tokenize(texts: Mapping[str, Sequence[str]], train: Sequence[str], vocabulary: int) -> dict[str, Tensor]:
    """Learn byte pairs (Sennrich et al., arXiv 1508.07909) and apply them.

    Works on bytes, so that every text has tokens and every list of tokens its text.

    Args:
        texts: name -> sentences to turn into tokens.
        train: names of those to learn from.
        vocabulary: most different tokens, of which 3 are special and 256 single bytes.

    Returns:
        ``NAME.tokens`` and ``NAME.ends`` as in :class:`Sentences`, and ``tokenizer``: JSON as ``(N,)`` uint8.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for name in train for text in texts[name]), trainer)
    made: dict[str, Tensor] = {}
    for name, sentences in texts.items():
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(sentences), add_special_tokens=False)]
        made[f"{name}.tokens"] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
        made[f"{name}.ends"] = torch.tensor([len(row) for row in rows], dtype=torch.int64).cumsum(0)
    made["tokenizer"] = torch.frombuffer(bytearray(tokenizer.to_str().encode()), dtype=torch.uint8)
    return made


def to_text(tokenizer: Tensor, tokens: Tensor) -> list[str]:
    """Return the text of each row of ``(B, T)`` tokens up to its end, special tokens left out.

    Args:
        tokenizer: as :func:`tokenize` made it.
        tokens: of any origin.
    """
    from tokenizers import Tokenizer

    reader = Tokenizer.from_str(bytes(tokenizer.tolist()).decode())
    rows = [row[: row.index(END)] if END in row else row for row in tokens.tolist()]
    return [text.strip() for text in reader.decode_batch(rows, skip_special_tokens=True)]
