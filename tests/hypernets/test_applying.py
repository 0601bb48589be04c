import copy

import numpy as np
import pytest
import torch
from torch import nn

from hypernets import apply, apply_linearized, apply_many


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, inputs):
        outputs, (hidden, _) = self.lstm(inputs)
        return {"outputs": outputs, "last": [hidden]}


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 9, 2))


def weights_of(module, sets=None):
    lead = () if sets is None else (sets,)
    return {name: torch.randn(*lead, *value.shape) for name, value in module.named_parameters()}


def separately(module, tensors, *inputs):
    """The same by copying values into a module."""
    own = copy.deepcopy(module)
    own.load_state_dict(dict(tensors), strict=False)
    return own(*inputs)


def test_apply_equals_a_module_with_these_weights_and_leaves_the_module_alone():
    module, inputs = convolutional(), torch.randn(4, 1, 5, 5)
    before = copy.deepcopy(module.state_dict())
    tensors = weights_of(module)
    for training in (True, False):
        module.train(training)
        torch.testing.assert_close(apply(module, tensors, inputs), separately(module, tensors, inputs))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_buffers_that_are_given_are_updated_and_the_others_are_not():
    module, inputs = convolutional(), torch.randn(4, 1, 5, 5)
    tensors = weights_of(module)
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    apply(module, tensors, inputs, buffers=buffers)
    assert buffers["1.num_batches_tracked"] == 1
    assert module[1].num_batches_tracked == 0
    own = copy.deepcopy(module)
    own.load_state_dict(tensors, strict=False)
    own(inputs)
    torch.testing.assert_close(buffers["1.running_mean"], own[1].running_mean)


def test_the_module_may_lie_on_the_meta_device():
    module, inputs = convolutional().eval(), torch.randn(4, 1, 5, 5)
    tensors = weights_of(module)
    expected = separately(module, tensors, inputs)
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    module.to("meta")
    torch.testing.assert_close(apply(module, tensors, inputs, buffers=buffers), expected)
    with pytest.raises(ValueError, match=r"missing buffer 1.running_mean"):
        apply(module, tensors, inputs)
    with pytest.raises(ValueError, match=r"missing 0.bias, which the module holds on the meta device"):
        apply(module, {n: v for n, v in tensors.items() if n != "0.bias"}, inputs, buffers=buffers, partial=True)


def test_wrong_tensors_are_refused_by_name():
    module, inputs = nn.Linear(3, 1), torch.randn(2, 3)
    good = weights_of(module)
    apply(module, good, inputs)
    with pytest.raises(ValueError, match="unexpected wieght; missing weight"):
        apply(module, {"wieght": good["weight"], "bias": good["bias"]}, inputs)
    with pytest.raises(ValueError, match=r"bias is \(\) instead of \(1,\)"):  # would broadcast silently
        apply(module, {**good, "bias": torch.zeros(())}, inputs)
    with pytest.raises(ValueError, match=r"bias is \(4, 1\) instead of \(1,\).*use apply_many"):
        apply(module, weights_of(module, 4), inputs)
    with pytest.raises(ValueError, match="unexpected buffer b"):
        apply(module, good, inputs, buffers={"b": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"buffer 1.running_mean is \(2,\) instead of \(3,\)"):
        apply(convolutional(), weights_of(convolutional()), inputs, buffers={"1.running_mean": torch.zeros(2)})


def test_a_part_is_accepted_where_it_is_asked_for():
    module, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    bias = torch.randn(2)
    with pytest.raises(ValueError, match="missing weight"):
        apply(module, {"bias": bias}, inputs)
    torch.testing.assert_close(apply(module, {"bias": bias}, inputs, partial=True), inputs @ module.weight.T + bias)


def test_tied_weights_take_one_tensor_under_either_name():
    module, tokens = Tied(), torch.tensor([[1, 2]])
    table = torch.randn(11, 4)
    expected = table[tokens] @ table.T
    for name in ("embed.weight", "head.weight"):
        torch.testing.assert_close(apply(module, {name: table}, tokens), expected)
    torch.testing.assert_close(apply(module, {"embed.weight": table, "head.weight": table}, tokens), expected)
    with pytest.raises(ValueError, match="are one tied tensor"):
        apply(module, {"embed.weight": table, "head.weight": table.clone()}, tokens)


def test_an_exception_inside_leaves_nothing_behind():
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    module[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("inside")))
    before = {name: (id(value), value.clone()) for name, value in module.named_parameters()}
    with pytest.raises(KeyError, match="inside"):
        apply(module, weights_of(module), torch.randn(2, 3))
    assert {name: id(value) for name, value in module.named_parameters()} == {n: i for n, (i, _) in before.items()}
    assert all(torch.equal(value, before[name][1]) for name, value in module.named_parameters())


@pytest.mark.parametrize("mode", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("shared", [True, False])
def test_many_sets_equal_one_after_another(mode, shared):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    tensors = weights_of(module, 5)
    inputs = torch.randn(6, 3) if shared else torch.randn(5, 6, 3)
    expected = torch.stack(
        [
            separately(module, {name: value[k] for name, value in tensors.items()}, inputs if shared else inputs[k])
            for k in range(5)
        ]
    )
    torch.testing.assert_close(apply_many(module, tensors, inputs, shared=shared, mode=mode), expected)


def test_recurrent_layers_and_statistics_fall_back_to_the_loop():
    inputs = torch.randn(2, 5, 3)
    tensors = weights_of(Recurrent(), 3)
    found = apply_many(Recurrent(), tensors, inputs)
    assert found["outputs"].shape == (3, 2, 5, 4)
    assert found["last"][0].shape == (3, 1, 2, 4)
    expected = separately(Recurrent(), {name: value[1] for name, value in tensors.items()}, inputs)
    torch.testing.assert_close(found["outputs"][1], expected["outputs"])
    with pytest.raises(ValueError, match="vmap cannot run the recurrent layer lstm; use mode='loop'"):
        apply_many(Recurrent(), tensors, inputs, mode="vmap")

    module, images = convolutional(), torch.randn(4, 1, 5, 5)
    tensors = weights_of(module, 2)
    expected = separately(module, {name: value[1] for name, value in tensors.items()}, images)
    torch.testing.assert_close(apply_many(module, tensors, images)[1], expected)
    assert module[1].num_batches_tracked == 0
    with pytest.raises(ValueError, match="vmap cannot run 1 in training mode"):
        apply_many(module, tensors, images, mode="vmap")
    module.eval()
    torch.testing.assert_close(
        apply_many(module, tensors, images, mode="vmap"), apply_many(module, tensors, images, mode="loop")
    )


def test_dropout_differs_between_sets():
    module = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5))
    tensors = {name: value.expand(2, *value.shape) for name, value in module.named_parameters()}
    first, second = apply_many(module, tensors, torch.randn(4, 3))
    assert ((first == 0) != (second == 0)).any()


@pytest.mark.parametrize("shared", [True, False])
def test_linearised_outputs_are_the_first_order_expansion(shared):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to("meta")
    weights, deltas = weights_of(module), weights_of(module, 5)
    inputs = torch.randn(6, 3) if shared else torch.randn(5, 6, 3)
    found = apply_linearized(module, weights, deltas, inputs, shared=shared)
    w = {name: value.numpy() for name, value in weights.items()}
    for k in range(5):  # by hand: the product rule, layer by layer
        x, d = (inputs if shared else inputs[k]).numpy(), {name: value[k].numpy() for name, value in deltas.items()}
        hidden = np.tanh(x @ w["0.weight"].T + w["0.bias"])
        moved = (1 - hidden**2) * (x @ d["0.weight"].T + d["0.bias"])
        still = hidden @ w["2.weight"].T + w["2.bias"]
        change = hidden @ d["2.weight"].T + d["2.bias"] + moved @ w["2.weight"].T
        np.testing.assert_allclose(found[k], still + change, rtol=1e-4, atol=1e-5)


def test_linearised_outputs_have_gradients_in_weights_and_deltas():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    weights = {name: value.detach().requires_grad_() for name, value in module.named_parameters()}
    deltas = {n: torch.randn(2, *v.shape, dtype=torch.float64, requires_grad=True) for n, v in weights.items()}
    inputs = torch.randn(3, 3, dtype=torch.float64)

    def outputs(*values):
        given = [dict(zip(weights, part, strict=True)) for part in (values[:4], values[4:])]
        return apply_linearized(module, *given, inputs)

    assert torch.autograd.gradcheck(outputs, (*weights.values(), *deltas.values()))


def test_what_cannot_be_linearised_is_refused():
    module, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    weights = weights_of(module)
    with pytest.raises(ValueError, match="same K >= 1"):
        apply_linearized(module, weights, weights_of(module, 0), inputs)
    with pytest.raises(ValueError, match="missing bias"):
        apply_linearized(module, {"weight": weights["weight"]}, weights_of(module, 2), inputs)
    with pytest.raises(ValueError, match=r"bias is \(2, 1\) instead of \(2, 2\)"):
        apply_linearized(module, weights, {"weight": torch.zeros(2, 2, 3), "bias": torch.zeros(2, 1)}, inputs)
    with pytest.raises(ValueError, match="need K = 2 in front"):
        apply_linearized(module, weights, weights_of(module, 2), inputs, shared=False)
    with pytest.raises(ValueError, match="the recurrent layer lstm cannot be linearised; run it with apply_many"):
        apply_linearized(Recurrent(), weights_of(Recurrent()), weights_of(Recurrent(), 2), torch.randn(2, 5, 3))


def test_wrong_calls_are_refused():
    module, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(ValueError, match="mode must be one of"):
        apply_many(module, weights_of(module, 2), inputs, mode="fast")
    with pytest.raises(ValueError, match="same K >= 1"):
        apply_many(module, weights_of(module, 0), inputs)
    with pytest.raises(ValueError, match="same K >= 1"):
        apply_many(module, {"weight": torch.zeros(2, 2, 3), "bias": torch.zeros(3, 2)}, inputs)
    with pytest.raises(ValueError, match=r"weight is \(2, 3\) instead of \(2, 2, 3\)"):
        apply_many(module, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2, 2)}, inputs)
    with pytest.raises(ValueError, match="need K = 2 in front"):
        apply_many(module, weights_of(module, 2), inputs, shared=False)
    with pytest.raises(TypeError, match="outputs must be tensors"):
        apply_many(Strange(), weights_of(Strange(), 2), inputs, mode="loop")


class Strange(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)

    def forward(self, inputs):
        return str(inputs)
