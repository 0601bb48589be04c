from collections import Counter
from pathlib import Path

import lightning as L
import pytest
import torch

from nas.data import TextData
from search_spaces import construct, describe

VERSE = "the loom holds every thread and the shuttle picks a few; what is woven was there before.\n"
TEXT = VERSE * 6 + "QUIZ"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    place = tmp_path / "verse.txt"
    place.write_text(TEXT, encoding="utf-8")
    return place


def data_of(file: Path, **options: object) -> TextData:
    return TextData(str(file), **{"context": 8, "batch_size": 4, "eval_batch_size": 3, **options})  # type: ignore[arg-type]


def test_the_text_is_cut_in_three_in_its_own_order(file: Path) -> None:
    data = data_of(file)
    parts = (data.splits.train, data.splits.validation, data.splits.test)
    assert [len(part) for part in parts] == [len(TEXT) - 2 * round(len(TEXT) / 10), *[round(len(TEXT) / 10)] * 2]
    assert "".join(data.decode(part) for part in parts) == TEXT.replace("QUIZ", "\N{REPLACEMENT CHARACTER}" * 4)
    assert data.splits.characters == "".join(sorted(set(VERSE)))
    assert data.vocabulary_size == 1 + len(set(VERSE))
    assert torch.equal(data.encode(TEXT), torch.cat(parts))


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_shows_the_training_part_once(file: Path, epoch: int) -> None:
    data = data_of(file)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    text = data.decode(data.splits.train)
    batches = list(loader)
    assert len(batches) == len(loader) == (len(text) - 8) // 8 // 4
    seen = []
    for tokens, following in batches:
        assert tokens.shape == following.shape == (4, 8)
        for row, later in zip(tokens, following, strict=True):
            assert torch.equal(row[1:], later[:-1])
            assert data.decode(torch.cat((row, later[-1:]))) in text
            seen.append(data.decode(row))
    windows = [
        [text[start + offset : start + offset + 8] for start in range(0, len(text) - 8, 8)] for offset in range(8)
    ]
    assert any(all(row in offset for row in seen) for offset in windows)


def test_order_and_start_are_a_function_of_seed_and_epoch(file: Path) -> None:
    def epoch(number: int, seed: int = 0) -> torch.Tensor:
        loader = data_of(file, seed=seed).train_dataloader()
        loader.sampler.set_epoch(number)
        return torch.cat([tokens for tokens, _ in loader])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, seed=1))


def test_a_loader_resumes_in_the_middle_of_an_epoch(file: Path) -> None:
    loader = data_of(file).train_dataloader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = list(batches)
    again = data_of(file).train_dataloader()
    again.load_state_dict(state)
    again.sampler.set_epoch(1)
    resumed = list(again)
    assert len(rest) == len(resumed) == len(loader) - 1
    assert all(
        torch.equal(a, b) for left, right in zip(rest, resumed, strict=True) for a, b in zip(left, right, strict=True)
    )
    again.sampler.set_epoch(2)
    assert len(list(again)) == len(loader)


@pytest.mark.parametrize("context", [5, 8, 13, 53])
def test_evaluation_predicts_every_character_but_the_first_once(file: Path, context: int) -> None:
    data = data_of(file, context=context)
    for loader, part in ((data.val_dataloader(), data.splits.validation), (data.test_dataloader(), data.splits.test)):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert torch.equal(torch.cat([tokens.flatten() for tokens, _ in batches]), part[:-1])
        assert torch.equal(torch.cat([following.flatten() for _, following in batches]), part[1:])


def test_ranks_share_the_windows(file: Path) -> None:
    data = data_of(file, batch_size=1)
    shares = []
    for rank in range(2):
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.global_rank, trainer.strategy.world_size = rank, 2  # type: ignore[misc]
        data.trainer = trainer
        shares.append([data.decode(tokens[0]) for tokens, _ in data.train_dataloader()])
    assert len(shares[0]) == len(shares[1])
    data.trainer = None
    everything = Counter(data.decode(tokens[0]) for tokens, _ in data.train_dataloader())
    assert not Counter(shares[0] + shares[1]) - everything
    assert len(shares[0]) == everything.total() // 2


def test_calibration_batches_do_not_depend_on_their_number(file: Path) -> None:
    data = data_of(file)
    few, many = data.calibration_batches(2), data.calibration_batches(5)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(few, many[:2], strict=True))
    text = data.decode(data.splits.train)
    assert all(data.decode(row) in text for tokens, _ in many for row in tokens)
    with pytest.raises(ValueError, match=r"between 1 and \d+ batches of data.batch_size=4 windows, got 99"):
        data.calibration_batches(99)


def test_a_path_is_relative_to_the_data_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_DATA_DIR", str(file.parent))
    data = TextData(file.name, context=8, batch_size=4)
    assert data.vocabulary_size == 1 + len(set(VERSE))
    assert construct(describe(data)).splits.characters == data.splits.characters


def test_what_is_wrong_with_a_file_is_said(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAS_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"must be a text file, got 'none.txt'.*NAS_DATA_DIR is not set"):
        data_of(Path("none.txt")).prepare_data()
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00" * 99)
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        data_of(binary).setup("fit")
    with pytest.raises(ValueError, match=rf"data.vocabulary must be {1 + len(set(VERSE))} for .*, got 66"):
        data_of(file, vocabulary=66).prepare_data()
    with pytest.raises(ValueError, match=r"training needs more than data.context=500"):
        data_of(file, context=500).prepare_data()
    with pytest.raises(ValueError, match=r"data.batch_size must be at most \d+, the windows of 8 characters"):
        data_of(file, batch_size=999).train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "data.context must be at least 1, got 0"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"validation_fraction": 0}, "data.validation_fraction must be between 0 and 1"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "must leave something to train on, got 0.5 and 0.5"),
    ],
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextData("x", **options)  # type: ignore[arg-type]
