"""The cell space of DARTS: genotypes, sizes, and the weighted sum of every network."""

import itertools

import pytest
import torch

from search_spaces import DARTSSpace, InvalidArchitectureError

DARTS_V2 = {  # the cells published with the paper, in its order of inputs
    "normal": [
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ],
    "reduction": [
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ],
}


def small(**options):
    options = {"operations": ("skip_connect", "max_pool_3x3", "dil_conv_3x3"), "nodes": 2} | options
    return DARTSSpace(4, in_channels=2, resolution=9, width=2, cells=3, **options)


def test_the_published_cell_has_its_published_size():
    """3.3 million parameters on CIFAR-10 (arXiv 1806.09055, Table 1): 20 cells, 36 channels."""
    space = DARTSSpace(10, width=36, cells=20)
    with torch.device("meta"):
        network = space.build(space.from_genotype(DARTS_V2))
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_349_342


def test_a_genotype_is_read_and_written_whatever_its_order():
    space = DARTSSpace(10)
    architecture = space.from_genotype(DARTS_V2)
    written = space.genotype(architecture)
    assert space.from_genotype(written) == architecture
    assert written["normal"][4:6] == [("skip_connect", 0), ("sep_conv_3x3", 1)]
    assert sorted(written["reduction"]) == sorted(DARTS_V2["reduction"])


def test_every_node_has_exactly_two_inputs():
    space = DARTSSpace(10)
    # node i of a cell chooses 2 of i + 1 nodes and an operation for each
    assert space.size() == ((1 * 3 * 6 * 10) * 7**8) ** 2
    architecture = space.sample(torch.Generator().manual_seed(0))
    with torch.device("meta"):
        network = space.build(architecture)
    for cell in network.cells:
        edges = [name for name, _ in cell.named_children() if name.startswith("edge")]
        assert [name[-1] for name in edges] == list("22334455")
        assert len(set(edges)) == 8


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_one_hot_weights_give_the_static_network(affine, training):
    space = small(affine=affine)
    generator = torch.Generator().manual_seed(0)
    everything = space.superset().double().train(training)
    images = torch.randn(5, 2, 9, 9, generator=generator, dtype=torch.float64)
    for architecture in (space.smallest(), space.largest(), *(space.sample(generator) for _ in range(5))):
        network = space.build(architecture).double().train(training)
        state = everything.state_dict()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        relaxed = {name: weights.double() for name, weights in space.relax(architecture).items()}
        torch.testing.assert_close(everything(images, relaxed), network(images), rtol=1e-11, atol=1e-11)


def test_edge_weights_are_expected_over_pairs_and_operations():
    space = small(nodes=3)
    generator = torch.Generator().manual_seed(2)
    relaxed = {c.name: torch.softmax(torch.randn(c.size, generator=generator), 0) for c in space.choices}
    found = space.edge_weights("normal", relaxed)
    expected = {edge: [0.0, 0.0, 0.0] for edge in found}
    pairs = {4: [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 3: [(0, 1), (0, 2), (1, 2)], 2: [(0, 1)]}
    for node, candidates in pairs.items():
        for (index, pair), first, second in itertools.product(enumerate(candidates), range(3), range(3)):
            chance = float(relaxed[f"normal.node{node}.inputs"][index]) if node > 2 else 1.0
            chance *= float(relaxed[f"normal.node{node}.first"][first] * relaxed[f"normal.node{node}.second"][second])
            expected[pair[0], node][first] += chance
            expected[pair[1], node][second] += chance
    for edge, weights in found.items():
        torch.testing.assert_close(weights, torch.tensor(expected[edge]))


@pytest.mark.parametrize(
    ("normal", "message"),
    [
        ([("skip_connect", 0)], "two .operation, input. for each of 2 nodes"),
        ([("skip_connect", 0)] * 4, r"node3.inputs.*must be one of \('0,1', '0,2', '1,2'\), got '0,0'"),
        ([("skip_connect", 0), ("none", 1)] * 2, "'none'"),
    ],
)
def test_a_genotype_outside_the_space_is_refused(normal, message):
    good = [("skip_connect", 0), ("skip_connect", 1)] * 2
    with pytest.raises(InvalidArchitectureError, match=message):
        small().from_genotype({"normal": normal, "reduction": good})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 3}, "even width"),
        ({"cells": 2}, "at least 3 cells, got .*cells=2"),
        ({"operations": ("skip_connect", "none")}, "got 'none'"),
        ({"operations": ("conv_3x3",)}, "operation must be one of"),
        ({"operations": ()}, "distinct names"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DARTSSpace(10, **options)


def test_few_probes_take_every_candidate_of_every_choice() -> None:
    space = DARTSSpace(4, resolution=8, width=4, cells=3)
    probes = list(space.probes())
    for choice in space.choices:
        assert {probe[choice.name] for probe in probes} == set(choice.candidates)
    assert probes[0] == space.largest()
    assert len(probes) == 10, "each is a build of the network when weights are made"
