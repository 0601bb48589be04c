import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentParser
from lightning import LightningDataModule
from torch import nn

from search_spaces import Architecture, Choice, MLPSpace, SearchSpace, construct, describe, foreign, import_path, load
from tests.search_spaces.models import UserCNN


@dataclass(frozen=True)
class Pair:
    first: object
    second: object = None


class Forgetful:
    """Does not keep its argument."""

    def __init__(self, size: int) -> None:
        del size


class Rows(LightningDataModule):
    """Keeps its arguments as Lightning proposes."""

    def __init__(self, path: str, size: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_hyperparameters_that_lightning_saves_are_kept_arguments():
    again = construct(json.loads(json.dumps(describe(Rows("rows.csv")))))
    assert isinstance(again, Rows)
    assert dict(again.hparams) == {"path": "rows.csv", "size": 3}


def test_foreign_packages_are_found_wherever_they_are_named():
    tree = {"a": [{"class_path": "json.JSONDecoder", "init_args": {"of": ["math.floor", "json.loads"]}}], "b": "a text"}
    assert foreign(tree, ()) == ["json", "math"]
    assert foreign(tree, ("json",)) == ["math"]
    with pytest.raises(ValueError, match=r"run code of 'json', 'math'.*trust=\['json', 'math'\].*--trust json,math"):
        construct(tree, trusted=("torch",))


def test_an_object_is_described_by_class_and_arguments_all_the_way_down():
    tree = describe(Pair([Choice("a", (1, 2))], {"key": Pair(1.5)}))
    assert json.loads(json.dumps(tree)) == tree
    assert tree["class_path"] == "tests.search_spaces.test_spec.Pair"
    assert tree["init_args"]["first"][0]["class_path"] == "search_spaces.Choice"
    again = construct(tree)
    assert again == Pair([Choice("a", (1, 2))], {"key": Pair(1.5)})


def test_constructor_arguments_can_be_left_out_and_given_later():
    tree = describe(Pair(1, MLPSpace(4, 2)), exclude=["second"])
    assert tree["init_args"] == {"first": 1}
    assert construct(tree, second="later") == Pair(1, "later")


def test_callables_are_described_by_import_path():
    assert import_path(MLPSpace) == "search_spaces.MLPSpace"
    for value, path in (
        (UserCNN, "tests.search_spaces.models.UserCNN"),
        (math.floor, "math.floor"),
        (Architecture.from_json, "search_spaces.Architecture.from_json"),
    ):
        assert describe(value) == {"reference": path}
        assert construct(json.loads(json.dumps(describe(value)))) == value
    assert load("torch.nn.modules.linear.Linear") is nn.Linear


def test_a_partial_is_described_by_its_function_and_keywords():
    tree = describe(functools.partial(UserCNN, widths=[4]))
    assert tree == {"partial": "tests.search_spaces.models.UserCNN", "init_args": {"widths": [4]}}
    again = construct(tree)
    assert isinstance(again, functools.partial)
    assert (again.func, again.args, again.keywords) == (UserCNN, (), {"widths": [4]})


def test_what_yaml_says_of_a_factory_is_described_by_class_and_keywords():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--make", type=Callable[[int], SearchSpace])
    given = {"class_path": "search_spaces.MLPSpace", "init_args": {"num_classes": 2, "widths": [4, 8]}}
    tree = describe(parser.instantiate(parser.parse_object({"make": given})).make)
    assert tree["partial"] == "search_spaces.MLPSpace"
    assert construct(json.loads(json.dumps(tree)))(6).digest == MLPSpace(6, 2, widths=(4, 8)).digest


def test_callables_are_found_inside_arguments():
    pair = Pair([nn.ReLU, functools.partial(nn.Linear, out_features=2)], {"act": math.floor})
    again = construct(describe(pair))
    assert again.first[0] is nn.ReLU
    assert again.first[1].func is nn.Linear
    assert again.second == {"act": math.floor}


def test_text_that_looks_like_a_path_stays_text():
    assert construct(describe(Pair("math.floor", {"class": "math.ceil"}))) == Pair("math.floor", {"class": "math.ceil"})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Forgetful(3), r"Forgetful must keep its constructor arguments as attributes; missing \['size'\]"),
        (lambda: 0, "cannot be imported by name"),
        ({}.get, "cannot be imported by name"),
        (functools.partial(math.floor, 1.5), "only keyword arguments of a partial"),
    ],
)
def test_what_cannot_be_described_says_why(value, message):
    with pytest.raises(ValueError, match=message):
        describe(value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"class_path": "no.such.thing", "init_args": {}}, "'no.such.thing' cannot be imported"),
        ({"class_path": "search_spaces.Nothing"}, "class_path 'search_spaces.Nothing'"),
        ({"class_path": "search_spaces.Choice"}, "'search_spaces.Choice' must name a subclass of SearchSpace"),
        (
            {"class_path": "search_spaces.MLPSpace", "init_args": {"in_feature": 4}},
            "init_args of 'search_spaces.MLPSpace'",
        ),
        ({"in_features": 4}, "expected a mapping with class_path and init_args for a SearchSpace"),
    ],
)
def test_a_tree_that_does_not_fit_says_what_is_wrong(tree, message):
    with pytest.raises(ValueError, match=message):
        construct(tree, SearchSpace)
