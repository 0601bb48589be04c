"""Batch-norm statistics of generated weights."""

import pytest
import torch
from torch import nn

from hypernets import Target, apply, recalibrate


def module():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_each_set_gets_the_mean_statistics_of_its_own_activations():
    net = module()
    net[1].running_mean += 7.0
    state = {name: value.clone() for name, value in net.state_dict().items()}
    tensors = {spec.name: torch.randn(2, *spec.shape) for spec in Target.of(net)}
    batches = [torch.randn(8, 3) + shift for shift in (0.0, 1.0, 5.0)]
    buffers = recalibrate(net, tensors, iter(batches))
    for k in range(2):
        hidden = [batch @ tensors["0.weight"][k].T + tensors["0.bias"][k] for batch in batches]
        mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
        variance = torch.stack([h.var(0) for h in hidden]).mean(0)
        torch.testing.assert_close(buffers["1.running_mean"][k], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(buffers["1.running_var"][k], variance, rtol=1e-4, atol=1e-5)
        own = {name: value[k] for name, value in tensors.items()}
        mine = {name: value[k] for name, value in buffers.items()}
        expected = nn.functional.batch_norm(hidden[0], mean, variance, own["1.weight"], own["1.bias"])
        found = apply(net.eval(), own, batches[0], buffers=mine)
        torch.testing.assert_close(found, expected @ own["3.weight"].T + own["3.bias"], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_it_needs_batches_and_weights_that_fit():
    tensors = {spec.name: torch.randn(2, *spec.shape) for spec in Target.of(module())}
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(module(), tensors, [])
    with pytest.raises(ValueError, match=r"missing 3\.bias"):
        recalibrate(module(), {n: v for n, v in tensors.items() if n != "3.bias"}, [torch.randn(4, 3)])
