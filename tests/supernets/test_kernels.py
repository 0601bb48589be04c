"""The learned kernel transform of Once-for-All, against a restatement in NumPy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from search_spaces import Architecture, Choice, ConvNetSpace, FactorySpace, SearchSpace, Stage
from supernets import SharedWeights


@pytest.fixture
def space() -> ConvNetSpace:
    return ConvNetSpace([Stage((4, 8), (1,), (3, 5, 7), block="residual")], 4, resolutions=(8,))


def test_at_the_start_it_is_the_plain_centre_crop(space: ConvNetSpace) -> None:
    plain, transformed = SharedWeights(space, seed=2), SharedWeights(space, seed=2, kernel_transform=True)
    for architecture in space.architectures():
        expected, given = plain(architecture), transformed(architecture)
        assert all(torch.equal(given[name], tensor) for name, tensor in expected.items())


Array = NDArray[np.float64]


def once_for_all(weight: Array, size: int, matrices: dict[int, Array]) -> Array:
    """Section 3.2 of arXiv 1908.09791: crop to the next size, multiply the flattened crop, repeat."""
    while weight.shape[-1] > size:
        crop = weight[..., 1:-1, 1:-1]
        side = crop.shape[-1]
        weight = np.einsum("oip,qp->oiq", crop.reshape(*crop.shape[:2], -1), matrices[side]).reshape(crop.shape)
    return weight


def test_it_equals_section_3_2_of_once_for_all(space: ConvNetSpace) -> None:
    source = SharedWeights(space, kernel_transform=True)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    stored = dict(source.largest.named_parameters())
    state = {name: value.double().numpy() for name, value in source.state_dict().items()}
    checked = set()
    for architecture in space.architectures():
        for name, tensor in source(architecture).items():
            if tensor.ndim == 4 and tensor.shape != stored[name].shape and stored[name].shape[2] == 7:
                key = name.replace(".", "/")
                matrices = {side: state[f"kernels.matrices.{key}->{side}"] for side in (3, 5)}
                full = stored[name].detach().double().numpy()[: tensor.shape[0], : tensor.shape[1]]
                expected = once_for_all(full, tensor.shape[2], matrices)
                np.testing.assert_allclose(tensor.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
                checked.add(tensor.shape[2])
    assert checked == {3, 5, 7}


def test_only_the_matrices_on_the_way_down_learn(space: ConvNetSpace) -> None:
    source = SharedWeights(space, kernel_transform=True)
    middle = space.architecture(dict(space.largest()) | {"stage1.kernel": 5})
    sum(t.sum() for n, t in source(middle).items() if n.endswith("weight")).backward()
    assert source.kernels is not None
    learning = {name.split("->")[1] for name, p in source.kernels.named_parameters() if p.grad is not None}
    assert learning == {"5"}


class Oblong(SearchSpace):
    choices = (Choice("kernel", (1, 3)),)

    def build(self, architecture: Architecture) -> torch.nn.Module:
        return torch.nn.Conv2d(1, 1, (architecture.integer("kernel"), 5))

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch_size, 1, 8, 8),)


def test_kernels_of_unequal_sides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal extent in all dimensions, but 'weight' .* turn kernel_transform off"):
        SharedWeights(Oblong(), kernel_transform=True)


class Positioned(torch.nn.Module):
    """A convolution, and a table of positions that has as many dimensions as its kernel."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(2, width, kernel, padding=kernel // 2)
        self.position = torch.nn.Parameter(torch.randn(1, 6, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.conv(x).transpose(1, 2)
        return features + self.position


def test_tensors_that_are_no_kernels_are_left_alone() -> None:
    space = FactorySpace(Positioned, {"width": [3, 5], "kernel": [3, 5]}, input_shape=(2, 6))
    source = SharedWeights(space, kernel_transform=True)
    assert source.kernels is not None
    assert [name for name, _ in source.kernels.named_parameters()] == ["matrices.conv/weight->3"]
    with torch.no_grad():
        source.kernels.get_parameter("matrices.conv/weight->3").mul_(2.0)
    tensors, largest = source(space.smallest()), dict(source.largest.named_parameters())
    assert torch.equal(tensors["position"], largest["position"][..., :3])
    assert torch.equal(tensors["conv.weight"], 2 * largest["conv.weight"][:3, :, 1:4])
