"""Buffers that are no statistics of norms: shared, rebuilt, or refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from search_spaces import FactorySpace, SlicingError
from supernets import Classification, SharedWeights, Supernet, load, save


class Buffered(nn.Module):
    """Adds a buffer to its features: ``random`` or ``counted``, of ``equal`` or ``own`` shape, in the file or not."""

    features: Tensor

    def __init__(self, width: int, values: str, shape: str, persistent: bool = True) -> None:
        super().__init__()
        size = {"equal": 1, "own": width}[shape]
        self.enter = nn.Linear(4, width)
        self.leave = nn.Linear(width, 3)
        made = torch.randn(size) if values == "random" else torch.arange(1.0, 1 + size)
        self.register_buffer("features", made, persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.leave(self.enter(x) + self.features)
        return outputs


def space(values: str, shape: str, persistent: bool = True) -> FactorySpace:
    fixed = {"values": values, "shape": shape, "persistent": persistent}
    return FactorySpace(Buffered, {"width": [2, 4]}, input_shape=(4,), fixed=fixed)


def supernet(values: str, shape: str, persistent: bool = True) -> Supernet:
    return Supernet(space(values, shape, persistent), Classification(3))


def test_a_random_buffer_of_one_shape_is_that_of_the_largest_build() -> None:
    given = supernet("random", "equal")
    architecture = given.space.smallest()
    expected = given.source.get_buffer("largest.features")
    for module in (given.extract(architecture), given.extract(architecture), given.bind(architecture)):
        assert torch.equal(module.get_buffer("features"), expected)


def test_a_buffer_that_is_loaded_counts() -> None:
    given = supernet("random", "equal")
    source = given.source
    assert isinstance(source, SharedWeights)
    source.largest.load_state_dict(source.largest.state_dict() | {"features": torch.tensor([7.0])})
    assert given.extract(given.space.smallest()).get_buffer("features").tolist() == [7.0]
    inputs = torch.randn(2, 4)
    assert torch.equal(given(given.space.smallest(), inputs), given.extract(given.space.smallest())(inputs)), (
        "training sees the same values"
    )


def test_an_extracted_buffer_is_the_users_own() -> None:
    given = supernet("random", "equal")
    before = given.source.get_buffer("largest.features").clone()
    given.extract(given.space.largest()).get_buffer("features").zero_()
    assert torch.equal(given.source.get_buffer("largest.features"), before)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_whose_shape_follows_the_architecture_is_that_of_the_small_build(persistent: bool) -> None:
    given = supernet("counted", "own", persistent)
    assert given.extract(given.space.smallest()).get_buffer("features").tolist() == [1.0, 2.0]
    assert given.bind(given.space.largest()).get_buffer("features").tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(("shape", "persistent"), [("own", True), ("own", False), ("equal", False)])
def test_a_random_buffer_that_no_two_builds_agree_on_is_refused(shape: str, persistent: bool) -> None:
    state = torch.get_rng_state()
    with pytest.raises(SlicingError, match=r"buffers \['features'\] of .* differ from build to build.*parameters with"):
        SharedWeights(space("random", shape, persistent))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("values", "shape", "persistent"), [("counted", "own", False), ("random", "equal", True)])
def test_a_module_with_buffers_survives_saving(values: str, shape: str, persistent: bool, tmp_path: Path) -> None:
    given = supernet(values, shape, persistent)
    with torch.no_grad():
        for parameter in given.parameters():
            parameter.normal_()
    again = load(save(given, tmp_path / "saved"), space=given.space)
    inputs = torch.randn(2, 4)
    for architecture in given.anchors().values():
        assert torch.equal(again.extract(architecture)(inputs), given.extract(architecture)(inputs))
