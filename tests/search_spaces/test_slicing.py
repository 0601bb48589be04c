from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search_spaces import Architecture, Slicer, SlicingError, TensorRule, TensorSlice
from tests.search_spaces.models import GroupedConv, PackedAttention, TiedLanguageModel

NOWHERE = Architecture({})


def cut(large: nn.Module, small: nn.Module, rules=None) -> dict[str, Any]:
    return Slicer(large, rules or {}).plan(small, NOWHERE)(dict(large.named_parameters()))


def blockwise(tensor: torch.Tensor, blocks: int, rows: int) -> torch.Tensor:
    """The first ``rows / blocks`` rows of each of ``blocks`` equal blocks, by explicit indices."""
    array = tensor.detach().numpy()
    pick = [b * (len(array) // blocks) + r for b in range(blocks) for r in range(rows // blocks)]
    return torch.from_numpy(array[np.array(pick)])


@given(blocks=st.integers(1, 4), large=st.integers(1, 5), data=st.data(), dim=st.integers(0, 2), center=st.booleans())
def test_a_cut_equals_an_explicit_index(blocks, large, data, dim, center):
    small = data.draw(st.integers(1, large))
    start = (large - small) // 2 if center else 0
    shape = [2, 3, 2]
    shape[dim] = blocks * large
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    part = TensorSlice("w", "w", (), ((dim, start, small, blocks),))
    index = [b * large + start + i for b in range(blocks) for i in range(small)]
    assert np.array_equal(part(tensor).numpy(), np.take(tensor.numpy(), index, axis=dim))
    assert part.is_view == (blocks == 1)


def test_a_prefix_is_a_view_and_its_gradient_lands_in_the_prefix_only():
    large = nn.Linear(5, 6)
    tensors = cut(large, nn.Linear(3, 2))
    assert tensors["weight"].data_ptr() == large.weight.data_ptr()
    tensors["weight"].sum().backward()
    expected = torch.zeros(6, 5)
    expected[:2, :3] = 1
    assert large.weight.grad is not None
    assert torch.equal(large.weight.grad, expected)


def test_packed_query_key_value_is_cut_block_by_block():
    large, small = PackedAttention(4), PackedAttention(2)
    tensors = cut(large, small, {"qkv.*": TensorRule(blocks={0: 3})})
    assert torch.equal(tensors["qkv.weight"], blockwise(large.qkv.weight, 3, 12))
    assert torch.equal(tensors["qkv.bias"], blockwise(large.qkv.bias, 3, 12))
    assert torch.equal(tensors["proj.weight"], large.proj.weight[:, :4])


def test_packed_names_without_a_rule_are_refused_with_the_rule_that_helps():
    with pytest.raises(SlicingError, match=r"'qkv.weight' cannot be cut by prefix.*TensorRule\(blocks=\{0: 3\}\)"):
        cut(PackedAttention(4), PackedAttention(2))
    prefix = cut(PackedAttention(4), PackedAttention(2), {"qkv.*": TensorRule(blocks={0: 1})})
    assert prefix["qkv.weight"].shape == (12, 6), "an explicit blocks={0: 1} says that a prefix is right"


def test_multihead_attention_needs_no_rule():
    large, small = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(4, 2)
    tensors = cut(large, small)
    assert torch.equal(tensors["in_proj_weight"], blockwise(large.in_proj_weight, 3, 12)[:, :4])
    assert torch.equal(tensors["in_proj_bias"], blockwise(large.in_proj_bias, 3, 12))
    assert torch.equal(tensors["out_proj.weight"], large.out_proj.weight[:4, :4])


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.LSTMCell, 4), (nn.GRUCell, 3)])
def test_recurrent_gates_are_cut_one_by_one(kind, gates):
    large, small = kind(5, 6), kind(3, 2)
    tensors = cut(large, small)
    suffix = "_l0" if kind in (nn.LSTM, nn.GRU) else ""
    full = dict(large.named_parameters())
    for name, columns in (("weight_ih", 3), ("weight_hh", 2)):
        expected = torch.cat([gate[:2, :columns] for gate in full[name + suffix].chunk(gates)])
        assert torch.equal(tensors[name + suffix], expected)
    assert torch.equal(tensors["bias_ih" + suffix], torch.cat([g[:2] for g in full["bias_ih" + suffix].chunk(gates)]))


def test_the_projection_of_an_lstm_has_no_gates():
    large, small = nn.LSTM(3, 6, proj_size=4), nn.LSTM(3, 4, proj_size=2)
    assert torch.equal(cut(large, small)["weight_hr_l0"], large.get_parameter("weight_hr_l0")[:2, :4])


def test_kernels_are_cropped_in_the_centre_and_channels_by_prefix():
    large, small = nn.Conv2d(4, 6, (7, 5)), nn.Conv2d(2, 3, (3, 3))
    assert torch.equal(cut(large, small)["weight"], large.weight[:3, :2, 2:5, 1:4])
    corner = cut(large, small, {"weight": TensorRule(crop={2: "prefix", 3: "prefix"})})["weight"]
    assert torch.equal(corner, large.weight[:3, :2, :3, :3])


def test_a_kernel_that_would_be_cropped_off_centre_is_refused():
    with pytest.raises(SlicingError, match="a centre crop of dimension 2 from 5 to 4 is off by half"):
        cut(nn.Conv2d(1, 1, 5), nn.Conv2d(1, 1, 4))


def test_tied_tensors_stay_tied():
    large = TiedLanguageModel(4)
    tensors = cut(large, TiedLanguageModel(2))
    assert tensors["output.weight"] is tensors["embedding.weight"]
    assert torch.equal(tensors["output.weight"], large.embedding.weight[:, :2])


def test_depthwise_convolutions_need_no_rule_and_grouped_ones_do():
    depthwise = cut(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(4, 4, 3, groups=4))
    assert depthwise["weight"].shape == (4, 1, 3, 3)
    with pytest.raises(
        SlicingError, match=r"'grouped.weight' cannot be cut by prefix.*convolution of 2 groups.*blocks"
    ):
        cut(GroupedConv(8), GroupedConv(4))
    large = GroupedConv(8)
    rules = {"*.*": TensorRule(blocks={0: 2})}
    tensors = cut(large, GroupedConv(4), rules)
    assert torch.equal(tensors["grouped.weight"], blockwise(large.grouped.weight, 2, 4)[:, :2])
    assert torch.equal(tensors["enter.weight"], blockwise(large.enter.weight, 2, 4))


def test_a_source_may_be_a_name_or_a_function_of_the_architecture():
    large = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    small = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    by_name = cut(large, small, {"1.weight": TensorRule(source="2.weight")})
    assert by_name["1.weight"] is large[2].weight
    assert by_name["1.bias"] is large[1].bias

    def last(architecture: Architecture, name: str) -> str:
        return name.replace("1.", f"{architecture['from']}.")

    plan = Slicer(large, {"1.*": TensorRule(source=last)}).plan(small, Architecture({"from": 2}))
    assert plan(dict(large.named_parameters()))["1.bias"] is large[2].bias


def test_the_first_rule_that_matches_wins():
    large, small = nn.Linear(1, 6), nn.Linear(1, 4)
    rules = {"weight": TensorRule(blocks={0: 2}), "*": TensorRule(blocks={0: 1})}
    assert torch.equal(cut(large, small, rules)["weight"], blockwise(large.weight, 2, 4))
    assert torch.equal(cut(large, small, rules)["bias"], large.bias[:4])


@pytest.mark.parametrize(
    ("large", "small", "rules", "message"),
    [
        (nn.Linear(2, 2), nn.Linear(2, 3), {}, r"'weight' is \(3, 2\) but \(2, 2\).*dimension 0 is larger"),
        (nn.Linear(2, 2), nn.Bilinear(2, 2, 2), {}, r"'weight' has 3 dimensions but 2 in the largest"),
        (nn.Linear(2, 2, bias=False), nn.Linear(2, 2), {}, r"'bias' has no counterpart 'bias'.*TensorRule\(source"),
        (
            nn.Linear(2, 6),
            nn.Linear(2, 4),
            {"weight": TensorRule(blocks={0: 3})},
            r"'weight': dimension 0 \(4 of 6\) does not divide into 3 blocks; correct TensorRule",
        ),
    ],
)
def test_what_cannot_be_cut_is_named_with_what_would_help(large, small, rules, message):
    with pytest.raises(SlicingError, match=message):
        cut(large, small, rules)


def test_all_tensors_that_cannot_be_cut_are_named_at_once():
    with pytest.raises(SlicingError, match=r"(?s)'0.weight' is.*'0.bias' is.*'1.weight' has no counterpart"):
        cut(nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)))


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(SlicingError, match=r"rules \['wieght'\] match no tensor of the largest build; tensors are"):
        Slicer(nn.Linear(1, 1), {"wieght": TensorRule()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": {0: 0}}, r"blocks maps dimension >= 0 to count >= 1, got \{0: 0\}"),
        ({"blocks": {-1: 2}}, r"blocks maps dimension >= 0 to count >= 1, got \{-1: 2\}"),
        ({"crop": {2: "middle"}}, r"crop maps dimension >= 0 to 'prefix' or 'center', got \{2: 'middle'\}"),
    ],
)
def test_a_rule_checks_its_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        TensorRule(**arguments)


def test_dimensions_read_from_json_are_numbers():
    fields: dict[str, Any] = {"blocks": {"0": 3}, "crop": {"2": "center"}}
    assert TensorRule(**fields) == TensorRule(blocks={0: 3}, crop={2: "center"})
