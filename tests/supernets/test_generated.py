"""Weights that a hypernetwork makes for each architecture."""

import functools

import pytest
import torch
from torch import Tensor, nn

from hypernets import ChunkedHyperNetwork, DenseHyperNetwork, Parametrization, RecurrentHyperNetwork, digest
from search_spaces import Architecture, Choice, FactorySpace, MLPSpace, SearchSpace, construct, describe
from supernets import Classification, GeneratedWeights, SharedWeights, Supernet

SMALL = functools.partial(ChunkedHyperNetwork, hidden=(4, 8), chunk=16)


def space_of() -> MLPSpace:
    return MLPSpace(5, 3, widths=(4, 6), depths=(1, 2))


def moved(source: GeneratedWeights) -> GeneratedWeights:
    """Away from values that many initialisations share."""
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return source


def test_every_matrix_is_a_corner_of_residual_plus_delta_and_the_rest_is_shared() -> None:
    space = space_of()
    source = moved(GeneratedWeights(space, hypernet=SMALL))
    architecture = space.architecture({"depth": 2, "layer1.width": 6, "layer2.width": 4})
    condition = {"architecture": space.encode(architecture)[None]}
    delta, residual = source.generator.deltas(condition), source.generator.residual
    tensors = source(architecture)
    shapes = {"linear1.weight": (6, 5), "linear2.weight": (4, 6), "head.weight": (3, 4)}
    assert set(source.generator.target.names) == set(shapes)
    for name, (rows, columns) in shapes.items():
        base = residual(name)
        assert base is not None
        torch.testing.assert_close(tensors[name], (base + delta[name][0])[:rows, :columns])
    stored = source.shared.stored()
    for name, size in {"norm1.weight": 6, "norm2.bias": 4, "head.bias": 3}.items():
        assert torch.equal(tensors[name], stored[name][:size])


def test_without_deltas_it_starts_as_plain_sharing_of_the_same_seed() -> None:
    space = space_of()
    quiet = functools.partial(SMALL, parametrization=Parametrization(head_init="zero"))
    generated, shared = GeneratedWeights(space, hypernet=quiet, seed=3), SharedWeights(space, seed=3)
    for architecture in space.probes():
        expected = shared(architecture)
        assert all(torch.equal(value, expected[name]) for name, value in generated(architecture).items())
    assert generated.diagnostics()["delta"] == 0
    assert GeneratedWeights(space, hypernet=SMALL).diagnostics()["delta"] > 0.01


def test_the_architecture_is_the_condition() -> None:
    space = space_of()
    source = GeneratedWeights(space, hypernet=SMALL)
    small, large = space.smallest(), space.largest()
    assert torch.equal(source.conditioned(small, on=small)["head.weight"], source(small)["head.weight"])
    assert not torch.allclose(source.conditioned(small, on=large)["head.weight"], source(small)["head.weight"])
    assert source.diagnostics()["spread"] > 0.01


def test_layers_that_are_absent_are_not_generated() -> None:
    space = space_of()
    source = GeneratedWeights(space, hypernet=functools.partial(DenseHyperNetwork, hidden=(4,)))
    assert isinstance(source.generator, DenseHyperNetwork)
    source(space.smallest())["head.weight"].sum().backward()
    rows = torch.zeros(source.generator.target.numel, dtype=torch.bool)
    start = 0
    for spec in source.generator.target:
        rows[start : start + spec.numel] = spec.name == "head.weight"
        start += spec.numel
    assert source.generator.head.grad is not None
    assert not source.generator.head.grad[~rows].any()
    assert source.generator.head.grad[rows].any()


def test_globs_name_what_is_generated() -> None:
    space = space_of()
    source = GeneratedWeights(space, hypernet=SMALL, tensors=["head.*", "norm1.weight"])
    assert set(source.generator.target.names) == {"norm1.weight", "head.weight", "head.bias"}
    assert "linear1.weight" in dict(source.shared.largest.named_parameters())
    assert "head.weight" not in dict(source.shared.largest.named_parameters())
    assert source.diagnostics()["stored_ratio"] > 1
    with pytest.raises(ValueError, match=r"tensors must match trained tensors .*\['stem\*'\] match none"):
        GeneratedWeights(space, tensors=["stem*", "head*"])


class Frozen(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fixed = nn.Linear(4, width)
        self.fixed.weight.requires_grad_(False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.fixed(x))
        return outputs


def test_tensors_that_are_not_trained_are_not_generated() -> None:
    source = GeneratedWeights(FactorySpace(Frozen, {"width": [2, 4]}, input_shape=(4,)), hypernet=SMALL)
    assert source.generator.target.names == ("head.weight",)


class Single(SearchSpace):
    choices: tuple[Choice, ...] = ()

    def build(self, architecture: Architecture) -> nn.Module:
        return nn.Linear(3, 2)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, 3),)


def test_a_space_without_choices_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a space with choices"):
        GeneratedWeights(Single())


@pytest.mark.parametrize(
    "hypernet",
    [
        functools.partial(RecurrentHyperNetwork, width=8, vectors=4, chunk=16),
        functools.partial(DenseHyperNetwork, hidden=(4,), parametrization=Parametrization.ordinary()),
    ],
    ids=["recurrent", "ordinary"],
)
def test_its_description_builds_the_same_generator(hypernet: functools.partial) -> None:
    source = GeneratedWeights(space_of(), hypernet=hypernet, seed=5)
    tree = describe(source, exclude=("space",))
    again = construct(tree, GeneratedWeights, trusted=["supernets", "hypernets"], space=space_of())
    assert describe(again, exclude=("space",)) == tree
    assert digest(again.generator) == digest(source.generator)
    assert again.provenance() == source.provenance()
    assert source.provenance()["generator"] == type(source.generator).__name__


def test_weights_come_in_the_precision_of_the_source() -> None:
    space = space_of()
    for dtype in (torch.float64, torch.bfloat16):
        source = GeneratedWeights(space, hypernet=SMALL).to(dtype)
        assert {t.dtype for name, t in source(space.largest()).items() if "num_batches" not in name} == {dtype}
    source = GeneratedWeights(space, hypernet=SMALL)
    expected = source(space.largest())["head.weight"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(source(space.largest())["head.weight"], expected)


def test_the_state_of_the_global_generator_stays_as_it_was() -> None:
    before = torch.get_rng_state()
    first, second = GeneratedWeights(space_of(), hypernet=SMALL), GeneratedWeights(space_of(), hypernet=SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(first.generator) == digest(second.generator)


def test_a_relaxed_architecture_of_single_candidates_gives_the_weights_of_that_architecture() -> None:
    space = MLPSpace(5, 3, widths=(4, 6), depths=(1, 2), batch_norm=False)
    source = moved(GeneratedWeights(space, hypernet=SMALL))
    architecture = space.architecture({"depth": 2, "layer1.width": 4, "layer2.width": 6})
    hard, soft = source(architecture), source.relaxed(space.relax(architecture))
    torch.testing.assert_close(soft["linear2.weight"][:6, :4], hard["linear2.weight"])
    assert not soft["linear2.weight"][:, 4:].any()


def test_norms_and_biases_that_are_shared_are_spared_weight_decay() -> None:
    supernet = Supernet(
        space_of(), Classification(3), source=functools.partial(GeneratedWeights, hypernet=SMALL), seed=1
    )
    assert isinstance(supernet.source, GeneratedWeights)
    assert not any("norm" in name for name, _ in supernet.source.generator.named_parameters())
