"""Speech data: waveforms, log-mel features, and splits by recording and by speaker."""

import io
import math
import wave
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import Tensor

from nas.data import SpeechData
from nas.data.utterances import Utterances
from nas.data.waveforms import LogMel, decode_wav, mel_filters, resample
from search_spaces import construct, describe

RATE = 8000
SPEAKERS = ("ada", "bob", "cy", "dee")


def wav(samples: np.ndarray[Any, Any], *, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    """Samples in [-1, 1) as little-endian PCM."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.round(samples * 2 ** (8 * width - 1)).astype(np.int64) + (128 if width == 1 else 0)
        file.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in whole.flatten()))
    return content.getvalue()


def tone(frequency: float, samples: int, rate: int = RATE) -> np.ndarray[Any, Any]:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


def length(speaker: int, take: int) -> int:
    """Samples of a recording; different for every one."""
    return 600 + 400 * speaker + 80 * take


def write(file: Path, takes: range, *, speakers: tuple[str, ...] = SPEAKERS, **columns: list[Any]) -> None:
    rows = [(s, t) for t in takes for s in range(len(speakers))]
    noise = np.random.default_rng(0)
    content = [wav(tone(200 * (s + 1), length(s, t)) + 0.05 * noise.standard_normal(length(s, t))) for s, t in rows]
    table = {
        "audio": [{"bytes": sound, "path": None} for sound in content],
        "speaker": [speakers[s] for s, _ in rows],
    } | columns
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(table).to_parquet(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "words"
    write(place / "train.parquet", range(10))
    write(place / "test.parquet", range(10, 12))
    return place


def module(folder: Path, **given: Any) -> SpeechData:
    options: dict[str, Any] = {"sample_rate": RATE, "mels": 10, "frames": 8, "eval_frames": 12, "batch_size": 4}
    return SpeechData(str(folder), **(options | given))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_wav_file_of_any_width_is_decoded(width: int) -> None:
    samples = np.linspace(-1, 0.99, 21)
    decoded, rate = decode_wav(wav(samples, width=width, rate=16000))
    assert rate == 16000
    np.testing.assert_allclose(decoded, samples, atol=1 / 2 ** (8 * width - 1) + 1e-7)


def test_channels_are_averaged() -> None:
    stereo = np.stack([np.full(5, 0.5), np.full(5, -0.25)], axis=1)
    assert decode_wav(wav(stereo, channels=2))[0].tolist() == [0.125] * 5


def test_what_is_no_wav_file_is_refused() -> None:
    with pytest.raises(ValueError, match="audio must be an uncompressed WAV file"):
        decode_wav(b"fLaC....")


def test_playing_faster_raises_the_pitch_and_shortens() -> None:
    wave_form = torch.from_numpy(tone(500, 4000)).float()
    faster = resample(wave_form, 1.25)
    assert len(faster) == 3200
    np.testing.assert_allclose(faster, tone(625, 3200), atol=2e-3)
    assert resample(wave_form, 1.0) is wave_form
    np.testing.assert_allclose(resample(wave_form, 0.5), tone(500, 8000, 2 * RATE), atol=2e-3)
    with pytest.raises(ValueError, match=r"a factor > 0 that leaves a sample, got 10000 for 4000"):
        resample(wave_form, 10000)


def test_mel_filters_follow_their_formula() -> None:
    rate, fft, mels = 8000, 64, 5
    found = mel_filters(rate, fft, mels).numpy()
    top = 2595 * math.log10(1 + 4000 / 700)
    corners = [700 * (10 ** (top * i / (mels + 1) / 2595) - 1) for i in range(mels + 2)]
    for i in range(mels):
        low, middle, high = corners[i : i + 3]
        for k in range(fft // 2 + 1):
            f = k * rate / fft
            inside = (f - low) / (middle - low) if f <= middle else (high - f) / (high - middle)
            assert found[i, k] == pytest.approx(max(0.0, inside), abs=1e-5)


def test_log_mel_features_follow_their_formula() -> None:
    front_end = LogMel(8000, 12, window=0.01, hop=0.004, centre=False)
    assert (front_end.window_samples, front_end.hop_samples, front_end.fft) == (80, 32, 256)
    signal = np.random.default_rng(1).standard_normal(201)
    found = front_end(torch.from_numpy(signal).float())
    filters = mel_filters(8000, 256, 12).double().numpy()
    assert found.shape == (1 + (201 - 80) // 32, 12)
    for number, row in enumerate(found):
        frame = signal[number * 32 : number * 32 + 80] * np.hamming(80)
        power = np.array([abs(sum(frame * np.exp(-2j * np.pi * k * np.arange(80) / 256))) ** 2 for k in range(129)])
        np.testing.assert_allclose(row, np.log(filters @ power + 1e-6), rtol=1e-3, atol=1e-3)
    centred = LogMel(8000, 12, window=0.01, hop=0.004)(torch.from_numpy(signal).float())
    torch.testing.assert_close(centred, found - found.mean(0), atol=1e-4, rtol=1e-4)
    assert front_end(torch.zeros(10)).shape == (1, 12), "shorter than a window: padded to one"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mels": 0}, "sample_rate and mels must be at least 1.*mels=0"),
        ({"hop": 0.0}, "window and hop at least one sample.*hop=0.0"),
        ({"sample_rate": 8000, "mels": 300}, "300 mel filters are too narrow for a transform of 512 samples at 8000"),
    ],
)
def test_a_front_end_checks_its_sizes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogMel(**given)


def test_crops_are_parts_of_long_recordings_and_repeats_of_short_ones() -> None:
    frames = torch.arange(10.0)[:, None]
    split = Utterances(frames, torch.tensor([0, 7]), torch.tensor([7, 3]), torch.tensor([0, 1]))
    both = torch.tensor([0, 1])
    assert split.crop(both, torch.tensor([0.0, 0.0]), 5)[:, 0].tolist() == [[0, 1, 2, 3, 4], [7, 8, 9, 7, 8]]
    assert split.crop(both, torch.tensor([0.999, 0.999]), 5)[:, 0].tolist() == [[2, 3, 4, 5, 6], [9, 7, 8, 9, 7]]
    assert split.crop(both, torch.tensor([0.5, 0.5]), 7)[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def frames_of(split: Utterances) -> list[int]:
    return sorted(split.lengths.tolist())


def expected_frames(speaker: int, takes: range, speed: float = 1.0) -> list[int]:
    return [1 + (round(length(speaker, take) / speed) - 200) // 80 for take in takes]


def test_without_held_out_speakers_the_test_files_are_the_test_split(folder: Path) -> None:
    splits = module(folder, validation_fraction=0.2).splits
    assert (splits.names, splits.speakers) == (SPEAKERS, 4)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [32, 8, 8]
    assert torch.bincount(splits.validation.speakers).tolist() == [2, 2, 2, 2]
    for speaker in range(4):
        mine = [part.lengths[part.speakers == speaker].tolist() for part in (splits.train, splits.validation)]
        assert sorted([*mine[0], *mine[1]]) == expected_frames(speaker, range(10))
        assert splits.test.lengths[splits.test.speakers == speaker].tolist() == expected_frames(speaker, range(10, 12))


def test_held_out_speakers_are_nowhere_but_in_the_test_split(folder: Path) -> None:
    splits = module(folder, held_out=("dee", "bob"), speeds=(0.8, 1.0)).splits
    assert splits.names == ("ada x 0.8", "ada", "cy x 0.8", "cy", "bob x 0.8", "bob", "dee x 0.8", "dee")
    assert splits.speakers == 4
    assert set(splits.train.speakers.tolist()) == set(splits.validation.speakers.tolist()) == {0, 1, 2, 3}
    assert set(splits.test.speakers.tolist()) == {5, 7}
    for number, speaker in ((5, 1), (7, 3)):
        mine = splits.test.lengths[splits.test.speakers == number].tolist()
        assert mine == expected_frames(speaker, range(12)), "all recordings, of both files, as recorded"


def test_test_recordings_may_be_played_at_several_speeds(folder: Path) -> None:
    splits = module(folder, held_out=("dee", "bob"), speeds=(0.8, 1.0, 1.25), test_speeds=(0.8, 1.0)).splits
    assert [splits.names[number] for number in sorted(set(splits.test.speakers.tolist()))] == [
        "bob x 0.8", "bob", "dee x 0.8", "dee",
    ]  # fmt: skip
    slow = splits.test.lengths[splits.test.speakers == splits.names.index("bob x 0.8")].tolist()
    assert slow == expected_frames(1, range(12), 0.8)
    assert len(module(folder, speeds=(0.8, 1.0), test_speeds=(0.8, 1.0)).splits.test) == 16


def test_a_recording_is_at_every_speed_on_the_same_side(folder: Path) -> None:
    splits = module(folder, speeds=(0.8, 1.0, 1.25), validation_fraction=0.2).splits
    assert len(splits.validation) == 24
    for name, speed in (("ada x 0.8", 0.8), ("ada", 1.0), ("ada x 1.25", 1.25)):
        number = splits.names.index(name)
        validated = sorted(splits.validation.lengths[splits.validation.speakers == number].tolist())
        originals = splits.validation.starts[splits.validation.speakers == splits.names.index("ada")]
        first = splits.validation.lengths[splits.validation.speakers == splits.names.index("ada")]
        takes = [(80 * (n - 1) + 200 - 600) // 80 for n in first.tolist()]
        assert len(originals) == 2
        assert validated == sorted(expected_frames(0, range(t, t + 1), speed)[0] for t in takes)


def test_validation_files_are_used_where_there_are_any(folder: Path) -> None:
    write(folder / "validation.parquet", range(20, 23))
    splits = module(folder, held_out=("ada", "bob")).splits
    assert frames_of(splits.validation) == sorted(expected_frames(2, range(20, 23)) + expected_frames(3, range(20, 23)))
    assert len(splits.train) == 20
    assert len(splits.test) == 2 * (10 + 2 + 3)


def test_features_are_standardised_by_the_training_recordings(folder: Path) -> None:
    train = module(folder, held_out=("ada", "bob"), centre=False).splits.train
    rows = torch.cat([train.frames[s : s + n] for s, n in zip(train.starts, train.lengths, strict=True)])
    torch.testing.assert_close(rows.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(10), atol=1e-2, rtol=0)


def test_batches_are_a_function_of_seed_and_epoch(folder: Path) -> None:
    def batches(seed: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
        loader = module(folder, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader)

    first, again, later, other = batches(1, 0), batches(1, 0), batches(1, 1), batches(2, 0)
    assert [x.shape for x, _ in first] == [(4, 10, 8)] * 9
    assert all(torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(first, again, strict=True))
    for changed in (later, other):
        assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(first, changed, strict=True))
    data = module(folder, seed=1)
    places = {
        int(torch.nonzero((data.splits.train.frames[:, 0] == row[0, 0]).int()).flatten()[0])
        for epoch in range(6)
        for x, _ in batches(1, epoch)
        for row in x
    }
    assert len(places) > len(data.splits.train), "crops begin in different places from epoch to epoch"


def test_a_resumed_epoch_goes_on_after_the_batches_handed_out(folder: Path) -> None:
    whole = list(module(folder).train_dataloader())
    loader = module(folder).train_dataloader()
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    resumed = module(folder).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[3:], rest, strict=True))


def test_evaluation_takes_the_middle_or_the_whole(folder: Path) -> None:
    data = module(folder, eval_batch_size=3)
    test = data.splits.test
    batches = list(data.test_dataloader())
    assert [len(x) for x, _ in batches] == [3, 3, 2]
    features, speakers = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(speakers, test.speakers)
    for row, start, count in zip(features, test.starts.tolist(), test.lengths.tolist(), strict=True):
        frames = test.frames[start : start + count]
        first = (count - 12 + 1) // 2 if count >= 12 else 0
        expected = frames[first : first + 12] if count >= 12 else torch.cat([frames, frames])[:12]
        assert torch.equal(row, expected.T)
    whole = list(module(folder, eval_frames=None).test_dataloader())
    assert [x.shape[2] for x, _ in whole] == test.lengths.tolist()


def test_calibration_batches_are_fixed_training_crops(folder: Path) -> None:
    data = module(folder)
    few, many = data.calibration_batches(2), data.calibration_batches(3)
    assert [x.shape for x, _ in few] == [(4, 10, 12)] * 2
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(few, many, strict=False))
    with pytest.raises(ValueError, match=r"between 1 and 9 batches of data.batch_size=4 from 36 training recordings"):
        data.calibration_batches(10)


def test_features_come_from_the_cache_whoever_is_held_out(
    folder: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = module(folder).splits
    (cached,) = (clean_environment / "huggingface" / "weightloom" / "speech").iterdir()
    assert cached.suffix == ".safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("nas.data.speech.folder_splits", lambda _: pytest.fail("decoded again"))
        assert torch.equal(module(folder).splits.train.frames, first.train.frames)
        assert len(module(folder, held_out=("ada", "bob")).splits.test) == 24
    assert len(module(folder, mels=11).splits.test) == 8, "another front end is decoded anew"


def test_recordings_at_another_rate_are_resampled(folder: Path) -> None:
    original = module(folder).splits
    doubled = module(folder, sample_rate=2 * RATE).splits
    assert (doubled.test.lengths - original.test.lengths).abs().max() <= 1


def test_the_module_is_rebuilt_from_its_description(folder: Path) -> None:
    data = module(folder, held_out=["ada", "bob"], speeds=[1.0, 1.1])
    rebuilt = construct(describe(data))
    assert isinstance(rebuilt, SpeechData)
    assert dict(rebuilt.hparams) == dict(data.hparams)
    assert torch.equal(rebuilt.splits.train.starts, data.splits.train.starts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frames": 0}, "data.frames must be at least 1, got 0"),
        ({"eval_frames": 0}, "data.eval_frames must be at least 1, got 0"),
        ({"speeds": (0.9, 1.1)}, r"data.speeds must be ascending factors above 0, among them 1, got \[0.9, 1.1\]"),
        ({"speeds": (1.0, 0.9)}, "data.speeds must be ascending"),
        ({"test_speeds": (1.1,)}, r"data.test_speeds must be some of data.speeds=\[1.0\], got \[1.1\]"),
        ({"held_out": ("ada",)}, r"data.held_out must be none or at least two different speakers, got \['ada'\]"),
        ({"validation_fraction": 1.0}, "data.validation_fraction must be between 0 and 1"),
    ],
)
def test_arguments_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(Path("words"), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"held_out": ("ada", "eve")}, r"data.held_out must name speakers among .*'dee'\], got \['eve'\]"),
        ({"held_out": ("ada", "bob", "cy")}, r"data.held_out leaves \['dee'\] to train on, which needs at least two"),
        ({"speakers": 4, "speeds": (1.0, 1.1)}, r"data.speakers must be 8 .* at 2 speeds\), got 4; correct it here"),
        (
            {"audio_column": "sound"},
            r"data.audio_column must be one of the columns \['audio', 'speaker'\], got 'sound'",
        ),
        ({"speaker_column": "who"}, "data.speaker_column must be one of the columns .* got 'who'"),
        ({"audio_column": "speaker"}, "recording 0 of the train files must have the bytes of a WAV file"),
        ({"validation_fraction": 0.001}, "no recordings are left for the validation split"),
    ],
)
def test_what_the_recordings_do_not_hold_is_refused(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(folder, **given).setup("fit")


def test_a_recording_that_cannot_be_decoded_is_named(folder: Path) -> None:
    sounds = [{"bytes": wav(tone(300, 900)), "path": None}, {"bytes": b"no sound", "path": None}]
    write(folder / "test.parquet", range(1), speakers=("ada", "bob"), audio=sounds)
    with pytest.raises(ValueError, match="recording 1 of the test files: audio must be an uncompressed WAV file"):
        module(folder).setup("fit")


def test_more_recordings_than_there_are_cannot_make_a_batch(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data.batch_size must be at most 36, the training recordings of each of 1"):
        module(folder, batch_size=37).train_dataloader()
