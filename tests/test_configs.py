"""Every configuration that ships can be read by the command line and built, without data and without training."""

import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from nas.cli import NASParser
from nas.conditioned import ConditionedNetwork
from nas.settings import SearchSettings
from nas.trainer import NASTrainer
from nas.zoo_diffusion import ZooDiffusion
from search_spaces import construct, describe
from supernets import Supernet

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


@functools.cache
def sections() -> NASParser:
    """The parser of the sections that `nas fit` knows."""
    parser = NASParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_lightning_class_args(NASTrainer, "trainer")
    parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    parser.add_class_arguments(SearchSettings, "search")
    return parser


def parsed(path: Path) -> Any:
    """The configuration, every key checked."""
    return sections().parse_object(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_builds_and_can_be_described(path: Path) -> None:
    config = parsed(path)
    del config["trainer"]
    made = sections().instantiate(config)
    parts: list[Any] = []
    if isinstance(made.model, ConditionedNetwork):
        parts += [made.model.task, *made.model.conditions.values()]
    elif isinstance(made.model, ZooDiffusion):
        parts += [made.model.space]
    else:
        assert isinstance(made.model, Supernet)
        space = made.model.space
        assert space.contains(space.sample(torch.Generator().manual_seed(0)))
        parts += [made.model.task, space, made.model.rule]
    for part in parts:
        assert describe(construct(describe(part))) == describe(part)
    assert describe(made.data)["init_args"]
    assert made.search.trials > 0


def test_a_misspelt_key_is_found(tmp_path: Path) -> None:
    text = next(path for path in CONFIGS if path.stem == "digits").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("max_epochs", "max_epoch"))
    with pytest.raises(Exception, match="max_epoch"):
        parsed(tmp_path / "wrong.yaml")
