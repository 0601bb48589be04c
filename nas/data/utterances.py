"""Recordings of speakers: decoding parquet rows, and splitting by recording and by speaker."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nas.data.splits import stratified_split
from nas.data.waveforms import LogMel, decode_wav, resample
from search_spaces import derive_seed

__all__ = ["SpeechSplits", "Utterances", "decode", "split"]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Utterances:
    """Features of recordings of unequal length.

    Attributes:
        frames: ``(F, mels)`` float32, the frames of all recordings in a row, shared by every selection.
        starts: ``(N,)`` first frame of each recording.
        lengths: ``(N,)`` its number of frames.
        speakers: ``(N,)`` who speaks, counted from 0.
    """

    frames: Tensor
    starts: Tensor
    lengths: Tensor
    speakers: Tensor

    def __len__(self) -> int:
        return len(self.speakers)

    def take(self, indices: Tensor) -> "Utterances":
        """Return the recordings at ``indices``; the frames stay shared."""
        return Utterances(self.frames, self.starts[indices], self.lengths[indices], self.speakers[indices])

    def crop(self, indices: Tensor, places: Tensor, frames: int) -> Tensor:
        """Return ``(B, mels, frames)``: a part of each longer recording; shorter ones are repeated end to end.

        Args:
            indices: ``(B,)`` recordings.
            places: ``(B,)`` in [0, 1): where the part begins among all possible beginnings.
            frames: length of the part.
        """
        lengths = self.lengths[indices]
        beginnings = torch.where(lengths >= frames, lengths - frames + 1, lengths)
        first = (places * beginnings).long()
        steps = (first[:, None] + torch.arange(frames)) % lengths[:, None]
        return self.frames[self.starts[indices, None] + steps].transpose(1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class SpeechSplits:
    """Three disjoint sets of recordings, their features standardised by the training recordings.

    Attributes:
        train: recordings that train.
        validation: other recordings by the same speakers.
        test: by speakers that are nowhere in the others, where any are held out.
        names: of the speakers by number, those of ``train`` first; a person at another speed is ``"name x 1.1"``.
        speakers: how many of them are in ``train``.
    """

    train: Utterances
    validation: Utterances
    test: Utterances
    names: tuple[str, ...]
    speakers: int


def _rows(data: Any, part: str, audio_column: str, speaker_column: str) -> Iterator[tuple[bytes, str]]:
    from datasets import Audio

    features = data.features or {}
    for field, column in (("audio_column", audio_column), ("speaker_column", speaker_column)):
        if column not in features:
            raise ValueError(f"data.{field} must be one of the columns {sorted(features)}, got {column!r}")
    if isinstance(features[audio_column], Audio):
        data = data.cast_column(audio_column, Audio(decode=False))
    for position, row in enumerate(data):
        content = row[audio_column]
        content = content.get("bytes") if isinstance(content, dict) else None
        if not isinstance(content, bytes) or row[speaker_column] is None:
            raise ValueError(
                f"recording {position} of the {part} files must have the bytes of a WAV file in "
                f"data.audio_column={audio_column!r} and a name in data.speaker_column={speaker_column!r}; choose "
                "other columns or drop such rows"
            )
        yield content, str(row[speaker_column])


def decode(
    parts: Mapping[str, Any], *, audio_column: str, speaker_column: str, speeds: Sequence[float], front_end: LogMel
) -> dict[str, Tensor]:
    """Return the features of all recordings at all speeds.

    Args:
        parts: ``"train"``, ``"test"`` and perhaps ``"validation"`` -> rows with known features.
        audio_column: of structs with the bytes of a WAV file.
        speaker_column: of names.
        speeds: factors at which each recording is played.
        front_end: waveform -> features.

    Returns:
        ``frames`` ``(F, mels)`` and, for each of N played recordings, ``lengths``, ``parts`` (index into ``PARTS``),
        ``speakers`` (index into the names, which are JSON text in the bytes of ``names``), ``recordings`` and
        ``speeds`` (index into the argument).

    Raises:
        ValueError: a column is missing, or a recording has no name, no bytes or other bytes than those of a WAV file.
    """
    names: dict[str, int] = {}
    features: list[Tensor] = []
    rows: list[tuple[int, int, int, int, int]] = []
    recording = 0
    for part in (part for part in PARTS if part in parts):
        for position, (content, name) in enumerate(_rows(parts[part], part, audio_column, speaker_column)):
            try:
                waveform, rate = decode_wav(content)
                original = resample(waveform, rate / front_end.sample_rate)
                speaker = names.setdefault(name, len(names))
                for index, speed in enumerate(speeds):
                    features.append(front_end(resample(original, speed)))
                    rows.append((len(features[-1]), PARTS.index(part), speaker, recording, index))
            except ValueError as error:
                raise ValueError(f"recording {position} of the {part} files: {error}") from error
            recording += 1
    if not features:
        raise ValueError("the files hold no recordings; give some that do")
    columns = torch.tensor(rows).T.contiguous()
    fields = ("lengths", "parts", "speakers", "recordings", "speeds")
    text = torch.frombuffer(bytearray(json.dumps(list(names)).encode()), dtype=torch.uint8)
    return {
        "frames": torch.cat(features),
        "names": text,
        **{field: column.clone() for field, column in zip(fields, columns, strict=True)},
    }


def split(
    decoded: Mapping[str, Tensor],
    *,
    held_out: Sequence[str],
    speeds: Sequence[float],
    test_speeds: Sequence[float],
    validation_fraction: float,
    seed: int,
) -> SpeechSplits:
    """Divide what :func:`decode` returns; see :class:`nas.data.SpeechData` for who goes where.

    Raises:
        ValueError: a speaker to hold out is unknown, too few are left, or a split would be empty.
    """
    found: list[str] = json.loads(bytes(decoded["names"].tolist()))
    absent = sorted(set(held_out) - set(found))
    if absent:
        raise ValueError(f"data.held_out must name speakers among {sorted(found)}, got {absent}")
    kept = sorted(set(found) - set(held_out))
    if len(kept) < 2:
        raise ValueError(f"data.held_out leaves {kept} to train on, which needs at least two speakers; hold out fewer")
    away = torch.tensor([name in held_out for name in found])[decoded["speakers"]]
    original = decoded["speeds"] == list(speeds).index(1.0)
    people = [*kept, *sorted(held_out)]
    numbers = (
        torch.tensor([people.index(name) for name in found])[decoded["speakers"]] * len(speeds) + decoded["speeds"]
    )
    tested = torch.tensor([speed in test_speeds for speed in speeds])[decoded["speeds"]]
    starts = decoded["lengths"].cumsum(0) - decoded["lengths"]

    of = {part: decoded["parts"] == PARTS.index(part) for part in PARTS}
    train, validation = of["train"] & ~away, of["validation"] & ~away
    if not bool(of["validation"].any()):
        first = torch.nonzero(train & original).flatten()
        count = round(validation_fraction * len(first))
        taken = first[stratified_split(decoded["speakers"][first], count, seed=derive_seed(seed, "validation"))[1]]
        validation = train & torch.isin(decoded["recordings"], decoded["recordings"][taken])
        train = train & ~validation
    test = (away if held_out else of["test"]) & tested
    for name, chosen in (("training", train), ("validation", validation), ("test", test)):
        if not bool(chosen.any()):
            raise ValueError(
                f"no recordings are left for the {name} split; hold out fewer speakers or change validation_fraction"
            )
    frames = decoded["frames"]
    training = frames[torch.repeat_interleave(train, decoded["lengths"])]
    deviation = training.std(0, correction=0)
    frames = (frames - training.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    whole = Utterances(frames, starts, decoded["lengths"], numbers)
    return SpeechSplits(
        train=whole.take(torch.nonzero(train).flatten()),
        validation=whole.take(torch.nonzero(validation).flatten()),
        test=whole.take(torch.nonzero(test).flatten()),
        names=tuple(name if speed == 1 else f"{name} x {speed:g}" for name in people for speed in speeds),
        speakers=len(kept) * len(speeds),
    )
