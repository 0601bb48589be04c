"""Files may name our classes, torch's layers and what the caller trusts, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import FactorySpace, MLPSpace
from supernets import CheckpointError, Classification, Supernet, load, read_card, save
from tests.search_spaces.models import UserCNN

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    supernet = Supernet(MLPSpace(12, 4, widths=(4, 6), depths=(1, 2)), Classification(4))
    return save(supernet, tmp_path / "saved")


@pytest.fixture
def victim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that an importable package deletes as soon as it is imported."""
    target = tmp_path / "thesis.txt"
    target.write_text("years of work")
    (tmp_path / "hostile_package").mkdir()
    (tmp_path / "hostile_package" / "__init__.py").write_text(f"import os\n\nos.remove({str(target)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    return target


def edit(folder: Path, value: Any) -> None:
    """Put ``value`` where the card gives the number of classes."""
    card = read_card(folder)
    card["model"]["task"]["init_args"]["num_classes"] = value
    (folder / "supernet.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    "value",
    [
        {"class_path": "hostile_package.Task", "init_args": {}},
        {"reference": "hostile_package.attack"},
        {"partial": "hostile_package.attack", "init_args": {"key": 1}},
        [{"key": {"reference": "hostile_package.attack"}}],
        "hostile_package.attack",
    ],
    ids=["class", "function", "partial", "nested", "text"],
)
def test_another_package_is_refused_and_not_even_imported(folder: Path, victim: Path, value: Any) -> None:
    edit(folder, value)
    with pytest.raises(
        CheckpointError, match=r"task of .*saved: the file names 'hostile_package\..*trust=\['hostile_pac"
    ):
        load(folder)
    assert victim.exists()


@pytest.mark.parametrize(
    "path",
    [
        "supernets.persistence.shutil.rmtree",
        "search_spaces.spec.importlib.import_module",
        "torch.nn.modules.module.torch.load",
    ],
)
@pytest.mark.parametrize("kind", ["class_path", "reference", "text"])
def test_what_a_trusted_package_imports_is_not_trusted_for_that(folder: Path, path: str, kind: str) -> None:
    edit(folder, path if kind == "text" else {kind: path})
    with pytest.raises(CheckpointError, match=rf"the file names '{path}', and loading it would run code of"):
        load(folder)


def test_functions_are_passed_but_never_called(folder: Path) -> None:
    edit(folder, {"class_path": "supernets.read_card", "init_args": {"path": str(folder)}})
    with pytest.raises(CheckpointError, match=r"class_path 'supernets.read_card' must name a class"):
        load(folder)


def test_a_lightning_checkpoint_is_judged_alike(
    folder: Path, victim: Path, labelled: Any, fit: Callable[..., Any], tmp_path: Path
) -> None:
    supernet = load(folder).train()
    path = tmp_path / "one.ckpt"
    fit(supernet, labelled(supernet.space), steps=1).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["weightloom"]["model"]["space"]["init_args"]["activation"] = "hostile_package.attack"
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"space of .*one.ckpt: the file names 'hostile_package.attack'.*trust="):
        load(path)
    assert victim.exists()


@pytest.mark.parametrize("builder", [UserCNN, "tests.search_spaces.models.UserCNN"])
def test_a_users_own_builder_is_loaded_when_trusted_or_given(builder: Any, tmp_path: Path) -> None:
    space = FactorySpace(builder, {"widths.length": [1, 2], "widths.*": [4, 6]}, input_shape=(1, 8, 8))
    supernet = Supernet(space, Classification(3))
    folder = save(supernet, tmp_path / "own")
    with pytest.raises(
        CheckpointError, match=r"names 'tests.search_spaces.models.UserCNN'.*allow it by trust=\['tests'"
    ):
        load(folder)
    images = torch.randn(2, 1, 8, 8)
    expected = supernet.extract(space.largest())(images)
    for again in (load(folder, trust=("tests",)), load(folder, space=space)):
        assert again.space.digest == space.digest
        assert torch.equal(again.extract(space.largest())(images), expected)
    assert load(folder, space=space).space is space
