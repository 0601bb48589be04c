"""Template mixing: its equation, what it stores, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import ConvNetSpace, FactorySpace, MLPSpace, SearchSpace, Stage
from supernets import SharedWeights, TemplateWeights, WeightSource


def mlp() -> MLPSpace:
    return MLPSpace(12, 4, widths=(4, 6), depths=(2, 4))


def shaken(source: WeightSource) -> WeightSource:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return source


def stored(source: TemplateWeights) -> int:
    return sum(parameter.numel() for parameter in source.parameters())


def test_tensors_of_one_shape_are_mixed_from_one_bank() -> None:
    """W_l = sum_t c_{l,t} T_t, cut by prefix, restated in numpy."""
    space = mlp()
    source = shaken(TemplateWeights(space, templates=2))
    (coefficients,), (bank,) = (
        [p.detach().double().numpy() for p in given] for given in (source.coefficients, source.banks)
    )
    assert coefficients.shape == (3, 2)
    assert bank.shape == (2, 6, 6)
    widths = {"layer1.width": 6, "layer2.width": 4, "layer3.width": 6, "layer4.width": 4}
    tensors = source(space.architecture({"depth": 4, **widths}))
    for row, (name, rows, columns) in enumerate((("linear2", 4, 6), ("linear3", 6, 4), ("linear4", 4, 6))):
        expected = np.zeros((rows, columns))
        for template in range(2):
            for i in range(rows):
                for j in range(columns):
                    expected[i, j] += coefficients[row, template] * bank[template, i, j]
        np.testing.assert_allclose(tensors[f"{name}.weight"].detach().numpy(), expected, rtol=1e-5)


def test_a_bank_of_its_own_is_mixed_the_same_way_and_handed_out_cut() -> None:
    space = ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), block="residual")], 4, resolutions=(6,))
    source = shaken(TemplateWeights(space, templates=3, share="layer"))
    architecture = space.smallest()
    tensors, mixtures = source(architecture), source.mixtures(architecture)
    assert mixtures.keys() == {name for name, tensor in tensors.items() if tensor.ndim > 1}
    for name, bank in mixtures.items():
        assert bank.templates.shape == (3, *tensors[name].shape)
        expected = sum(c * t for c, t in zip(bank.coefficients.double(), bank.templates.double(), strict=True))
        torch.testing.assert_close(tensors[name], expected.float())


def test_one_bank_stores_fewer_numbers_and_says_how_many() -> None:
    space = MLPSpace(16, 4, widths=(8, 16), depths=(1, 6))
    plain = sum(p.numel() for p in SharedWeights(space).parameters())
    source = TemplateWeights(space, templates=2)  # six hidden matrices of 16 x 16 become two, and 12 coefficients
    assert stored(source) == plain - 6 * 256 + 2 * 256 + 12
    assert source.diagnostics() == {"stored_ratio": stored(source) / plain}
    own = TemplateWeights(space, templates=2, share="layer")
    assert own.diagnostics()["stored_ratio"] > 1.8


def test_coefficients_start_orthogonal_and_weights_with_the_variance_of_plain_ones() -> None:
    space = MLPSpace(64, 4, widths=(32, 64), depths=(1, 4))
    for share in ("shape", "layer"):
        source = TemplateWeights(space, templates=4, share=share)
        for rows in source.coefficients:
            directions = nn.functional.normalize(rows.detach(), dim=1)
            torch.testing.assert_close(directions @ directions.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
        plain, mixed = SharedWeights(space)(space.largest()), source(space.largest())
        for name, tensor in plain.items():
            if tensor.ndim > 1:
                assert float(mixed[name].detach().std() / tensor.detach().std()) == pytest.approx(1, abs=0.15)


class Unequal(nn.Module):
    """Layers of one shape that start at zero, small and large."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, scale in (("zero", 0.0), ("small", 0.01), ("large", 1.0), ("nothing", 0.0)):
            layer = nn.Linear(40, width)
            nn.init.normal_(layer.weight, std=scale)
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.children()], dim=1)


@pytest.mark.parametrize("templates", [1, 2, 3])
def test_layers_of_one_bank_start_in_the_size_that_their_own_initialisation_gives(templates: int) -> None:
    space = FactorySpace(Unequal, {"width": [20, 40]}, input_shape=(40,))
    source = TemplateWeights(space, templates=templates)
    (bank,) = source.banks
    assert len(bank) == min(templates, 2), "zeros are no templates"
    mixed = source(space.largest())
    for name, size in (("zero", 0.0), ("small", 0.01), ("large", 1.0), ("nothing", 0.0)):
        assert float(mixed[f"{name}.weight"].detach().square().mean()) ** 0.5 == pytest.approx(size, rel=0.15)
    mixed["zero.weight"].sum().backward()
    (coefficients,) = source.coefficients
    assert coefficients.grad is not None
    assert float(coefficients.grad[0].abs().min()) > 0, "a layer that starts at zero can leave it"


def test_a_bank_of_zeros_starts_at_zero_and_can_leave_it() -> None:
    def build(width: int) -> nn.Module:
        network = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4), nn.Linear(4, width))
        nn.init.zeros_(network[0].weight)
        nn.init.zeros_(network[2].weight)
        return network

    source = TemplateWeights(FactorySpace(build, {"width": [2, 5]}, input_shape=(4,)))
    weight = source(source.space.largest())["0.weight"]
    assert not weight.any()
    weight.sum().backward()
    (bank,) = source.banks
    assert bank.grad is not None
    assert bool(bank.grad.any())


def test_a_source_whose_every_tensor_is_mixed_still_knows_its_device() -> None:
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False))

    class Square(SearchSpace):
        choices = FactorySpace(nn.Linear, {"out_features": [2, 4]}, input_shape=(3,), fixed={"in_features": 3}).choices

        def build(self, architecture: object) -> nn.Module:
            return build(int(architecture["out_features"]))  # type: ignore[index]

        def inputs(self, architecture: object, batch_size: int = 1) -> tuple[Tensor, ...]:
            return (torch.zeros(batch_size, int(architecture["out_features"])),)  # type: ignore[index]

    source = TemplateWeights(Square()).double()
    assert {t.dtype for t in source(source.space.smallest()).values()} == {torch.float64}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": 0}, r"templates must be >= 1, got 0"),
        ({"share": "network"}, r"share must be 'layer' or 'shape', got 'network'"),
        ({"tensors": ["linear9*"]}, r"\['linear9\*'\] match none; give globs over \['head.weight'"),
        ({"tensors": ["norm1.*"]}, r"match none"),
        ({"tensors": ["head*"]}, r"needs two tensors of equal shape.*use share='layer'"),
    ],
)
def test_what_cannot_be_mixed_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemplateWeights(mlp(), **options)


@pytest.mark.parametrize("share", ["shape", "layer"])
def test_a_relaxed_architecture_of_single_candidates_holds_the_weights_of_the_architecture(share: str) -> None:
    space = mlp()
    source = shaken(TemplateWeights(space, share=share))
    architecture = space.middle()
    soft, hard = source.relaxed(space.relax(architecture)), source(architecture)
    whole = {name: soft[name] for name in source.shared.slicer.shapes}
    for name, tensor in source.shared.cut(architecture, whole).items():
        torch.testing.assert_close(tensor, hard[name])
