"""What every search space promises. A new space joins by one line in SPACES."""

import json
from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_leaves

from search_spaces import (
    Architecture,
    CellSpace,
    ConvNetSpace,
    DARTSSpace,
    FactorySpace,
    GraphSpace,
    Head,
    InvalidArchitectureError,
    MLPSpace,
    QuantizedSpace,
    SearchSpace,
    Slicer,
    Stack,
    Stage,
    Stem,
    TDNNSpace,
    TransformerSpace,
    TranslationSpace,
    VisionTransformerSpace,
    construct,
    describe,
    fill,
    skeleton,
)
from tests.search_spaces.models import PackedAttention, TiedLanguageModel, UserCNN

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "mlp": lambda: MLPSpace(12, 3, widths=(4, 6, 8), depths=(1, 2, 3)),
    "mlp_plain": lambda: MLPSpace(12, 3, widths=(4, 8), depths=(1, 3), batch_norm=False, activation="gelu"),
    "convnet_inverted": lambda: ConvNetSpace(
        [
            Stage((4, 6), (1, 2), kernels=(3, 5), activation="silu"),
            Stage((8, 10), (1, 2, 3), (3, 5, 7), (2, 3.5), 2, squeeze_excite=True, project_shortcut=True),
        ],
        3,
        in_channels=1,
        resolutions=(6, 8),
        stem=Stem((4, 6)),
        head=Head((8, 12), expansion=2, dropout=0.1),
        per_block=True,
    ),
    "convnet_residual": lambda: ConvNetSpace(
        [Stage((4, 8), (1, 2), (1, 3), (0.5, 1), 2, "residual")], 3, in_channels=1, resolutions=(8,), head=Head((8, 16))
    ),
    "language_model": lambda: TransformerSpace(
        11, 6, widths=(8, 12), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 1.5, 2), head_dim=4, positions="rotary"
    ),
    "text_classifier": lambda: TransformerSpace(
        11,
        6,
        widths=(8, 12),
        depths=(2, 3),
        heads=(1, 2),
        ffn_widths=(8, 16),
        head_dim=4,
        num_classes=3,
        padding=0,
        per_layer=False,
        dropout=0.1,
    ),
    "cells": lambda: CellSpace(
        3,
        in_channels=1,
        resolution=6,
        widths=(4, 6),
        cells=1,
        operations=("skip_connect", "none", "nor_conv_1x1"),
    ),
    "vision_transformer": lambda: VisionTransformerSpace(
        3, 6, 3, widths=(8, 12), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4, in_channels=2
    ),
    "translation": lambda: TranslationSpace(
        11,
        5,
        encoder=Stack((8, 12), (1, 2), (1, 2), (1, 2)),
        decoder=Stack((6, 10), (1, 2), (1, 2), ffn_widths=(6, 9), cross_heads=(1, 2)),
        head_dim=4,
    ),
    "darts": lambda: DARTSSpace(
        3, in_channels=1, resolution=6, width=2, cells=3, nodes=2, operations=("skip_connect", "dil_conv_3x3")
    ),
    "tdnn": lambda: TDNNSpace(
        5, mels=6, frames=9, widths=(8, 16), kernels=(1, 3), depths=(1, 3), head_widths=(5, 9), scale=4, embedding=7
    ),
    "factory_cnn": lambda: FactorySpace(
        UserCNN,
        {"widths.length": [1, 3], "widths.*": [4, 8], "kernel": [3, 5]},
        input_shape=(1, 6, 6),
        fixed={"num_classes": 4},
    ),
    "factory_recurrent": lambda: FactorySpace(
        TiedLanguageModel, {"width": {"low": 2, "high": 8, "step": 2}}, input_shape=(4,), input_dtype="int64"
    ),
    "factory_packed": lambda: FactorySpace(
        PackedAttention, {"heads": [1, 2, 4]}, input_shape=(5, 6), slicing={"qkv.*": {"blocks": {0: 3}}}
    ),
    "graph": lambda: GraphSpace(
        5,
        3,
        widths=(2, 3),
        depths=(1, 3),
        heads=2,
        attentions=("gcn", "gat", "gene_linear"),
        aggregations=("mean", "max"),
        shortcuts=True,
        scores=2,
        activation_bits=(3, 32),
        sites=("linear",),
    ),
    "quantized_mlp": lambda: QuantizedSpace(MLPSpace(6, 3, widths=(4, 6), depths=(1, 3)), weight_bits=(2, 32)),
    "quantized_cells": lambda: QuantizedSpace(
        CellSpace(3, resolution=4, widths=(4,), cells=1, operations=("skip_connect", "none", "nor_conv_1x1")),
        input_bits=(4, 32),
        groups={"body": ["*"]},
        ends=None,
    ),
}
OPERATIONS = ("cells", "darts", "graph", "quantized_cells")
ENTANGLED = [name for name in SPACES if name not in OPERATIONS]  # candidates share weights, values are kept


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    return SPACES[request.param]()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


def test_every_way_to_make_an_architecture_gives_valid_ones(space, generator):
    first, second = space.sample(generator), space.sample(generator)
    made = [first, second, space.smallest(), space.middle(), space.largest(), *space.probes()]
    made += [space.mutate(first, generator), space.crossover(first, second, generator), *space.neighbours(first)]
    assert all(space.contains(architecture) for architecture in made)


def test_mutants_and_neighbours_differ_from_their_parent(space, generator):
    for _ in range(20):
        parent = space.sample(generator)
        assert space.mutate(parent, generator) != parent
        assert space.mutate(parent, generator, probability=0.0) != parent
        neighbours = list(space.neighbours(parent))
        assert parent not in neighbours
        assert len(neighbours) == len(set(neighbours))
        for neighbour in neighbours:
            assert sum(neighbour.get(name) != value for name, value in parent.items()) >= 1


@pytest.mark.parametrize("space", ENTANGLED, indirect=True)
def test_a_child_takes_every_value_from_a_parent(space, generator):
    for _ in range(20):
        first, second = space.sample(generator), space.sample(generator)
        child = space.crossover(first, second, generator)
        assert all(value in (first.get(name), second.get(name)) for name, value in child.items())


def test_json_round_trip(space, generator):
    for _ in range(5):
        architecture = space.sample(generator)
        again = space.architecture(Architecture.from_json(architecture.to_json()))
        assert (again, hash(again), again.arch_id) == (architecture, hash(architecture), architecture.arch_id)
        assert json.loads(architecture.to_json()) == dict(architecture)


def test_same_seed_same_sequence(space):
    def sequence():
        generator = torch.Generator().manual_seed(5)
        a = [space.sample(generator) for _ in range(4)]
        return [*a, space.mutate(a[0], generator), space.crossover(a[1], a[2], generator)]

    before = torch.get_rng_state()
    assert sequence() == sequence()
    assert torch.equal(torch.get_rng_state(), before), "sampling must not touch the global generator"


def test_size_counts_the_distinct_architectures_and_encodings_tell_them_apart(space):
    if space.size() > 500:
        generator = torch.Generator().manual_seed(0)
        listed = list({space.sample(generator) for _ in range(100)})
    else:
        listed = list(space.architectures())
        assert len(listed) == len(set(listed)) == space.size()
    codes = torch.stack([space.encode(architecture) for architecture in listed])
    assert codes.dtype == torch.float32
    assert codes.min() >= 0
    assert codes.max() <= 1
    assert len({tuple(code.tolist()) for code in codes}) == len(listed)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_build_runs_on_the_example_inputs(space, generator, device):
    for architecture in (space.smallest(), space.sample(generator), space.largest()):
        with torch.device(device):
            module = space.build(architecture).eval()
            outputs = tree_leaves(module(*space.inputs(architecture, 2)))
        assert all(output.shape[0] == 2 and output.device.type == device for output in outputs)


def test_every_build_is_covered_by_the_superset(space, generator):
    big = space.superset()
    slicer = Slicer(big, space.rules())
    stored = dict(big.named_parameters())
    for architecture in (space.smallest(), *(space.sample(generator) for _ in range(10))):
        module = skeleton(space, architecture)
        cut = slicer.plan(module, architecture)(stored)
        assert {name: tensor.shape for name, tensor in cut.items()} == {
            name: parameter.shape for name, parameter in module.named_parameters(remove_duplicate=False)
        }


def test_the_plan_of_the_largest_cuts_nothing(space):
    big = space.superset()
    stored = dict(big.named_parameters())
    for part in Slicer(big, space.rules()).plan(space.build(space.largest()), space.largest()):
        assert part.cuts == ()
        assert part(stored[part.source]) is stored[part.source]


@pytest.mark.parametrize("space", ENTANGLED, indirect=True)
def test_nested_plans_compose(space, generator):
    big = space.build(space.largest())
    stored = {name: tensor.nan_to_num(0.5) for name, tensor in big.named_parameters()}  # scales wait for data
    from_big = Slicer(big, space.rules())
    for _ in range(5):
        small = space.sample(generator)
        draws = space.sample_indices(generator)
        between = space.architecture(
            {
                c.name: c.candidates[max(draws[c.name], c.index(small.get(c.name, c.candidates[0])))]
                for c in space.choices
            }
        )
        small_build, between_build = space.build(small), space.build(between)
        direct = from_big.plan(small_build, small)(stored)
        halfway = from_big.plan(between_build, between)(stored)
        twice = Slicer(between_build, space.rules()).plan(small_build, small)(halfway)
        assert direct.keys() == twice.keys()
        assert all(torch.equal(direct[name], twice[name]) for name in direct)


def test_a_skeleton_consumes_no_randomness_and_has_the_buffers_of_a_build(space, generator):
    architecture = space.sample(generator)
    before = torch.get_rng_state()
    module = skeleton(space, architecture)
    assert torch.equal(torch.get_rng_state(), before)
    built = space.build(architecture)
    assert not torch.equal(torch.get_rng_state(), before), "a real build must be initialised"
    assert repr(module) == repr(built)
    assert module.state_dict().keys() == built.state_dict().keys()
    buffers = dict(module.named_buffers())
    assert buffers.keys() == dict(built.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in built.named_buffers())


def test_filling_a_skeleton_equals_loading_a_build(space, generator):
    architecture = space.sample(generator)
    donor, loaded = space.build(architecture), space.build(architecture)
    tensors = {name: tensor.nan_to_num(0.5) for name, tensor in donor.state_dict().items()}
    loaded.load_state_dict(tensors)
    loaded.requires_grad_(False)  # attention takes another path of equal meaning where gradients are needed
    filled = fill(skeleton(space, architecture), tensors)
    inputs = space.inputs(architecture, 3)
    if inputs[0].is_floating_point():
        inputs = (torch.randn(inputs[0].shape, generator=generator), *inputs[1:])
    pairs = zip(tree_leaves(filled.eval()(*inputs)), tree_leaves(loaded.eval()(*inputs)), strict=True)
    assert all(torch.equal(given, expected) for given, expected in pairs)
    assert all(torch.equal(filled.state_dict()[name], tensor) for name, tensor in tensors.items())
    assert all(filled.state_dict()[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())
    assert not any(parameter.requires_grad for parameter in filled.parameters())


def test_zero_init_names_scales_that_exist(space):
    shapes = dict(space.build(space.largest()).named_parameters())
    assert all(shapes[name].ndim == 1 for name in space.zero_init())


def test_describe_and_construct_round_trip(space):
    tree = describe(space)
    again = construct(json.loads(json.dumps(tree)), SearchSpace)
    assert type(again) is type(space)
    assert again.choices == space.choices
    assert again.digest == space.digest
    assert describe(again) == tree
    assert repr(again.build(again.middle())) == repr(space.build(space.middle()))


def test_a_bad_value_is_named_with_its_choice_and_candidates(space):
    choice = space.choices[0]
    values = dict(space.smallest()) | {choice.name: 999}
    with pytest.raises(InvalidArchitectureError) as caught:
        space.architecture(values)
    assert repr(choice.name) in str(caught.value)
    assert str(choice.candidates) in str(caught.value)
    assert "999" in str(caught.value)
    assert not space.contains(values)


def test_missing_and_unknown_choices_are_named_together(space):
    values = {"colour": 1}
    with pytest.raises(InvalidArchitectureError, match=r"'colour'.*is not a choice") as caught:
        space.architecture(values)
    assert f"architecture[{space.choices[0].name!r}] is missing" in str(caught.value)


def test_inactive_choices_are_dropped(space):
    everything = {c.name: c.candidates[0] for c in space.choices}
    assert space.architecture(everything) == space.smallest()
    assert space.architecture(everything).arch_id == space.smallest().arch_id
