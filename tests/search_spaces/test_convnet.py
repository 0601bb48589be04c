from fnmatch import fnmatchcase
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import ConvNetSpace, Head, MLPSpace, Stage, Stem, mobilenet_v3_space
from search_spaces.layers import (
    ACTIVATIONS,
    BasicBlock,
    InvertedResidual,
    Resize,
    activation,
    activation_function,
    round_channels,
)


def million_macs(space: ConvNetSpace, architecture) -> float:
    side = architecture["resolution"]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        space.build(architecture).eval()(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() / 2e6


def test_the_mobilenet_space_spans_the_published_costs():
    """AttentiveNAS and AlphaNet report 203 M for the smallest and 1,944 M multiply-accumulates for the largest."""
    space = mobilenet_v3_space()
    assert million_macs(space, space.smallest()) == pytest.approx(203, rel=0.005)
    assert million_macs(space, space.largest()) == pytest.approx(1944, rel=0.005)
    per_stage = [(2, 2, 2, 1), (2, 3, 2, 3), (2, 4, 2, 3), (2, 4, 2, 3), (3, 6, 2, 3), (4, 6, 2, 1), (2, 2, 2, 1)]
    expected = 4 * 2 * 2  # resolution, stem, head
    for widths, depths, kernels, expansions in per_stage:
        expected *= widths * depths * kernels * expansions
    assert space.size() == expected


def test_per_block_choices_exist_only_for_blocks_that_do():
    space = mobilenet_v3_space(per_block=True)
    smallest = space.smallest()
    assert "stage2.block3.kernel" in smallest
    assert "stage2.block4.kernel" not in smallest
    assert "stage2.block5.expansion" in space.largest()
    assert "stage1.block1.expansion" not in space.largest(), "a decision with one candidate is none"


def small_space(**options) -> ConvNetSpace:
    return ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), stride=2)], 3, in_channels=1, **options)


def test_images_of_any_size_are_resized_by_the_module_itself():
    space = small_space(resolutions=(6, 12))
    module = space.build(space.smallest()).eval()
    images = torch.randn(2, 1, 12, 12)
    resized = nn.functional.interpolate(images, (6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(module(images), module(resized))
    assert module(torch.randn(2, 1, 7, 9)).shape == (2, 3)
    assert space.inputs(space.smallest(), 4)[0].shape == (4, 1, 12, 12)


def test_an_image_of_the_right_size_is_not_touched():
    images = torch.randn(1, 1, 6, 6)
    assert Resize(6)(images) is images
    assert repr(Resize(6)) == "Resize(resolution=6)"


@pytest.mark.parametrize(("shortcut", "channels", "stride"), [("none", 3, 2), ("identity", 4, 1), ("project", 5, 2)])
def test_an_inverted_residual_block_follows_its_formula(shortcut, channels, stride):
    block = InvertedResidual(
        channels, 8, 4, kernel=3, stride=stride, expand=True, squeeze=2, activation="silu", shortcut=shortcut
    ).eval()
    x = torch.randn(2, channels, 7, 7)
    f = nn.functional
    h = f.silu(block.expand_norm(block.expand(x)))
    h = f.silu(block.depthwise_norm(block.depthwise(h)))
    gate = block.excite(block.squeeze(h.mean((2, 3), keepdim=True)).clamp(min=0))
    h = block.project_norm(block.project(h * ((gate + 3) / 6).clamp(0, 1)))
    skip = {
        "none": lambda: 0,
        "identity": lambda: x,
        "project": lambda: block.shortcut(f.avg_pool2d(x, 2, ceil_mode=True)),
    }[shortcut]()
    torch.testing.assert_close(block(x), h + skip)
    assert block(x).shape == (2, 4, -(-7 // stride), -(-7 // stride))
    assert block.depthwise.groups == 8


def test_a_block_without_expansion_or_squeeze_has_no_layers_for_them():
    block = InvertedResidual(
        4, 4, 4, kernel=3, stride=1, expand=False, squeeze=0, activation="relu", shortcut="identity"
    )
    assert {name for name, _ in block.named_children()} == {"depthwise", "depthwise_norm", "project", "project_norm"}


@pytest.mark.parametrize(("project", "channels", "stride"), [(True, 3, 2), (False, 5, 1)])
def test_a_basic_block_follows_its_formula(project, channels, stride):
    block = BasicBlock(channels, 4, 5, kernel=3, stride=stride, activation="relu", project=project).eval()
    x = torch.randn(2, channels, 7, 7)
    h = block.norm2(block.conv2(block.norm1(block.conv1(x)).clamp(min=0)))
    skip = block.shortcut_norm(block.shortcut(x)) if project else x
    torch.testing.assert_close(block(x), (h + skip).clamp(min=0))


@pytest.mark.parametrize("block", ["inverted", "residual"])
def test_zeroing_what_zero_init_names_makes_every_block_its_shortcut(block):
    space = ConvNetSpace([Stage((4,), (3,), block=block, expansions=(2,), activation="relu")], 3, in_channels=1)
    module = space.build(space.largest()).eval()
    for name, parameter in module.named_parameters():
        if any(fnmatchcase(name, glob) for glob in space.zero_init()):
            nn.init.zeros_(parameter)
    assert len(space.zero_init()) == (2 if block == "inverted" else 3)
    x = torch.randn(2, 4, 5, 5).relu()
    second, third = (module.get_submodule(f"stage1.block{number}") for number in (2, 3))
    assert torch.equal(third(second(x)), x)


def test_zero_init_includes_projected_shortcuts():
    space = ConvNetSpace([Stage((4,), (2,), project_shortcut=True)], 3)
    assert space.zero_init() == ("stage1.block1.project_norm.weight", "stage1.block2.project_norm.weight")


def test_the_three_heads():
    def layers(head: Head) -> list[str]:
        space = small_space(head=head)
        names = [name for name, _ in space.build(space.largest()).named_children()]
        return names[names.index("stage1") + 1 :]

    assert layers(Head()) == ["pool", "flatten", "classifier"]
    assert layers(Head((16,))) == ["head", "head_norm", "head_act", "pool", "flatten", "classifier"]
    assert layers(Head((16,), expansion=6, dropout=0.2)) == [
        "head", "head_norm", "head_act", "pool", "flatten", "mix", "mix_act", "dropout", "classifier",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_modules_and_functions_agree(name):
    x = torch.linspace(-8, 8, 33)
    assert torch.equal(activation(name)(x), activation_function(name)(x))


@given(st.floats(0.1, 500), st.sampled_from([4, 8, 16]))
def test_rounded_channels_are_divisible_close_and_monotone(channels, divisor):
    rounded = round_channels(channels, divisor)
    assert rounded % divisor == 0
    assert rounded >= 0.9 * channels
    assert rounded <= round_channels(channels + 1, divisor)
    assert rounded == divisor or rounded < channels + divisor


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stage((), (1,)), r"Stage.widths must be numbers above zero, got \(\)"),
        (lambda: Stage((4,), (0, 1)), r"Stage.depths must be numbers above zero, got \(0, 1\)"),
        (lambda: Stage((4,), (1,), kernels=(3, 4)), r"Stage.kernels must be odd, got \(3, 4\)"),
        (lambda: Stage((4,), (1,), stride=0), "Stage.stride must be at least 1, got 0"),
        (
            lambda: Stage((4,), (1,), block=cast("Any", "dense")),
            "Stage.block must be 'inverted' or 'residual', got 'dense'",
        ),
        (lambda: Stage((4,), (1,), block="residual", squeeze_excite=True), "Stage.squeeze_excite.*block='inverted'"),
        (lambda: Stage((4,), (1,), activation="sine"), r"activation must be one of \('relu'.*got 'sine'"),
        (lambda: Stem((0,)), r"Stem.widths must be numbers above zero, got \(0,\)"),
        (lambda: Stem(stride=0), "Stem.stride must be at least 1, got 0"),
        (lambda: Head(expansion=6), "Head.expansion must be 0, or above 0 with widths given, got 6"),
        (lambda: Head(dropout=1.0), r"Head.dropout must be in \[0, 1\), got 1.0"),
        (lambda: Head((0,)), r"Head.widths must be numbers above zero, got \(0,\)"),
        (lambda: ConvNetSpace([], 3), "stages must name at least one Stage, got none"),
        (
            lambda: small_space(resolutions=()),
            r"must be at least 1, got num_classes=3, in_channels=1, resolutions=\(\)",
        ),
        (lambda: ConvNetSpace([Stage((8, 4), (1,))], 3), r"choice 'stage1.width': ordinal.*ascending.*\(8, 4\)"),
        (lambda: MLPSpace(0, 3), "in_features must be at least 1, got 0"),
        (lambda: MLPSpace(4, 3, depths=()), r"depths must be at least 1, got \(\)"),
        (lambda: MLPSpace(4, 3, widths=(8, 4)), r"choice 'layer1.width': ordinal.*ascending.*\(8, 4\)"),
        (lambda: MLPSpace(4, 3, activation="sine"), "activation must be one of"),
    ],
)
def test_a_bad_description_is_refused_with_the_field_and_the_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
