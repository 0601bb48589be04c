"""The deltas of every generator, evaluated weight by weight from its parameters; chunks end where their tensor ends."""

import numpy as np
import torch
from torch import nn

from hypernets import ChunkedHyperNetwork, DenseHyperNetwork, RecurrentHyperNetwork, Target, Unit
from hypernets.chunks import ChunkHead


def array(tensor):
    return tensor.detach().double().numpy()


def leaky(values):
    return np.where(values > 0, values, 0.01 * values)


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def perceptron(layers, values):
    for layer in layers:
        if isinstance(layer, nn.Linear):
            values = leaky(array(layer.weight) @ values + array(layer.bias))
    return values


def code(value):
    """Of one number, with the encoding of arXiv 2304.07645."""
    return np.array([np.cos(np.pi * value / 2), np.sin(np.pi * value / 2)])


def started(hypernet):
    """Every parameter at random, so that no term of an equation is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hypernet.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return hypernet


def runs(head: ChunkHead, features, index):
    """The values of a run of chunks, each ``scale W feature``, one after another."""
    return np.concatenate([array(head.scale[index]) * (array(head.weight) @ feature) for feature in features])


def same(found, expected):
    np.testing.assert_allclose(array(found), expected, rtol=1e-4, atol=1e-5)


TARGET = Target.of(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)))  # 15, 5, 10 and 2 values: 3, 1, 2 and 1 chunks of 6


def test_a_dense_head_makes_every_weight_at_once():
    hypernet = started(DenseHyperNetwork(TARGET, {"g": Unit()}, hidden=(4, 7)))
    hidden = perceptron(hypernet.trunk, code(0.3))
    found = hypernet.deltas({"g": 0.3})
    for spec, rows in zip(TARGET, np.split(array(hypernet.head), [15, 20, 30]), strict=True):
        same(found[spec.name][0], (rows @ hidden).reshape(spec.shape))


def test_a_chunk_is_the_head_of_the_mixed_product_of_trunk_and_chunk_vector():
    hypernet = started(ChunkedHyperNetwork(TARGET, {"g": Unit()}, hidden=(4, 7), chunk=6))
    hidden = perceptron(hypernet.trunk, code(0.3))
    features = [perceptron(hypernet.mix, hidden * vector) for vector in array(hypernet.table)]
    assert len(features) == 7
    found = hypernet.deltas({"g": 0.3})
    for index, (spec, start, end) in enumerate(zip(TARGET, (0, 3, 4, 6), (3, 4, 6, 7), strict=True)):
        values = runs(hypernet.head, features[start:end], index)
        same(found[spec.name][0], values[: spec.numel].reshape(spec.shape))


def test_large_matrices_are_products_of_two_generated_factors():
    hypernet = started(ChunkedHyperNetwork(TARGET, {"g": Unit()}, hidden=(4, 7), chunk=6, low_rank_above=10, rank=2))
    hidden = perceptron(hypernet.trunk, code(0.3))
    features = [perceptron(hypernet.mix, hidden * vector) for vector in array(hypernet.table)]
    assert len(features) == 7  # factors of 5 x 2 and 3 x 2 values: 2 and 1 chunks; 1, 2 and 1 for the others
    left = runs(hypernet.head, features[:2], 0)[:10].reshape(5, 2)
    right = runs(hypernet.head, features[2:3], 1)[:6].reshape(3, 2)
    expected = np.zeros((5, 3))
    for row in range(5):
        for column in range(3):
            expected[row, column] = sum(left[row, k] * right[column, k] for k in range(2))
    found = hypernet.deltas({"g": 0.3})
    same(found["0.weight"][0], expected)
    same(found["1.weight"][0], runs(hypernet.head, features[4:6], 3)[:10].reshape(2, 5))


def test_a_recurrent_generator_runs_an_lstm_over_the_chunks():
    hypernet = started(RecurrentHyperNetwork(TARGET, {"g": Unit()}, width=3, vectors=2, chunk=6))
    weights = {name: array(value) for name, value in hypernet.recurrence.named_parameters()}
    state = memory = np.zeros(3)
    features = []
    for vector in array(hypernet.table):
        step = np.concatenate([code(0.3), vector])
        gates = weights["weight_ih_l0"] @ step + weights["bias_ih_l0"]
        gates = gates + weights["weight_hh_l0"] @ state + weights["bias_hh_l0"]
        put, keep, candidate, show = gates.reshape(4, 3)
        memory = sigmoid(keep) * memory + sigmoid(put) * np.tanh(candidate)
        state = sigmoid(show) * np.tanh(memory)
        features.append(state)
    found = hypernet.deltas({"g": 0.3})
    for index, (spec, start, end) in enumerate(zip(TARGET, (0, 3, 4, 6), (3, 4, 6, 7), strict=True)):
        same(found[spec.name][0], runs(hypernet.head, features[start:end], index)[: spec.numel].reshape(spec.shape))


def test_chunks_of_any_size_generate_every_weight():
    for chunk in (1, 2, 5, 10, 15, 16, 1000):
        hypernet = started(ChunkedHyperNetwork(TARGET, {"g": Unit()}, hidden=(4, 7), chunk=chunk))
        assert hypernet.head.count == sum(-(-spec.numel // chunk) for spec in TARGET)
        found = hypernet.deltas({"g": 0.3})
        assert {name: tuple(value.shape[1:]) for name, value in found.items()} == TARGET.shapes
        assert all((value != 0).all() for value in found.values())
