import math

import pytest
import torch
from torch import nn

from hypernets import Target, TensorSpec


class Tied(nn.Module):
    """An embedding that is also the output layer, and one layer used twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.block = nn.Linear(4, 4)
        self.again = self.block
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.again(self.block(self.embed(tokens)).tanh()))


def test_names_shapes_and_order_are_those_of_the_module():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    target = Target.of(module)
    assert target.shapes == {name: tuple(value.shape) for name, value in module.named_parameters()}
    assert list(target.shapes) == [name for name, _ in module.named_parameters()]
    assert target.numel == sum(parameter.numel() for parameter in module.parameters())
    assert not {name for name, _ in module.named_buffers()} & set(target.names)
    with torch.device("meta"):
        assert Target.of(nn.Linear(3, 2)) == Target.of(nn.Linear(3, 2, device="cpu"))


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(6, 5), 6),
        (nn.Conv2d(6, 8, 3), 6 * 9),
        (nn.Conv2d(6, 12, (3, 5), groups=3), 2 * 15),
        (nn.Conv1d(6, 6, 7, groups=6), 7),
        (nn.ConvTranspose2d(6, 8, 3), 6 * 9),
        (nn.ConvTranspose2d(6, 8, 3, groups=2), 3 * 9),
    ],
    ids=str,
)
def test_fan_in_counts_the_values_that_reach_one_output(layer, fan_in):
    assert Target.of(layer)["weight"].fan_in == fan_in
    with torch.no_grad():  # independently: inputs and weights of one sum up the weights of the inner outputs
        for parameter in layer.parameters():
            nn.init.constant_(parameter, 1.0)
        layer.bias.zero_()
        if not isinstance(layer, nn.Linear):
            side = [1, layer.in_channels, *[15] * (layer.weight.dim() - 2)]
            inner = tuple(slice(7, 8) for _ in side[2:])
            assert layer(torch.ones(side))[0, 0][inner].item() == fan_in


def test_roles_decide_how_tensors_start():
    module = nn.Sequential(
        nn.Embedding(500, 20),
        nn.Linear(200, 300),
        nn.LayerNorm(300),
        nn.ConvTranspose1d(300, 40, 3),
        nn.GroupNorm(4, 40),
    )
    start = {spec.name: spec.initial() for spec in Target.of(module)}
    assert start["0.weight"].std().item() == pytest.approx(1, rel=0.05)
    assert start["1.weight"].std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.05)
    assert start["3.weight"].std().item() == pytest.approx(math.sqrt(2 / 900), rel=0.05)
    assert all((start[name] == 1).all() for name in ("2.weight", "4.weight"))
    assert all((start[name] == 0).all() for name in ("1.bias", "2.bias", "3.bias", "4.bias"))


def test_tied_tensors_are_listed_once_under_their_first_name():
    target = Target.of(Tied())
    assert target.names == ("embed.weight", "block.weight", "block.bias")
    assert dict(target.ties) == {
        "again.weight": "block.weight", "again.bias": "block.bias", "head.weight": "embed.weight"
    }  # fmt: skip
    assert target.canonical("head.weight") == "embed.weight"
    assert target.canonical("block.bias") == "block.bias"


def test_patterns_pick_a_part_and_any_name_of_a_tied_tensor_counts():
    assert Target.of(Tied(), include=("head.*",)).names == ("embed.weight",)
    assert Target.of(Tied(), exclude=("head.*",)).names == ("block.weight", "block.bias")
    assert Target.of(Tied(), include=("*.weight",), exclude=("embed.*",)).names == ("block.weight",)
    with pytest.raises(ValueError, match=r"\['hed.\*'\] match none of \['embed.weight'"):
        Target.of(Tied(), include=("hed.*",))
    with pytest.raises(ValueError, match="at least one tensor"):
        Target.of(Tied(), exclude=("*",))


def test_integer_parameters_and_modules_without_parameters_and_lazy_ones():
    module = nn.Linear(3, 2)
    module.codes = nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False)
    assert Target.of(module).names == ("weight", "bias")
    with pytest.raises(ValueError, match="at least one tensor"):
        Target.of(nn.ReLU())
    with pytest.raises(ValueError, match="weight is a lazy parameter"):
        Target.of(nn.LazyLinear(3))


def test_check_names_all_that_is_wrong():
    target = Target.of(nn.Linear(3, 2))
    target.check({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    target.check({"weight": torch.zeros(5, 2, 3), "bias": torch.zeros(5, 2)}, sets=5)
    with pytest.raises(ValueError, match=r"missing \['bias'\]; unexpected \['wieght'\]; weight is \(2, 1\) instead of"):
        target.check({"weight": torch.zeros(2, 1), "wieght": torch.zeros(2, 3)})


def test_json_round_trip_and_a_fingerprint_that_sees_every_difference():
    target = Target.of(Tied())
    assert Target.from_json(target.to_json()) == target
    others = [
        Target.of(Tied(), exclude=("block.bias",)),
        Target.of(Tied().double()),
        Target(target.tensors),
        Target(tuple(reversed(target.tensors)), target.ties),
    ]
    assert len({target.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert Target.from_json(target.to_json()).fingerprint == target.fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"role": "scale"}, "role of w must be one of"),
        ({"fan_in": 0}, "fan_in >= 1"),
        ({"shape": (2, -1)}, "sizes must be >= 0"),
        ({"dtype": "int8"}, "floating-point dtype"),
        ({"dtype": "floaty"}, "floating-point dtype"),
    ],
)
def test_wrong_descriptions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TensorSpec(**{"name": "w", "shape": (2, 3), "role": "weight", "fan_in": 3, **fields})


def test_names_must_differ():
    spec = TensorSpec("w", (2,), "bias", 1)
    with pytest.raises(ValueError, match="must differ"):
        Target((spec, spec))
    with pytest.raises(KeyError, match="v is no tensor of this target"):
        Target((spec,))["v"]
