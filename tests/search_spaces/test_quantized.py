"""Which layers of a space get bits, when these exist, and what is refused."""

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces import (
    CellSpace,
    ConvNetSpace,
    FactorySpace,
    InputQuantizer,
    InvalidArchitectureError,
    MLPSpace,
    QuantizedSpace,
    SearchSpace,
    Stage,
    TensorRule,
    TransformerSpace,
    fill,
)

MLP = MLPSpace(6, 3, widths=(4, 6), depths=(1, 2, 3))


class Mixed(nn.Module):
    """Inputs that are never negative, that are, and a layer that never runs."""

    def __init__(self, width: int, act: str = "relu") -> None:
        super().__init__()
        self.first = nn.Conv1d(2, width, 3)
        self.act = nn.ReLU() if act == "relu" else nn.Tanh()
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, 3)
        self.idle = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.third(self.second(self.act(self.first(input=x)).mean(2)))
        return logits


def mixed(**choices: Any) -> FactorySpace:
    return FactorySpace(Mixed, {"width": [2, 4], **choices}, input_shape=(2, 5))


class Late(SearchSpace):
    """A shallow network is the last blocks of a deep one, by a rule that is a function."""

    def __init__(self) -> None:
        from search_spaces import Choice

        self.choices = (Choice("depth", (1, 2)),)

    def build(self, architecture: Any) -> nn.Module:
        return nn.Sequential(*(nn.Linear(3, 3) for _ in range(architecture["depth"])))

    def inputs(self, architecture: Any, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, 3),)

    def rules(self) -> dict[str, TensorRule]:
        def source(architecture: Any, name: str) -> str:
            assert set(architecture) == {"depth"}
            return name if architecture["depth"] == 2 else f"1{name[1:]}"

        return {"*": TensorRule(source=source)}


def test_layers_have_two_choices_each_from_the_depth_on_that_makes_them() -> None:
    space = QuantizedSpace(MLP, weight_bits=(2, 4), input_bits=(3, 8))
    assert {(c.name, c.candidates, c.requires) for c in space.choices[len(MLP.choices) :]} == {
        ("linear2.weight_bits", (2, 4), ("depth", 2)),
        ("linear2.input_bits", (3, 8), ("depth", 2)),
        ("linear3.weight_bits", (2, 4), ("depth", 3)),
        ("linear3.input_bits", (3, 8), ("depth", 3)),
    }
    assert dict(space.bitwidths(space.smallest())) == {"linear1": (8, 8), "head": (8, 8)}
    bits = {"linear2.weight_bits": 4, "linear2.input_bits": 3}
    architecture = space.architecture({"depth": 2, "layer1.width": 4, "layer2.width": 6, **bits})
    assert dict(space.bitwidths(architecture)) == {"linear1": (8, 8), "linear2": (4, 3), "head": (8, 8)}
    assert dict(space.base(architecture)) == {"depth": 2, "layer1.width": 4, "layer2.width": 6}
    assert space.options("linear2") == ((2, 4), (3, 8))
    assert space.options("head") == ((8,), (8,))


def test_the_size_counts_bits_of_layers_that_exist() -> None:
    space = QuantizedSpace(MLP, weight_bits=(2, 4), input_bits=(3, 8))
    assert space.size() == 2 + 2**2 * 4 + 2**3 * 16 == sum(1 for _ in space.architectures())


def test_a_build_is_the_module_of_the_space_with_quantisers_in_front_of_its_layers() -> None:
    space = QuantizedSpace(mixed(), input_bits=(4, 32), ends=None)
    architecture = space.architecture(
        {"width": 4, "first.input_bits": 4, "second.input_bits": 4, "third.input_bits": 32}
        | {f"{layer}.weight_bits": 2 for layer in ("first", "second", "third")}
    )
    module = space.build(architecture)
    assert type(module) is Mixed
    added = {"first.input_quantizer.scale", "second.input_quantizer.scale"}
    assert module.state_dict().keys() == space.space.build(space.base(architecture)).state_dict().keys() | added
    assert isinstance(module.first.input_quantizer, InputQuantizer)
    assert (module.first.input_quantizer.bits, module.first.input_quantizer.signed) == (4, True)
    assert not module.second.input_quantizer.signed, "what a ReLU gives is never negative"
    scales = {name: torch.tensor(0.25) for name in added}
    fill(module, module.state_dict() | scales)
    x = torch.randn(7, 2, 5)
    expected = module.first(x)
    quantised = (x / 0.25).round().clamp(-8, 7) * 0.25
    assert torch.allclose(expected, nn.functional.conv1d(quantised, module.first.weight, module.first.bias))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
        assert twin.first.input_quantizer is not module.first.input_quantizer


def test_layers_that_never_run_and_tied_weights_are_left_in_full_precision() -> None:
    assert [site.name for site in QuantizedSpace(mixed()).sites] == ["first", "second", "third"]
    tied = TransformerSpace(7, 5, widths=(8,), depths=(1, 2), heads=(2,), ffn_ratios=(1,), head_dim=4)
    names = {name for name, layer in tied.build(tied.largest()).named_modules() if isinstance(layer, nn.Linear)}
    assert names - {site.name for site in QuantizedSpace(tied).sites} == {"head"}


def test_a_sign_that_depends_on_an_operation_costs_its_bit() -> None:
    space = QuantizedSpace(mixed(act=["relu", "tanh"]))
    assert {site.name: site.signed for site in space.sites}["second"]
    assert QuantizedSpace(mixed(), signed=["second"]).signed_input("second")


def test_groups_share_their_bits_and_ends_can_be_searched_too() -> None:
    space = QuantizedSpace(MLP, groups={"hidden": ["linear*"]}, ends=None, input_bits=None)
    own = space.choices[len(MLP.choices) :]
    assert [(c.name, c.requires) for c in own] == [("hidden.weight_bits", None), ("head.weight_bits", None)]
    architecture = space.quantized(MLP.largest(), 4)
    assert dict(space.bitwidths(architecture)) == dict.fromkeys(("linear1", "linear2", "linear3", "head"), (4, 32))
    deep = QuantizedSpace(MLP, groups={"deep": ["linear2", "linear3"]})
    assert {c.requires for c in deep.choices[len(MLP.choices) :]} == {("depth", 2)}


def test_a_single_candidate_is_no_choice() -> None:
    space = QuantizedSpace(MLP, weight_bits=(4,), input_bits=(8,))
    assert space.choices == MLP.choices
    assert dict(space.bitwidths(space.quantized(MLP.largest(), 4, 8)))["linear2"] == (4, 8)
    with pytest.raises(InvalidArchitectureError, match=r"input_bits must be one of \(8,\), got 4"):
        space.quantized(MLP.largest(), 4)


def test_the_superset_has_a_quantiser_wherever_a_build_may_have_one() -> None:
    space = QuantizedSpace(MLP, input_bits=(32,), ends=(8, 6))
    scales = {name for name, _ in space.superset().named_parameters() if "input_quantizer" in name}
    assert scales == {"linear1.input_quantizer.scale", "head.input_quantizer.scale"}
    assert scales <= space.build(space.smallest()).state_dict().keys()


def test_a_network_that_is_a_layer_itself_is_refused() -> None:
    bare = FactorySpace(nn.Linear, {"out_features": [2, 4]}, fixed={"in_features": 3}, input_shape=(3,))
    with pytest.raises(ValueError, match=r"is a layer itself and has no name; put it into nn.Sequential"):
        QuantizedSpace(bare)


def test_cells_have_one_pair_of_bits_and_equal_cells_stay_one_architecture() -> None:
    cells = CellSpace(3, resolution=4, widths=(4,), cells=1, operations=("skip_connect", "none", "nor_conv_1x1"))
    with pytest.raises(ValueError, match=r"depends on the choices \['edge0_1'\].*groups: \{body: \['\*'\]\}"):
        QuantizedSpace(cells)
    space = QuantizedSpace(cells, groups={"body": ["*"]}, ends=None)
    assert space.size() == cells.size() * 9
    for architecture in itertools.islice(space.probes(), 4):
        built = {name for name, layer in space.build(architecture).named_modules() if isinstance(layer, InputQuantizer)}
        assert {f"{name}.input_quantizer" for name in space.bitwidths(architecture)} == built
        assert space.motifs(architecture) == cells.motifs(space.base(architecture))
    assert any(space.motifs(architecture) for architecture in space.probes())


def test_rules_that_are_functions_see_architectures_without_bits() -> None:
    space = QuantizedSpace(Late(), ends=None)
    (rule,) = space.rules().values()
    assert callable(rule.source)
    assert rule.source(space.smallest(), "0.weight") == "1.weight"


def test_stages_of_a_convolutional_network_have_bits_per_layer() -> None:
    wrapped = ConvNetSpace([Stage((4,), (1, 2), block="residual")], 3, resolutions=(6,))
    requires = {c.name: c.requires for c in QuantizedSpace(wrapped).choices}
    assert requires["stage1.block1.conv1.weight_bits"] is None
    assert requires["stage1.block2.conv1.weight_bits"] == ("stage1.depth", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": (4, 2)}, r"QuantizedSpace.weight_bits must be ascending .* 1 to 16, or 32 .* got \(4, 2\)"),
        ({"weight_bits": ()}, "weight_bits must be ascending"),
        ({"input_bits": (1, 4)}, r"input_bits must be ascending numbers of bits, each 2 to 16"),
        ({"input_bits": (4, 20)}, "input_bits must be"),
        ({"ends": (8, 1)}, "ends must be"),
        ({"modules": ("conv*",)}, r"\['conv\*'\] match none; layers are \['linear1', 'linear2', 'linear3', 'head'\]"),
        ({"signed": ("x",)}, r"\['x'\] match none"),
        ({"groups": {"a": ["linear2"], "b": ["lin*"]}}, r"must not overlap, but layer 'linear2' is in \['a', 'b'\]"),
    ],
    ids=["order", "empty", "one", "twenty", "ends", "glob", "signed", "overlap"],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizedSpace(MLP, **options)
