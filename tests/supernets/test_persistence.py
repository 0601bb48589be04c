"""Supernets on disk: self-describing, and every damage told from every other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from search_spaces import FactorySpace, MLPSpace, SearchSpace
from supernets import (
    CheckpointError,
    CheckpointMismatchError,
    Classification,
    SandwichRule,
    SharedWeights,
    Supernet,
    TemplateWeights,
    load,
    load_weights,
    read_card,
    save,
    weights_version,
)


def kernel_source(space: SearchSpace) -> SharedWeights:
    return SharedWeights(space, seed=4, kernel_transform=True)


@pytest.fixture
def supernet(space: SearchSpace) -> Supernet:
    return Supernet(
        space,
        Classification(4, label_smoothing=0.1),
        source=kernel_source,
        rule=SandwichRule(3, distillation=False),
        calibration=5,
        seed=9,
    )


@pytest.fixture
def small() -> Supernet:
    return Supernet(MLPSpace(12, 4, widths=(4, 6), depths=(1, 2)), Classification(4))


def assert_same(given: Supernet, expected: Supernet, inputs: torch.Tensor) -> None:
    assert given.tree() == expected.tree()
    assert given.space.digest == expected.space.digest
    assert weights_version(given.source) == weights_version(expected.source)
    for architecture in given.anchors().values():
        assert torch.equal(given.extract(architecture)(inputs), expected.extract(architecture)(inputs))


def test_a_saved_folder_describes_itself(supernet: Supernet, inputs: torch.Tensor, tmp_path: Path) -> None:
    folder = save(supernet, tmp_path / "made" / "supernet")
    assert_same(load(folder, trust=["tests"]), supernet, inputs)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["supernet"]
    card = read_card(folder)
    assert card["space_digest"] == supernet.space.digest
    assert card["weights_version"] == weights_version(supernet.source)


def test_a_lightning_checkpoint_describes_itself(
    space: SearchSpace, supernet: Supernet, inputs: torch.Tensor, labelled: Any, fit: Callable[..., Any], tmp_path: Path
) -> None:
    fit(supernet, labelled(space), steps=1).save_checkpoint(tmp_path / "one.ckpt")
    supernet.eval()
    assert_same(load(tmp_path / "one.ckpt", trust=["tests"]), supernet, inputs)
    assert_same(load(tmp_path / "one.ckpt", space=space, trust=["tests"]), supernet, inputs)


def test_saving_again_replaces_the_folder(small: Supernet, tmp_path: Path) -> None:
    save(small, tmp_path / "s")
    with torch.no_grad():
        next(small.parameters()).add_(1.0)
    save(small, tmp_path / "s")
    assert weights_version(load(tmp_path / "s").source) == weights_version(small.source)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_failure_while_saving_again_leaves_the_old_folder(
    small: Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = save(small, tmp_path / "s")
    version = weights_version(small.source)
    with torch.no_grad():
        next(small.parameters()).add_(1.0)
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target == folder and not self.name.endswith("-old"):
            raise OSError("no space left on device")
        return replace(self, target)

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        if moment == "renaming":
            patched.setattr(Path, "replace", failing)
        else:
            patched.setattr("supernets.persistence.save_file", full)
        with pytest.raises(OSError, match="no space left"):
            save(small, folder)
    assert weights_version(load(folder).source) == version
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_folder_of_something_else_is_kept(small: Supernet, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"exists and holds no supernet; give an empty or new folder"):
        save(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_weights_version_follows_every_number(small: Supernet) -> None:
    before = weights_version(small.source)
    assert before == weights_version(small.source)
    with torch.no_grad():
        list(small.parameters())[-1].view(-1)[0] += 1e-6
    assert weights_version(small.source) != before


class Scaled(nn.Module):
    """One number scales all outputs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.linear = nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.scale * self.linear(x)
        return outputs


def test_equal_weights_have_an_equal_version_and_single_numbers_count() -> None:
    space = FactorySpace(Scaled, {"width": [2, 4]}, input_shape=(4,))
    one, two, other = SharedWeights(space, seed=1), SharedWeights(space, seed=1), SharedWeights(space, seed=2)
    assert weights_version(one) == weights_version(two) != weights_version(other)
    with torch.no_grad():
        two.get_parameter("largest.scale").add_(1e-6)
    assert weights_version(one) != weights_version(two)


def test_a_missing_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.ckpt does not exist; give the path"):
        load(tmp_path / "none.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_checkpoint_is_told(
    small: Supernet, labelled: Any, fit: Callable[..., Any], tmp_path: Path, share: float
) -> None:
    path = tmp_path / "one.ckpt"
    fit(small, labelled(small.space), steps=1).save_checkpoint(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"one.ckpt cannot be read, it is damaged or truncated"):
        load(path)


@pytest.mark.parametrize("content", [b"hello", b"\x80\x04\x95 not a pickle", b"PK\x03\x04 not a zip"])
def test_a_file_of_something_else_is_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model.ckpt cannot be read, it is damaged"):
        load(tmp_path / "model.ckpt")


def test_a_checkpoint_of_another_program_is_told(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other.ckpt is not a checkpoint of a supernet; train one"):
        load(tmp_path / "other.ckpt")


class Payload:
    """What a hostile pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"weightloom": Payload(tmp_path / "owned")}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil.ckpt cannot be read"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "supernet.json"])
def test_a_damaged_folder_is_told(small: Supernet, tmp_path: Path, name: str) -> None:
    folder = save(small, tmp_path / "s")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"is not a complete saved supernet"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"is not a complete saved supernet"):
        load(folder)


def test_a_checkpoint_of_another_space_is_told(small: Supernet, tmp_path: Path) -> None:
    folder = save(small, tmp_path / "s")
    other = MLPSpace(12, 4, widths=(4, 8), depths=(1, 2))
    with pytest.raises(CheckpointMismatchError, match=rf"trained on space {small.space.digest}.*{other.digest}"):
        load(folder, space=other)


def test_a_newer_format_is_told(small: Supernet, tmp_path: Path) -> None:
    folder = save(small, tmp_path / "s")
    card = read_card(folder)
    (folder / "supernet.json").write_text(json.dumps(card | {"format_version": 99}))
    with pytest.raises(CheckpointMismatchError, match=r"format version 99, this version reads 1"):
        load(folder)


def test_weights_that_do_not_fit_their_description_are_told(small: Supernet, tmp_path: Path) -> None:
    folder = save(small, tmp_path / "s")
    other = save(Supernet(MLPSpace(12, 4, widths=(4, 8), depths=(1, 2)), Classification(4)), tmp_path / "other")
    (folder / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointMismatchError, match=r"do not fit the supernet"):
        load(folder)
    deep = save(Supernet(MLPSpace(12, 4, widths=(4, 6), depths=(1, 2, 3)), Classification(4)), tmp_path / "deep")
    (folder / "weights.safetensors").write_bytes((deep / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointMismatchError, match=r"unexpected.*linear3"):
        load(folder)


def test_weights_of_a_saved_supernet_start_another_one(tmp_path: Path) -> None:
    space = MLPSpace(12, 4, widths=(6, 10), depths=(1, 2))
    saved, started = (
        Supernet(space, Classification(4), source=lambda given, seed=seed: SharedWeights(given, seed=seed))
        for seed in (1, 2)
    )
    folder = save(saved, tmp_path / "saved")
    load_weights(started, folder)
    expected = saved.source(space.largest())
    assert all(torch.equal(value, expected[name]) for name, value in started.source(space.largest()).items())
    wider = Supernet(MLPSpace(12, 4, widths=(6, 12), depths=(1, 2)), Classification(4))
    with pytest.raises(CheckpointMismatchError, match=r"was trained on space .* or `nas grow --into`"):
        load_weights(wider, folder)
    mixed = Supernet(space, Classification(4), source=lambda given: TemplateWeights(given, share="layer"))
    before = {name: value.clone() for name, value in mixed.source.state_dict().items()}
    with pytest.raises(CheckpointMismatchError, match=r"do not fit TemplateWeights; they were saved by SharedWeights"):
        load_weights(mixed, folder)
    assert all(torch.equal(value, before[name]) for name, value in mixed.source.state_dict().items())
