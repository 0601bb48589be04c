"""What a constructor refuses is told with its place in the configuration."""

import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from nas.commands.boundary import one_line
from nas.commands.places import ConfigurationError, Placing
from nas.commands.sections import build_sections
from nas.controllers import Controller, Problem
from nas.settings import SearchSettings
from search_spaces import SearchSpace
from supernets import SamplingRule, WeightSource

KINDS = {
    "model.init_args.space": SearchSpace,
    "model.init_args.rule": SamplingRule | None,
    "model.init_args.source": Callable[[SearchSpace], WeightSource],
    "search.controller": Callable[[Problem], Controller],
}


class Optional(L.LightningDataModule):
    """Takes what only it understands."""

    def __init__(self, missing: float = math.nan, options: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.missing, self.options = missing, options


@pytest.mark.parametrize("path", ["resnet", "no.such.thing", 3])
def test_what_a_class_of_the_user_takes_is_its_own_affair(path: Any) -> None:
    options = {"options": {"class_path": path}, "missing": math.nan}
    tree = {"data": {"class_path": f"{__name__}.Optional", "init_args": options}}
    data = build_sections(tree, {"data": L.LightningDataModule})["data"]
    assert math.isnan(data.missing)
    assert data.options == {"class_path": path}


def test_a_learning_rate_that_is_no_number_is_refused() -> None:
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": math.nan}}
    with pytest.raises(ConfigurationError, match=r"^model\.optimizer\.lr must be a number, got nan$"):
        Placing({"model": {"class_path": "supernets.Supernet", "init_args": {"optimizer": adam}}})


def made(key: str, class_path: str, **init_args: Any) -> Any:
    *parents, leaf = key.split(".")
    tree: dict[str, Any] = {leaf: {"class_path": class_path, "init_args": init_args}}
    for parent in reversed(parents):
        tree = {parent: tree}
    return build_sections(tree, KINDS)[key]


BLOCK = {"widths": [8], "depths": [1]}


@pytest.mark.parametrize(
    ("key", "class_path", "init_args", "message"),
    [
        (
            "model.init_args.space",
            "search_spaces.MLPSpace",
            {"in_features": 4, "num_classes": 2, "widths": [0]},
            r"^model\.space: widths must be at least 1, got \(0,\)$",
        ),
        (
            "model.init_args.space",
            "search_spaces.ConvNetSpace",
            {"num_classes": 3, "stages": [BLOCK, {**BLOCK, "depths": [0]}]},
            r"^model\.space\.stages\[1\]: Stage\.depths must be numbers above zero, got \(0,\)$",
        ),
        (
            "model.init_args.rule",
            "supernets.SandwichRule",
            {"n_random": -1},
            r"^model\.rule: SandwichRule\.n_random must be >= 0, got -1$",
        ),
    ],
    ids=["class", "entry of a list", "one of several types"],
)
def test_an_error_begins_with_the_place(key: str, class_path: str, init_args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as raised:
        made(key, class_path, **init_args)
    assert re.search(message, one_line(raised.value))


@pytest.mark.parametrize(
    ("key", "class_path", "init_args", "message"),
    [
        (
            "model.init_args.space",
            "search_spaces.ConvNetSpace",
            {"num_classes": 3, "stages": [BLOCK], "stem": -1},
            r"^model\.space\.stem must be a mapping of the options of Stem, got -1$",
        ),
        (
            "model.init_args.source",
            "supernets.MixtureWeights",
            {"group_bias": math.nan},
            r"^model\.source\.group_bias must be a number, got nan$",
        ),
    ],
    ids=["no options", "not a number"],
)
def test_what_the_parser_lets_pass_is_refused(
    key: str, class_path: str, init_args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(key, class_path, **init_args)


def test_a_section_without_class_path_is_checked_too() -> None:
    Placing({"search": {"trust": None, "ray": {"cpus": 1}}}, {"search": SearchSettings})
    with pytest.raises(
        ConfigurationError, match=r"^search\.ray must be a mapping of the options of RayCluster, got 2$"
    ):
        Placing({"search": {"ray": 2}}, {"search": SearchSettings})


def test_what_is_made_later_has_its_place_too_and_reaches_a_worker() -> None:
    make = pickle.loads(pickle.dumps(made("model.init_args.source", "supernets.MixtureWeights", experts=0)))
    with pytest.raises(ConfigurationError, match=r"^model\.source: MixtureWeights\.experts must be at least 2, got 0"):
        make(made("model.init_args.space", "search_spaces.MLPSpace", in_features=4, num_classes=2))


def test_errors_of_the_code_are_told_by_type_and_those_of_files_pass() -> None:
    placing = Placing({"model": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1}}})
    with pytest.raises(ConfigurationError, match=r"^model: Linear takes something else .*\(TypeError: .*out_features"):
        placing(torch.nn.Linear, in_features=1)
    with pytest.raises(FileNotFoundError):
        placing(open, "nowhere")
    assert placing(complex, 1, imag=2) == 1 + 2j
    assert placing(dict, kind="lstm") == {"kind": "lstm"}, "a class of the user's may call an argument so"


def test_a_message_that_names_its_section_and_a_class_in_two_places_stay_as_they_are() -> None:
    class Linear:
        def __init__(self, **_: Any) -> None:
            raise ValueError("search.trials must be >= 1, got 0")

    node = {"class_path": "torch.nn.Linear"}
    with pytest.raises(ConfigurationError, match=r"^search\.trials must be >= 1, got 0$"):
        Placing({"search": node})(Linear)
    with pytest.raises(ConfigurationError, match=r"^Linear: search\.trials"):
        Placing({"a": node, "b": node})(Linear)
