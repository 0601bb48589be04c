import itertools

import pytest
import torch

from search_spaces import Choice, ConvNetSpace, MLPSpace, RelaxedArchitecture, SearchSpace, Stage

SPACES: dict[str, SearchSpace] = {
    "mlp": MLPSpace(8, 3, widths=(4, 6, 8), depths=(1, 2, 3)),
    "convnet": ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), (1, 2))], 4, resolutions=(6, 8), per_block=True),
}


class Operations(SearchSpace):
    """Categorical and conditional choices side by side."""

    choices = (
        Choice("depth", (1, 2)),
        Choice("op1", ("skip", "conv", "pool"), "categorical"),
        Choice("op2", ("skip", "conv"), "categorical", requires=("depth", 2)),
    )

    def build(self, architecture: object) -> torch.nn.Module:
        raise NotImplementedError

    inputs = build  # type: ignore[assignment]


SPACES["operations"] = Operations()


def random_weights(space: SearchSpace, seed: int) -> RelaxedArchitecture:
    generator = torch.Generator().manual_seed(seed)
    return RelaxedArchitecture(
        {c.name: torch.softmax(torch.randn(c.size, generator=generator), 0) for c in space.choices}
    )


@pytest.mark.parametrize("name", SPACES)
def test_one_hot_weights_encode_as_their_architecture(name: str) -> None:
    space = SPACES[name]
    for architecture in itertools.islice(space.architectures(), 50):
        assert torch.equal(space.encode(space.relax(architecture)), space.encode(architecture))


@pytest.mark.parametrize("name", SPACES)
def test_the_encoding_is_the_expectation_over_architectures(name: str) -> None:
    space = SPACES[name]
    relaxed = random_weights(space, 1)
    expected = torch.zeros_like(space.encode(space.smallest()))
    for indices in itertools.product(*(range(choice.size) for choice in space.choices)):
        values = {c.name: c.candidates[i] for c, i in zip(space.choices, indices, strict=True)}
        probability = torch.stack([relaxed[c.name][i] for c, i in zip(space.choices, indices, strict=True)]).prod()
        expected = expected + probability * space.encode(space.architecture(values))
    torch.testing.assert_close(space.encode(relaxed), expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_weights_of_parents_and_children() -> None:
    space = SPACES["mlp"]
    relaxed = random_weights(space, 2)
    for weights in relaxed.values():
        weights.requires_grad_()
    space.encode(relaxed).square().sum().backward()
    assert all(weights.grad is not None and bool(weights.grad.any()) for weights in relaxed.values())


def test_relaxed_architectures_are_no_keys() -> None:
    space = SPACES["mlp"]
    relaxed = space.relax(space.smallest())
    assert relaxed != space.relax(space.smallest())
    with pytest.raises(TypeError, match="unhashable"):
        hash(relaxed)
