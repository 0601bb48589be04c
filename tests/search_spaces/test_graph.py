"""Graph networks: what each operation computes, and what the space says of itself."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from search_spaces import GraphSpace
from search_spaces.dynamic_quantizer import DynamicQuantizer, dynamic_quantize
from search_spaces.graph_layers import Graph, aggregation, attention

EDGES = torch.tensor([[0, 1, 2, 3, 1, 4, 0], [1, 0, 1, 2, 4, 1, 3]])
NODES, FEATURES, HEADS = 5, 4, 2
PAIRS = [*zip(*EDGES.tolist(), strict=True), *((n, n) for n in range(NODES))]  # (source j, target i)


@pytest.fixture
def h() -> Tensor:
    return torch.randn(NODES, FEATURES)


def graph() -> Graph:
    return Graph.of(EDGES, torch.zeros(NODES, 1))


def degree(node: int) -> int:
    return sum(target == node for _, target in PAIRS)


def scores(name: str, module: Any, x: NDArray[np.float64], i: int, j: int) -> Any:
    """Scores of the edge from j to i for every head, before any softmax."""
    w = {key: value.detach().double().numpy() for key, value in module.state_dict().items()}

    def additive(a: int, b: int) -> Any:
        total = w["left.weight"] @ x[a] + w["right.weight"] @ x[b]
        return np.where(total > 0, total, 0.2 * total)

    match name:
        case "gat":
            return additive(i, j)
        case "sym_gat":
            return additive(i, j) + additive(j, i)
        case "cos":
            products = (w["left.weight"] @ x[i]) * (w["right.weight"] @ x[j])
            return products.reshape(HEADS, -1).sum(1)
        case "linear":
            return np.tanh(w["right.weight"] @ x[j])
    return w["mix.weight"] @ np.tanh(w["left.weight"] @ x[i] + w["right.weight"] @ x[j])


@pytest.mark.parametrize("name", ["gat", "sym_gat", "cos", "linear", "gene_linear"])
def test_learned_coefficients_are_a_softmax_over_the_neighbours_of_each_node(name: str, h: Tensor) -> None:
    module = attention(name, FEATURES, HEADS, 3)
    given = module(h, graph())
    for position, (j, i) in enumerate(PAIRS):
        around = [source for source, target in PAIRS if target == i]
        raised = {source: np.exp(scores(name, module, h.double().numpy(), i, source)) for source in around}
        expected = raised[j] / sum(raised[source] for source in around)
        assert given[position].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_fixed_coefficients_follow_from_the_degrees(h: Tensor) -> None:
    assert torch.equal(attention("const", FEATURES, HEADS, 3)(h, graph()), torch.ones(len(PAIRS), HEADS))
    expected = [[1 / math.sqrt(degree(i) * degree(j))] * HEADS for j, i in PAIRS]
    torch.testing.assert_close(attention("gcn", FEATURES, HEADS, 3)(h, graph()), torch.tensor(expected))


@pytest.mark.parametrize("kind", ["mean", "max", "sum"])
def test_aggregation_is_over_the_weighted_neighbours(kind: str, h: Tensor) -> None:
    coefficients = torch.randn(len(PAIRS), HEADS)
    given = aggregation(kind)(h, coefficients, graph())
    messages = {
        (j, i): h[j] * coefficients[position].repeat_interleave(FEATURES // HEADS)
        for position, (j, i) in enumerate(PAIRS)
    }
    for i in range(NODES):
        mine = torch.stack([message for (_, target), message in messages.items() if target == i])
        expected = {"mean": mine.mean(0), "max": mine.max(0).values, "sum": mine.sum(0)}[kind]
        torch.testing.assert_close(given[i], expected)


def test_sparse_features_give_the_outputs_and_the_gradients_of_dense_ones() -> None:
    space = GraphSpace(6, 3, widths=(4,), weight_bits=(4,), activation_bits=(4,))
    module = space.build(space.largest()).eval()
    features = torch.randn(NODES, 6) * (torch.rand(NODES, 6) > 0.5)
    outputs, gradients = [], []
    for given in (features, features.to_sparse()):
        module.zero_grad()
        outputs.append(module(given, EDGES))
        outputs[-1].square().sum().backward()
        gradients.append(module.get_parameter("block1.linear.weight").grad)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_the_grid_of_a_tensor_follows_from_the_tensor(bits: int) -> None:
    x = torch.randn(7, 5)
    found = dynamic_quantize(x, bits).double().numpy()
    exact = x.double().numpy()
    mean = np.abs(exact).mean()
    if bits > 2:
        high = 2 ** (bits - 1) - 1
        step = np.abs(exact).max() / high
        expected = step * np.round(exact / step)
    else:
        expected = np.sign(exact) * mean if bits == 1 else 1.4 * mean * np.clip(np.round(exact / (1.4 * mean)), -1, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(found.round(5))) <= 2**bits


def test_features_that_are_not_there_leave_the_grid_as_it_is() -> None:
    x, active = torch.randn(6, 4), torch.tensor([1.0, 1.0, 0.0, 0.0])
    padded = torch.cat([x[:, :2], 100 * x[:, 2:]], 1)
    for bits in (8, 2, 1):
        torch.testing.assert_close(dynamic_quantize(padded, bits, active)[:, :2], dynamic_quantize(x[:, :2], bits))


def test_candidates_of_bits_are_summed_under_their_weights() -> None:
    x, weights = torch.randn(5, 3), torch.tensor([0.2, 0.5, 0.3], requires_grad=True)
    mixed = DynamicQuantizer((2, 4, 32))(x, weights)
    parts = torch.stack([dynamic_quantize(x, 2), dynamic_quantize(x, 4), x])
    torch.testing.assert_close(mixed, torch.einsum("k,knf->nf", weights, parts))
    (gradient,) = torch.autograd.grad(mixed.sum(), weights)
    torch.testing.assert_close(gradient, parts.sum((1, 2)))


def test_a_shortcut_adds_a_map_of_an_earlier_output() -> None:
    space = GraphSpace(6, 3, widths=(4,), depths=(3,), shortcuts=True)
    assert {choice.name for choice in space.choices} == {"block3.shortcut1", "head.shortcut1", "head.shortcut2"}
    plain = space.build(space.smallest()).eval()
    routed = space.build(space.architecture({**space.smallest(), "block3.shortcut1": 1})).eval()
    routed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(NODES, 6)
    first, second, third = (plain.get_submodule(f"block{i}") for i in (1, 2, 3))
    one = first(x, graph(), {})
    two = second(one, graph(), {})
    projection = routed.get_submodule("block3.shortcut1.linear")
    expected = plain.get_submodule("head")(third(two + projection(one), graph(), {}), graph(), {})
    torch.testing.assert_close(routed(x, EDGES), expected)
    assert not torch.allclose(plain(x, EDGES), expected)


def test_the_bits_of_an_architecture_are_those_of_its_choices() -> None:
    space = GraphSpace(
        6, 3, widths=(4, 8), attentions=("gcn", "gat"), weight_bits=(2, 4), activation_bits=(4, 8), nodes=10, edges=30
    )
    low = {**space.smallest(), "head.bits.features": 8}
    assert space.bitwidths(space.architecture(low)) == {"block1.linear": (2, 4), "head.linear": (2, 8)}
    assert space.activations_of(space.architecture({**low, "head.attention": "gat"})) == {
        "block1.features": (60, 4),
        "block1.linear": (40, 4),
        "block1.aggregation": (40, 4),
        "head.features": (40, 8),
        "head.linear": (30, 4),
        "head.attention": (40, 4),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (8, 4)}, r"ascending candidates.*'widths'.*\(8, 4\)"),
        ({"weight_bits": (4, 40)}, r"GraphSpace.weight_bits must be 1 to 16, or 32 for full precision.*\(4, 40\)"),
        ({"num_classes": 1}, "num_classes >= 2"),
        ({"attentions": ("gcn", "gin")}, r"GraphSpace.attentions must be distinct names of .*got \('gcn', 'gin'\)"),
        ({"sites": ("weights",)}, r"GraphSpace.sites must be distinct names of \('features'"),
        ({"weight_bits": (0, 4)}, "'weight_bits'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphSpace(**({"in_features": 6, "num_classes": 3} | arguments))


@pytest.mark.parametrize("function", [lambda: attention("x", 4, 1, 1), lambda: aggregation("x")])
def test_unknown_operations_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*, got 'x'"):
        function()
