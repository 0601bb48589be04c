from pathlib import Path

import datasets
import pytest
import torch

from nas.data import TranslationData
from search_spaces import construct, describe

ENGLISH = ["a cat sits on the mat", "two dogs run", "the small bird sings in a tall tree today", "a dog sleeps"]
LATIN = ["feles in matta sedet", "duo canes currunt", "avis parva hodie in arbore alta cantat", "canis dormit"]


def write(file: Path, count: int, *, offset: int = 0, **columns: list[object]) -> None:
    """Sentences told apart by a number at their end; a third column is not asked for."""
    rows = {
        name: [f"{texts[row % 4]} {row + offset}." for row in range(count)]
        for name, texts in (("en", ENGLISH), ("la", LATIN))
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({**rows, "number": list(range(count)), **columns}).to_parquet(file)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NAS_DATA_DIR", raising=False)
    place = tmp_path / "pairs"
    write(place / "train.parquet", 40)
    write(place / "test.parquet", 6, offset=100)
    return place


def data_of(folder: Path, **options: object) -> TranslationData:
    given = {
        "source_column": "en",
        "target_column": "la",
        "vocabulary": 300,
        "max_length": 40,
        "batch_size": 6,
        "eval_batch_size": 4,
    }
    return TranslationData(str(folder), **{**given, **options})  # type: ignore[arg-type]


def test_batches_hold_a_sentence_its_translation_and_that_one_position_later(folder: Path) -> None:
    data = data_of(folder)
    for source, target, labels in data.train_dataloader():
        assert target.shape == labels.shape
        assert source.shape[0] == target.shape[0] == 6
        assert torch.equal(target[:, 0], torch.ones(6, dtype=torch.int64))
        for row, (before, after) in enumerate(zip(target, labels, strict=True)):
            length = int((after != 0).sum())
            assert torch.equal(before[1:length], after[: length - 1])
            assert int(after[length - 1]) == 2
            assert int((before != 0).sum()) == length
            english, latin = data.decode(source[[row]])[0], data.decode(after[None])[0]
            assert (english.rsplit(" ", 1)[1], english.rsplit(" ", 1)[0]) == (
                latin.rsplit(" ", 1)[1],
                ENGLISH[LATIN.index(latin.rsplit(" ", 1)[0])],
            )
        assert source.shape[1] == int((source != 0).sum(1).max())


def numbers(data: TranslationData, loader: object) -> list[int]:
    return [int(text.rsplit(" ", 1)[1][:-1]) for batch in loader for text in data.decode(batch[0])]  # type: ignore[attr-defined]


def test_splits_are_disjoint_and_whole(folder: Path) -> None:
    data = data_of(folder, validation_fraction=0.2)
    held = numbers(data, data.val_dataloader())
    assert len(held) == 8
    train = data.splits["train"].source
    rest = numbers(data, [(train.padded(torch.arange(len(train)), end=True),)])
    assert sorted(held + rest) == list(range(40))
    assert sorted(numbers(data, data.test_dataloader())) == list(range(100, 106))
    write(folder / "validation.parquet", 5, offset=200)
    again = data_of(folder)
    assert sorted(numbers(again, again.val_dataloader())) == list(range(200, 205))
    assert len(again.splits["train"]) == 40


def test_an_epoch_shows_every_pair_once_beside_others_of_its_length(folder: Path) -> None:
    data = data_of(folder, batch_size=2)
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1, 1):
        loader.sampler.set_epoch(epoch)
        orders.append(numbers(data, loader))
        assert sorted(set(orders[-1])) == sorted(orders[-1])
        assert len(orders[-1]) == 2 * len(loader) == 38  # 2 of 40 validate
        spread = [int((batch[2] != 0).sum(1).max() - (batch[2] != 0).sum(1).min()) for batch in loader]
        assert sum(value > 3 for value in spread) <= 3  # where one of the four sentences follows another
    assert orders[0] != orders[1] == orders[2]


def test_a_loader_resumes_in_the_middle_of_an_epoch(folder: Path) -> None:
    loader = data_of(folder).train_dataloader()
    batches = iter(loader)
    next(batches)
    state, rest = loader.state_dict(), list(batches)
    again = data_of(folder).train_dataloader()
    again.load_state_dict(state)
    assert all(
        torch.equal(a, b)
        for left, right in zip(rest, list(again), strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_the_vocabulary_is_learnt_from_training_pairs_alone_and_reads_any_text(folder: Path) -> None:
    first = data_of(folder)
    tokens = first.splits["train"].source.tokens
    assert int(tokens.min()) >= 3
    assert int(tokens.max()) < first.vocabulary_size == 300
    write(folder / "test.parquet", 6, en=["Ænigma zzz qqq 1."] * 6)
    second = data_of(folder)
    assert torch.equal(second.splits["train"].source.tokens, tokens)
    assert second.decode(next(iter(second.test_dataloader()))[0])[0] == "Ænigma zzz qqq 1."


def test_tokens_are_kept_beside_the_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data_of(folder)
    expected = first.splits["train"].source.tokens
    monkeypatch.setattr("nas.data.translation.tokenize", lambda *_: pytest.fail("made again"))
    again = data_of(folder)
    assert torch.equal(again.splits["train"].source.tokens, expected)
    assert again.decode(expected[None, :4]) == first.decode(expected[None, :4])
    assert construct(describe(again)).splits.keys() == {"train", "validation", "test"}


def test_long_training_pairs_are_left_out_and_held_out_ones_are_refused(folder: Path) -> None:
    longest = int(data_of(folder).splits["test"].lengths.max())
    train = data_of(folder).splits["train"].lengths
    write(folder / "train.parquet", 40, en=["a cat sits on the mat " * 9] + [f"a dog sleeps {n}." for n in range(39)])
    shorter = data_of(folder, max_length=longest + 8, batch_size=2).splits["train"]
    assert len(shorter) < len(train)
    assert int(shorter.lengths.max()) <= longest + 8
    with pytest.raises(
        ValueError, match=r"data.max_length must be at least \d+, the longest (test|validation) sentence"
    ):
        data_of(folder, max_length=5).prepare_data()


def test_calibration_batches_do_not_depend_on_their_number(folder: Path) -> None:
    data = data_of(folder)
    few, many = data.calibration_batches(2), data.calibration_batches(4)
    assert all(
        torch.equal(a, b) for left, right in zip(few, many[:2], strict=True) for a, b in zip(left, right, strict=True)
    )
    with pytest.raises(ValueError, match=r"between 1 and 6 batches of data.batch_size=6 pairs, got 7"):
        data.calibration_batches(7)


def test_what_is_wrong_with_a_folder_is_said(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.path must be a folder"):
        data_of(folder / "none").prepare_data()
    with pytest.raises(ValueError, match=r"must be columns of .*: \['en', 'la', 'number'\], not \['de'\]"):
        data_of(folder, target_column="de").prepare_data()
    with pytest.raises(ValueError, match=r"column 'number' of .* must hold sentences, got 0 in row 0"):
        data_of(folder, target_column="number").prepare_data()
    with pytest.raises(ValueError, match=r"data.batch_size must be at most 38, the training pairs"):
        data_of(folder, batch_size=99).prepare_data()
    (folder / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"cannot be read as parquet"):
        data_of(folder).prepare_data()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 100}, "data.vocabulary must be at least 260, got 100"),
        ({"max_length": 1}, "data.max_length must be at least 2, got 1"),
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"target_column": "en"}, "must differ, got 'en' for both"),
        ({"validation_fraction": 1.0}, "data.validation_fraction must be between 0 and 1"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_of(Path("x"), **options)
