"""Alignment by weight matching: what it finds, and that it never changes what networks compute."""

import itertools

import pytest
import torch
from torch import nn

from hypernets import Target, apply_many
from hypernets.diffusion import align, chain_couplings, permute


def perceptron():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 3, 1, bias=False),
        nn.GroupNorm(1, 3),
        nn.Flatten(),
        nn.Linear(3 * 4, 2),
    )


def some(module, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: torch.randn(count, *spec.shape, generator=generator) for spec in Target.of(module)}


def shuffled(tensors, couplings, seed=1):
    generator = torch.Generator().manual_seed(seed)
    count = len(next(iter(tensors.values())))
    orders = {}
    for layer, axes in couplings.items():
        name, axis = axes[0]
        orders[layer] = torch.stack(
            [torch.randperm(tensors[name].shape[axis + 1], generator=generator) for _ in range(count)]
        )
    return permute(tensors, couplings, orders)


def test_couplings_of_a_perceptron():
    assert chain_couplings(perceptron(), torch.randn(2, 3)) == {
        "0": [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)],
        "2": [("2.weight", 0), ("2.bias", 0), ("4.weight", 1)],
    }


def test_couplings_run_through_norms_depthwise_layers_and_flattening():
    module = convolutions()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    found = chain_couplings(module, torch.randn(2, 1, 6, 6))
    assert found["0"] == [
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 0),
        ("1.bias", 0),
        ("3.weight", 0),
        ("3.bias", 0),
        ("4.weight", 1),
    ]
    assert found["4"] == [("4.weight", 0), ("5.weight", 0), ("5.bias", 0), ("7.weight", 1)]
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.a(x).relu()
        return self.c(h + self.b(h).relu())


def test_a_module_that_is_no_chain_is_refused_and_its_couplings_can_be_written():
    with pytest.raises(ValueError, match="must be a chain of layers: it computes something else"):
        chain_couplings(Residual(), torch.randn(2, 3))
    couplings = {
        "stream": [("a.weight", 0), ("a.bias", 0), ("b.weight", 1), ("b.weight", 0), ("b.bias", 0), ("c.weight", 1)]
    }
    tensors, inputs = some(Residual(), 3), torch.randn(5, 3)
    moved = shuffled(tensors, couplings)
    assert (moved["a.bias"] != tensors["a.bias"]).any()
    torch.testing.assert_close(apply_many(Residual(), moved, inputs), apply_many(Residual(), tensors, inputs))


@pytest.mark.parametrize(("make", "shape"), [(perceptron, (3,)), (convolutions, (1, 6, 6))])
def test_alignment_does_not_change_what_networks_compute_and_undoes_any_order(make, shape):
    module = make().eval()
    couplings = chain_couplings(module, torch.randn(2, *shape))
    one = some(module, 1)
    copies = {name: value.repeat_interleave(6, 0) for name, value in one.items()}
    moved = shuffled(copies, couplings)
    found = align(moved, couplings)
    inputs = torch.randn(4, *shape)
    torch.testing.assert_close(
        apply_many(module, found, inputs), apply_many(module, moved, inputs), rtol=1e-4, atol=1e-4
    )
    assert any((value[0] != value[1]).any() for value in moved.values())
    for value in found.values():  # equal networks in different orders come out in one order
        torch.testing.assert_close(value, value[:1].expand_as(value))


def test_the_order_found_is_the_best_of_all():
    """Weight matching of one hidden layer is <reference, P w> at its maximum, against every permutation."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    tensors = some(module, 2, seed=3)
    found = align(tensors, chain_couplings(module, torch.randn(2, 3)), rounds=1)

    def likeness(order):
        first = (tensors["0.weight"][0] * tensors["0.weight"][1][order]).sum()
        bias = (tensors["0.bias"][0] * tensors["0.bias"][1][order]).sum()
        return float(first + bias + (tensors["2.weight"][0] * tensors["2.weight"][1][:, order]).sum())

    best = max(itertools.permutations(range(4)), key=lambda order: likeness(list(order)))
    assert likeness(list(best)) > likeness([0, 1, 2, 3])
    assert torch.equal(found["0.weight"][1], tensors["0.weight"][1][list(best)])
    assert torch.equal(found["2.weight"][1], tensors["2.weight"][1][:, list(best)])


def test_wrong_couplings_are_named():
    tensors = some(perceptron(), 2)
    with pytest.raises(ValueError, match=r"couplings of 'x' must be axes of .*got \[\('0.bias', 1\)\]"):
        align(tensors, {"x": [("0.weight", 0), ("0.bias", 1)]})
    with pytest.raises(ValueError, match=r"must have one length or whole multiples, got \[5, 3\]"):
        align(tensors, {"x": [("0.weight", 0), ("0.weight", 1)]})
