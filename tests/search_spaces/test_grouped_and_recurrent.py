"""Cuts of layers whose channels belong to groups, gates or directions, against explicit indices and by what they do."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import Architecture, Slicer, SlicingError, TensorRule, fill

NOWHERE = Architecture({})
GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


def cut(large: nn.Module, small: nn.Module, rules=None) -> dict[str, Tensor]:
    return Slicer(large, rules or {}).plan(small, NOWHERE)(dict(large.named_parameters()))


def conv(inputs: int, outputs: int, groups: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


@pytest.mark.parametrize(
    ("large", "small"),
    [
        ((4, 8, 2), (4, 4, 2)),
        ((8, 4, 2), (4, 4, 2)),
        ((4, 4, 2), (2, 4, 1)),
    ],
    ids=["fewer outputs", "fewer inputs", "fewer groups at equal shapes"],
)
def test_groups_that_would_read_or_write_other_channels_are_refused(large, small):
    message = (
        rf"'weight' cannot be cut by prefix.* of 2 groups of \(outputs, inputs\) .*here {small[2]} of .*"
        rf"TensorRule\(blocks=\{{0: 2\}}\).*'bias' cannot be cut"
    )
    with pytest.raises(SlicingError, match=message):
        cut(conv(*large), conv(*small))


@pytest.mark.parametrize(("large", "small"), [((6, 6, 6), (4, 4, 4)), ((8, 12, 4), (4, 6, 2))])
def test_whole_groups_are_shared_by_prefix_and_compute_what_they_did(large, small):
    big, little = conv(*large), conv(*small)
    fill(little, cut(big, little))
    images = torch.randn(2, large[0], 5, 5)
    torch.testing.assert_close(little(images[:, : small[0]]), big(images)[:, : small[1]])


def test_groups_that_shrink_each_by_themselves_take_the_rule_of_the_message():
    big, little = conv(8, 8, 2), conv(4, 4, 2)
    tensors = cut(big, little, {"*": TensorRule(blocks={0: 2})})
    assert big.bias is not None
    kept = np.array([0, 1, 4, 5])
    assert np.array_equal(tensors["weight"].detach().numpy(), big.weight.detach().numpy()[kept][:, :2])
    assert np.array_equal(tensors["bias"].detach().numpy(), big.bias.detach().numpy()[kept])
    images = torch.zeros(2, 8, 5, 5)
    images[:, kept] = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(fill(little, tensors)(images[:, kept]), big(images)[:, kept])


@pytest.fixture(params=list(GATES))
def pair(request):
    """A bidirectional layer of two levels, and a narrower one."""
    return request.param(3, 4, num_layers=2, bidirectional=True), request.param(3, 2, num_layers=2, bidirectional=True)


@pytest.mark.parametrize("suffix", ["_l1", "_l1_reverse"])
def test_the_second_level_reads_the_kept_features_of_both_directions(pair, suffix):
    large, small = pair
    name = f"weight_ih{suffix}"
    rows = [4 * gate + unit for gate in range(GATES[type(large)]) for unit in range(2)]
    columns = [0, 1, 4, 5]  # forward, then backward
    expected = dict(large.named_parameters())[name].detach().numpy()[np.ix_(rows, columns)]
    assert np.array_equal(cut(large, small)[name].detach().numpy(), expected)


def test_a_narrower_recurrent_net_equals_the_large_one_with_its_other_units_silent(pair):
    large, small = pair
    fill(small, cut(large, small))
    with torch.no_grad():
        for parameter in large.parameters():  # a unit without weights and biases stays at zero
            parameter.unflatten(0, (GATES[type(large)], 4))[:, 2:] = 0
    sequence = torch.randn(5, 2, 3)
    expected = large(sequence)[0]
    assert not expected[..., [2, 3, 6, 7]].any()
    torch.testing.assert_close(small(sequence)[0], expected[..., [0, 1, 4, 5]])
