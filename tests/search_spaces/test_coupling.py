"""Coupled channels: what is found, what is left out, and that permuting them changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from search_spaces import (
    Architecture,
    Choice,
    ConvNetSpace,
    Couplings,
    FactorySpace,
    MLPSpace,
    SearchSpace,
    Stage,
    couplings,
    permuted,
)


class Heads(nn.Module):
    """Two heads of packed attention, beside a perceptron whose hidden width is that of the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        query, key, value = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        attended = torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(self.up(x).relu())
        logits: Tensor = self.head(x.mean(1))
        return logits


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, width, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0][:, -1])
        return logits


def space_of(name: str) -> SearchSpace:
    if name == "mlp":
        return MLPSpace(12, 4, widths=(6, 10), depths=(1, 2))
    if name == "residual":  # hidden and outer width always agree
        return ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), block="residual")], 4, resolutions=(6,))
    if name == "inverted":
        return ConvNetSpace([Stage((4, 8), (1,), (3,), (1, 2), squeeze_excite=True)], 4, resolutions=(6,))
    if name == "heads":
        return FactorySpace(Heads, {"width": [4, 8]}, input_shape=(6, 5), slicing={"qkv.*": {"blocks": {0: 3}}})
    return FactorySpace(Recurrent, {"width": [4, 6]}, input_shape=(3, 5))


NAMES = ("mlp", "residual", "inverted", "heads", "recurrent")


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[str, SearchSpace, Couplings]:
    space = space_of(request.param)
    return request.param, space, couplings(space)


def names(found: Couplings) -> list[set[str]]:
    return [{site.tensor for site in coupling.sites} for coupling in found.verified]


def test_permuting_coupled_channels_changes_no_output(case: tuple[str, SearchSpace, Couplings]) -> None:
    _, space, found = case
    torch.manual_seed(3)
    module = space.build(space.largest()).double().eval()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    (zeros,) = space.inputs(space.largest(), 3)
    inputs = torch.randn(zeros.shape, dtype=torch.float64)
    before = module(inputs)
    assert found.verified
    for coupling in found.verified:
        order = torch.randperm(coupling.size)
        state = module.state_dict()
        with torch.no_grad():
            for site in coupling.sites:
                state[site.tensor].copy_(permuted(state[site.tensor], site, order))
        torch.testing.assert_close(module(inputs), before)


def test_every_elastic_dimension_but_kernels_is_sorted_or_left_out(case: tuple[str, SearchSpace, Couplings]) -> None:
    _, space, found = case
    with torch.device("meta"):
        small, large = (dict(space.build(a).named_parameters()) for a in (space.smallest(), space.largest()))
    elastic = {
        (name, dim)
        for name, tensor in small.items()
        for dim, (a, b) in enumerate(zip(tensor.shape, large[name].shape, strict=True))
        if a < b and dim < 2
    }
    sites = [(site.tensor, site.dim) for c in (*found.verified, *found.left_out) for site in c.sites]
    assert len(sites) == len(set(sites))
    assert elastic <= set(sites)
    assert all(dim < 2 for _, dim in sites)


def test_the_layers_of_a_perceptron_are_coupled_one_by_one() -> None:
    found = couplings(space_of("mlp"))
    statistics = ("weight", "bias", "running_mean", "running_var")
    norms = [{f"norm{i}.{leaf}" for leaf in statistics} for i in (1, 2)]
    assert names(found) == [
        {"linear1.weight", "linear2.weight"} | norms[0],
        {"linear2.weight", "head.weight"} | norms[1],
    ]
    assert [site.role for site in found.verified[0].sites if "linear" in site.tensor] == ["makes", "reads"]
    assert not found.left_out


def test_hidden_channels_are_told_from_the_stream_though_their_sizes_agree() -> None:
    found = couplings(space_of("residual"))
    hidden = [name for name in names(found) if "classifier.weight" not in name]
    assert [{n for n in group if "conv" in n} for group in hidden] == [
        {"stage1.block1.conv1.weight", "stage1.block1.conv2.weight"},
        {"stage1.block2.conv1.weight", "stage1.block2.conv2.weight"},
    ]
    assert len(found.verified) == 3


def test_heads_that_are_packed_are_left_out_and_the_rest_is_not() -> None:
    found = couplings(space_of("heads"))
    assert {"up.weight", "up.bias", "down.weight"} in names(found)
    (left,) = found.left_out
    assert "qkv.weight" in {site.tensor for site in left.sites}
    assert ("up.weight", 0) not in {(site.tensor, site.dim) for site in left.sites}


def test_gates_are_permuted_block_by_block() -> None:
    (coupling,) = couplings(space_of("recurrent")).verified
    assert coupling.size == 6
    assert {(s.tensor, s.dim, s.blocks) for s in coupling.sites} == {
        ("lstm.weight_ih_l0", 0, 4),
        ("lstm.weight_hh_l0", 0, 4),
        ("lstm.weight_hh_l0", 1, 1),
        ("lstm.bias_ih_l0", 0, 4),
        ("lstm.bias_hh_l0", 0, 4),
        ("head.weight", 1, 1),
    }


class Operations(SearchSpace):
    """Two linear maps; one candidate of what stands between them mixes neighbouring channels."""

    def __init__(self, *operations: str) -> None:
        self.operations = operations
        self.choices = (Choice("width", (4, 6)), Choice("operation", operations, kind="categorical"))

    def build(self, architecture: Architecture) -> nn.Module:
        width, operation = architecture.integer("width"), architecture["operation"]
        between = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "pool": nn.AvgPool1d(3, 1, 1)}[str(operation)]
        return nn.Sequential(nn.Linear(5, width), between, nn.Linear(width, 2))

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, 5),)


def test_every_candidate_of_an_operation_must_preserve_its_function() -> None:
    assert len(couplings(Operations("tanh", "relu")).verified) == 1
    found = couplings(Operations("pool", "relu"))
    assert not found.verified
    assert {site.tensor for site in found.left_out[0].sites} == {"0.weight", "0.bias", "2.weight"}


class Ignored(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return 0.0 * self.second(self.first(x))  # type: ignore[no-any-return]


def test_what_the_outputs_do_not_depend_on_proves_nothing() -> None:
    found = couplings(FactorySpace(Ignored, {"width": [4, 6]}, input_shape=(5,)))
    assert not found.verified
    assert found.left_out


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    couplings(space_of("mlp"))
    assert torch.equal(before, torch.get_rng_state())
