"""What people are told of searched bits: after an export, and before it."""

import json

import pytest
from torch import nn

from nas.__main__ import main
from nas.deploying import deployed_layers, deployment_card, deployment_table, possible_table, promise
from search_spaces import MLPSpace, QuantizedSpace
from supernets.deployment import Deployed

LAYERS = {
    "stem": Deployed(4, 8, 4, "storage", "int8", "QLinearConv", "weights are widened"),
    "body": Deployed(4, 8, 4, "storage", "int8", "QLinearConv", "weights are widened"),
    "head": Deployed(2, 32, 2, "real", "int8", "MatMulNBits"),
}


def test_the_manifest_gives_back_what_was_recorded() -> None:
    files = {"model.pt2": {}, "model.lowbit.onnx": {"layers": {name: made.record() for name, made in LAYERS.items()}}}
    assert deployed_layers({"files": files}) == LAYERS
    assert deployed_layers({"files": {"model.pt2": {}}}) == {}


def test_the_table_has_a_line_for_each_layer_and_each_reason_once() -> None:
    lines = deployment_table(LAYERS).splitlines()
    assert lines[2].split() == ["stem", "4/8", "4", "storage", "only", "int8", "QLinearConv"]
    assert lines[4].split() == ["head", "2/32", "2", "real", "int8", "MatMulNBits"]
    assert lines[5:] == ["storage only: weights are widened", "layers: 1 real (2 bits), 2 storage only (4 bits)"]


def test_the_card_has_the_class_of_each_layer() -> None:
    card = deployment_card(LAYERS)
    assert "| head | 2/32 | 2 | real | int8 | MatMulNBits |" in card
    assert "1 real (2 bits), 2 storage only (4 bits)" in card


@pytest.mark.parametrize(
    ("layer", "bits", "expected"),
    [
        (nn.Linear(2, 2), 2, "real"),
        (nn.Linear(2, 2), 3, "simulated"),
        (nn.Linear(2, 2), 16, "simulated"),
        (nn.Conv2d(2, 2, 1), 4, "real"),
        (nn.Conv2d(2, 2, 1, groups=2), 4, "storage"),
        (nn.Conv2d(2, 2, 3), 8, "real"),
        (nn.Conv2d(2, 2, 3), 2, "storage"),
        (nn.Conv1d(2, 2, 3), 1, "simulated"),
    ],
)
def test_no_more_is_promised_than_the_runtime_has(layer: nn.Module, bits: int, expected: str) -> None:
    assert promise(layer, bits) == expected


def test_a_space_tells_what_can_become_of_its_bits() -> None:
    plain = MLPSpace(8, 2, widths=(4,), depths=(2, 3))
    space = QuantizedSpace(plain, weight_bits=(2, 3), ends=(8, 8))
    table = possible_table(space, [space.smallest(), space.largest()])
    assert table is not None
    assert table.splitlines()[2].split()[-4:] == ["2,", "8", "-", "3"]
    assert possible_table(plain, [plain.smallest()]) is None


def test_a_limit_on_bits_is_checked_before_training(tmp_path, capsys) -> None:
    inner = {
        "class_path": "search_spaces.MLPSpace",
        "init_args": {"in_features": 6, "num_classes": 3, "widths": [4], "depths": [3]},
    }
    space = {"class_path": "search_spaces.QuantizedSpace", "init_args": {"space": inner, "weight_bits": [2, 4]}}
    path = tmp_path / "bits.yaml"
    path.write_text(json.dumps({"model": {"class_path": "supernets.Supernet", "init_args": {"space": space}}}))
    command = ["profile", "-c", str(path), "--samples", "2", "--max_weight_bits"]
    assert main([*command, "2"]) == 0
    assert "satisfiable: max_weight_bits=2" in capsys.readouterr().out
    assert main([*command, "1"]) == 2
    assert "max_weight_bits=1 cannot be met: the smallest subnetwork has 2 weight_bits" in capsys.readouterr().out
