"""The cell space: which cells are one network, what is built, and the weighted sum of operations."""

import hashlib
import itertools

import numpy as np
import pytest
import torch

from search_spaces import Architecture, CellSpace, Choice, InvalidArchitectureError, MixedOp, SearchSpace
from search_spaces.cell_graph import expression, from_text

OPERATIONS = ("avg_pool_3x3", "none", "nor_conv_1x1", "nor_conv_3x3", "skip_connect")
TABLE = "c4966e94f5639ec868ee6159f95014542cc452df9d1089f31a991fb2024fba5f"
"""SHA-256 over the published table of NATS-Bench: a line "arch_str unique_str" per cell, in order of its operations."""

EQUAL = (  # from the table, one class a line
    (
        "|avg_pool_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|avg_pool_3x3~0|none~1|avg_pool_3x3~2|",
        "|avg_pool_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|skip_connect~1|avg_pool_3x3~2|",
    ),
    (
        "|skip_connect~0|+|nor_conv_1x1~0|nor_conv_1x1~1|+|none~0|nor_conv_3x3~1|nor_conv_3x3~2|",
        "|nor_conv_1x1~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_3x3~0|none~1|nor_conv_3x3~2|",
    ),
    (
        "|skip_connect~0|+|skip_connect~0|avg_pool_3x3~1|+|none~0|skip_connect~1|none~2|",
        "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",
        "|none~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|skip_connect~0|none~1|none~2|",
    ),
    (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    ),
)
APART = (  # from the table: equal functions in classes of their own
    (  # the order of a sum that was skipped
        "|nor_conv_3x3~0|+|skip_connect~0|avg_pool_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|skip_connect~2|",
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|",
    ),
    (  # zero and the sum of two zeros
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|avg_pool_3x3~1|+|none~0|avg_pool_3x3~1|skip_connect~2|",
    ),
)


@pytest.fixture(scope="module")
def table() -> CellSpace:
    return CellSpace(10)


@pytest.fixture(scope="module")
def functions() -> CellSpace:
    return CellSpace(10, equivalence="function")


def small(**options):
    return CellSpace(4, in_channels=2, resolution=6, widths=(4, 6), cells=1, **options)


def texts():
    for a, b, c, d, e, f in itertools.product(OPERATIONS, repeat=6):
        yield f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def test_every_cell_has_the_class_of_the_published_table(table):
    digest, classes = hashlib.sha256(), {}
    for text in texts():
        key = expression(from_text(text), "nats_bench")
        digest.update(f"{text} {key}\n".encode())
        classes.setdefault(key, text)
    assert digest.hexdigest() == TABLE
    assert len(classes) == table.size() == 6466


def test_cells_of_one_class_are_one_architecture(table):
    for cells in EQUAL:
        assert len({table.from_text(cell).arch_id for cell in cells}) == 1
    for cells in APART:
        assert len({table.from_text(cell) for cell in cells}) == len(cells)


def test_function_equivalence_joins_what_the_table_leaves_apart(functions):
    for cells in EQUAL + APART:
        assert len({functions.from_text(cell) for cell in cells}) == 1


def test_cells_are_one_function_exactly_where_their_values_agree(functions):
    """Each operation as a number's function that keeps zero, all cells at once: 4,930 different outputs."""
    rules = {
        "none": np.zeros_like,
        "skip_connect": np.array,
        "avg_pool_3x3": lambda x: 0.9 * np.tanh(1.3 * x),
        "nor_conv_1x1": lambda x: 1.7 * np.sin(0.6 * x),
        "nor_conv_3x3": lambda x: np.sqrt(np.abs(x)) * np.sign(x) * 1.1,
    }
    chosen = np.array(list(itertools.product(range(5), repeat=6)))

    def edge(column, x):
        return np.choose(chosen[:, column], [rules[name](x) for name in OPERATIONS])

    node0 = np.full(len(chosen), 0.7)
    node1 = edge(0, node0)
    node2 = edge(1, node0) + edge(2, node1)
    node3 = edge(3, node0) + edge(4, node1) + edge(5, node2)
    values, keys = np.round(node3, 10), [expression(from_text(text), "function") for text in texts()]
    pairs = set(zip(values.tolist(), keys, strict=True))
    assert len(pairs) == len(set(values.tolist())) == len(set(keys)) == functions.size() == 4930


def test_the_architecture_of_a_class_is_its_cell_of_the_fewest_operations(table):
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|avg_pool_3x3~0|none~1|none~2|"
    assert table.to_text(table.from_text(text)) == "|none~0|+|none~0|none~1|+|avg_pool_3x3~0|none~1|none~2|"
    assert (
        table.to_text(table.largest())
        == "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+"
        + "".join(f"|nor_conv_3x3~{source}" for source in range(3))
        + "|"
    )
    assert set(table.smallest().values()) == {"skip_connect"}


def test_a_space_that_only_says_what_is_canonical_counts_its_architectures():
    class Unordered(SearchSpace):
        """Pairs whose order does not matter."""

        choices = (Choice("a", (1, 2, 3)), Choice("b", (1, 2, 3)))

        def canonical(self, values):
            return dict(zip(("a", "b"), sorted(values.values()), strict=True))

        def build(self, architecture):
            return torch.nn.Linear(architecture["a"], architecture["b"])

        def inputs(self, architecture, batch_size=1):
            return (torch.zeros(batch_size, architecture["a"]),)

    space = Unordered()
    assert space.size() == 6
    assert list(space.architectures()) == [
        Architecture({"a": a, "b": b}) for a, b in ((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3))
    ]
    assert space.architecture({"a": 3, "b": 1}) == Architecture({"a": 1, "b": 3})
    assert not space.contains({"a": 3, "b": 1})
    assert Architecture({"a": 1, "b": 3}) in set(space.neighbours(space.architecture({"a": 1, "b": 1})))


def test_the_network_of_the_benchmark_has_its_published_size(table):
    """1.531546 million parameters with 3x3 convolutions everywhere (NAS-Bench-201, CIFAR-10)."""
    with torch.device("meta"):
        network = table.build(table.largest())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_531_546


def test_only_edges_between_input_and_output_are_built():
    space = small(equivalence="nats_bench")
    # node 1 is fed by nothing, node 2 by it alone: the table keeps this cell apart from the direct edge
    cell = space.from_text("|none~0|+|none~0|nor_conv_3x3~1|+|avg_pool_3x3~0|none~1|nor_conv_1x1~2|")
    names = [name for name, _ in space.build(cell).named_modules() if "edge" in name]
    assert names == [f"stage{i}.cell1.edge0_3{end}" for i in (1, 2) for end in ("", ".avg_pool_3x3")]
    nothing = space.build(space.from_text("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")).eval()
    first, second = nothing(torch.randn(2, 2, 6, 6)).unbind()
    assert torch.equal(first, second)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_one_hot_weights_give_the_static_network(affine, training):
    space = small(affine=affine)
    generator = torch.Generator().manual_seed(0)
    everything = space.superset().double().train(training)
    with torch.no_grad():
        for parameter in everything.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    unfed = "|none~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_1x1~2|"
    images = torch.randn(5, 2, 6, 6, generator=generator, dtype=torch.float64)
    cells = [space.from_text(unfed), space.largest(), *(space.sample(generator) for _ in range(15))]
    for cell in cells:
        network = space.build(cell).double().train(training)
        state = everything.state_dict()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        relaxed = {name: weights.double() for name, weights in space.relax(cell).items()}
        torch.testing.assert_close(everything(images, relaxed), network(images), rtol=1e-12, atol=1e-12)


def test_relaxed_weights_are_those_of_a_sum_over_operations_with_gradients():
    """A cell by its equation: node_j = sum_i sum_k w_ijk op_ijk(node_i), normalised terms times P(node_i exists)."""
    space = small(affine=True)
    cell = space.superset().double().stage1.cell1
    generator = torch.Generator().manual_seed(1)
    given = {
        choice.name: torch.softmax(torch.randn(5, generator=generator, dtype=torch.float64), 0).requires_grad_()
        for choice in space.choices
    }
    images = torch.randn(3, 4, 6, 6, generator=generator, dtype=torch.float64)
    output = cell(images, given)
    nodes, exists = [images], [torch.ones((), dtype=torch.float64)]
    none = space.operations.index("none")
    for target in (1, 2, 3):
        total, missing = torch.zeros_like(images), 1.0
        for source in range(target):
            weights, edge = given[f"edge{source}_{target}"], getattr(cell, f"edge{source}_{target}")
            for position, name in enumerate(space.operations):
                if name != "none":
                    share = exists[source] if name.startswith("nor") else 1.0
                    total = total + weights[position] * share * getattr(edge, name)(nodes[source])
            missing = missing * (1 - (1 - weights[none]) * exists[source])
        nodes.append(total)
        exists.append(1 - missing)
    torch.testing.assert_close(output, nodes[3])
    names = list(given)
    found = torch.autograd.grad(output.square().sum(), [given[name] for name in names])
    expected = torch.autograd.grad(nodes[3].square().sum(), [given[name] for name in names])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 1e-6


def test_operations_without_weight_are_not_run():
    mixed = MixedOp(("none", "skip_connect", "nor_conv_3x3"), 3)
    runs = []
    mixed.get_submodule("nor_conv_3x3").register_forward_hook(lambda *_: runs.append(1))
    images, one = torch.randn(2, 3, 5, 5), torch.ones(())
    torch.testing.assert_close(mixed(images, torch.tensor([0.5, 0.5, 0.0]), one), images / 2)
    assert not runs
    assert torch.equal(mixed(images, torch.tensor([1.0, 0.0, 0.0]), one), torch.zeros_like(images))
    mixed(images, torch.tensor([0.5, 0.5, 0.0], requires_grad=True), one)
    assert runs, "a weight that is learnt needs its gradient"


def test_text_is_read_and_written(functions):
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    architecture = functions.from_text(text)
    assert architecture["edge1_2"] == "avg_pool_3x3"
    assert functions.to_text(architecture) == text
    swapped = "|nor_conv_3x3~0|+|avg_pool_3x3~1|nor_conv_3x3~0|+|nor_conv_1x1~1|skip_connect~0|nor_conv_3x3~2|"
    assert functions.from_text(swapped) == architecture


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("|nor_conv_3x3~0|", "lacks the edges 0 -> 2, 1 -> 2, 0 -> 3, 1 -> 3, 2 -> 3"),
        ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "'none~0' of node 2 does not fit"),
        ("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "'none~1' of node 1 does not fit"),
        ("resnet", "'resnet' of node 1 does not fit"),
        ("|dil_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", r"'edge0_1'.*must be one of .*'dil_conv_3x3'"),
    ],
)
def test_a_text_that_is_no_cell_of_the_space_is_refused(table, text, message):
    with pytest.raises(InvalidArchitectureError, match=message):
        table.from_text(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": 0}, "at least 1, got .*cells=0"),
        ({"widths": ()}, "at least 1, got .*widths="),
        ({"operations": ("skip_connect", "skip_connect")}, "distinct names"),
        ({"operations": ("skip_connect", "sep_conv_3x3")}, "must be among"),
        ({"operations": ("none", "nor_conv_1x1")}, "put 'none' between others"),
        ({"equivalence": "graph"}, "'nats_bench' or 'function', got 'graph'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CellSpace(10, **options)
