"""Growing: exactly function-preserving where it says so, the equation of new directions, and what is refused."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import Architecture, ConvNetSpace, FactorySpace, MLPSpace, SearchSpace, Stage, Stem
from supernets import (
    Classification,
    Ensemble,
    GrowthError,
    Member,
    SharedWeights,
    Supernet,
    TemplateWeights,
    grow,
    grow_mixed,
    member_of,
)
from supernets.growth import new_direction
from tests.supernets.conftest import Attention, random_inputs


class Recurrent(nn.Module):
    """A user's own classifier of ``(B, 6, 5)`` sequences."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(5, width, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.cell(x)[0][:, -1])
        return outputs


SPACES: dict[str, SearchSpace] = {
    "mlp": MLPSpace(12, 4, widths=(3, 5, 8), depths=(1, 3)),
    "mlp_without_norms": MLPSpace(12, 4, widths=(3, 5, 8), depths=(1, 3), batch_norm=False),
    "residual": ConvNetSpace(
        [
            Stage((3, 5, 8), (1, 2), (3, 5), (1, 2), block="residual"),
            Stage((4, 6, 10), (2,), stride=2, block="residual"),
        ],
        4,
        resolutions=(6,),
        stem=Stem((2, 4, 6)),
    ),
    "inverted": ConvNetSpace(
        [Stage((8, 16), (2,), (3, 5), (2, 4), squeeze_excite=True, project_shortcut=True)],
        4,
        resolutions=(6,),
        stem=Stem((16, 32)),
    ),
    "recurrent": FactorySpace(Recurrent, {"width": [3, 5, 8]}, input_shape=(6, 5)),
}
TWICE = SPACES | {  # the widths of two members add up, those inside squeeze-excite too
    "inverted": ConvNetSpace(
        [Stage((16, 32), (2,), (3,), (2,), squeeze_excite=True, project_shortcut=True)],
        4,
        resolutions=(6,),
        stem=Stem((16, 32)),
    )
}

MLP = MLPSpace(12, 4, widths=(4, 8), depths=(2,))


def picked(space: SearchSpace, position: int, **changed: object) -> Architecture:
    """Widths by position, everything else as in the largest."""
    values = {
        choice.name: choice.candidates[position] if "width" in choice.name else choice.candidates[-1]
        for choice in space.choices
    }
    return space.architecture(values | changed)  # type: ignore[arg-type]


def trained(space: SearchSpace, architecture: Architecture, seed: int) -> Member:
    """A network in which nothing is zero, one or symmetric, norm statistics included."""
    torch.manual_seed(seed)
    module = space.build(architecture).double()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.add_((torch.rand_like(tensor) - 0.4) * 0.3)
    return Member(architecture, module.eval())


def outputs(module: nn.Module, inputs: Tensor, *, training: bool) -> Tensor:
    result: Tensor = module.double().train(training)(inputs.double())
    return result.detach()


@pytest.mark.parametrize("name", TWICE)
def test_two_members_side_by_side_compute_their_mean(name: str) -> None:
    space = TWICE[name]
    inputs = random_inputs(space, 6)
    first, second = (trained(space, picked(space, position), position + 1) for position in (0, -2))
    grown = grow(space, [first, second], picked(space, -1))
    members = [first.module, second.module]
    for training in (False, True):
        expected = sum(outputs(module, inputs, training=training) for module in members) / 2
        torch.testing.assert_close(outputs(grown, inputs, training=training), expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(*(outputs(module, inputs, training=False) for module in members))


@pytest.mark.parametrize("name", SPACES)
def test_one_member_keeps_its_function_and_its_new_features_can_learn(name: str) -> None:
    space = SPACES[name]
    inputs = random_inputs(space, 6)
    member = trained(space, picked(space, 0), 1)
    grown = grow(space, [member], picked(space, -1)).double()
    for training in (False, True):
        expected = outputs(member.module, inputs, training=training)
        torch.testing.assert_close(outputs(grown, inputs, training=training), expected, rtol=1e-12, atol=1e-12)
    grown.train()(inputs.double()).square().sum().backward()
    heads = [
        [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1] for module in (member.module, grown)
    ]
    assert bool(heads[1].weight.grad[:, heads[0].in_features :].any())


def test_kernels_and_expansions_grow_too() -> None:
    space = SPACES["residual"]
    small = picked(space, 0, **{"stage1.kernel": 3, "stage1.expansion": 1})
    member = trained(space, small, 1)
    grown = grow(space, [member], picked(space, -1))
    inputs = random_inputs(space, 6)
    expected = outputs(member.module, inputs, training=False)
    torch.testing.assert_close(outputs(grown, inputs, training=False), expected, rtol=1e-12, atol=1e-12)


def test_statistics_of_norms_are_put_side_by_side() -> None:
    space = SPACES["mlp"]
    first, second = trained(space, picked(space, 0), 1), trained(space, picked(space, 1), 2)
    grown = grow(space, [first, second], picked(space, 2))
    for leaf in ("running_mean", "running_var", "weight", "bias"):
        pieces = [getattr(member.module.norm2, leaf) for member in (first, second)]
        torch.testing.assert_close(getattr(grown.norm2, leaf), torch.cat(pieces))


def test_the_first_member_stays_where_weight_sharing_finds_it() -> None:
    """Block-wise too: each gate of the recurrent cell keeps its own rows."""
    space = SPACES["recurrent"]
    small, wide = picked(space, 0), picked(space, -1)
    member = trained(space, small, 1)
    grown = grow(space, [member], wide)
    source = SharedWeights(space)
    source.assign(wide, dict(grown.named_parameters()))
    for name, tensor in source(small).items():
        torch.testing.assert_close(tensor, dict(member.module.named_parameters())[name].float())


def test_a_new_direction_is_orthogonal_where_it_can_be_and_least_used_where_not() -> None:
    """Restated by the eigenvectors of the Gram matrix, in numpy."""
    rows = np.random.default_rng(0).normal(size=(3, 6))
    direction = new_direction(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(rows @ direction, 0, atol=1e-12)
    assert np.linalg.norm(direction) == pytest.approx(1)
    crowded = np.random.default_rng(1).normal(size=(3, 2))
    expected = np.linalg.eigh(crowded.T @ crowded)[1][:, 0]
    assert abs(new_direction(torch.from_numpy(crowded)).numpy() @ expected) == pytest.approx(1)


def template_member(space: SearchSpace, architecture: Architecture, templates: int, seed: int) -> Member:
    def source(given: SearchSpace) -> TemplateWeights:
        return TemplateWeights(given, templates=templates, share="layer", seed=seed)

    return member_of(Supernet(space, Classification(4), source=source), architecture, [(random_inputs(space, 6), None)])


def test_orthogonal_blocks_are_mixed_from_the_templates_of_the_member_beside_them() -> None:
    """W = [[c0 T0, c2 T0], [c3 T1, c1 T1]] with c2 orthogonal to c0 and c1, and c3 to all three."""
    space = MLPSpace(12, 4, widths=(4, 8), depths=(2,))
    members = [template_member(space, picked(space, 0), 4, seed) for seed in (1, 2)]
    weight = grow(space, members, picked(space, 1), mode="orthogonal").linear2.weight.detach().double().numpy()
    banks = [member.mixtures["linear2.weight"] for member in members]
    c0, c1 = (bank.coefficients.detach().double().numpy() for bank in banks)
    t0, t1 = (bank.templates.detach().double().numpy() for bank in banks)
    np.testing.assert_allclose(weight[:4, :4], np.einsum("t,tij->ij", c0, t0), atol=1e-6)
    np.testing.assert_allclose(weight[4:, 4:], np.einsum("t,tij->ij", c1, t1), atol=1e-6)
    used = [c0, c1]
    for block, templates in ((weight[:4, 4:], t0), (weight[4:, :4], t1)):
        coefficients, residual, *_ = np.linalg.lstsq(templates.reshape(4, -1).T, block.ravel(), rcond=None)
        assert float(residual.sum()) < 1e-10
        assert np.linalg.norm(coefficients) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(np.array(used) @ coefficients, 0, atol=1e-5)
        used.append(coefficients)


@pytest.mark.parametrize("mode", ["orthogonal", "random"])
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_a_network_that_stays_mixed_starts_as_the_grown_one_and_is_made_plain_at_any_time(
    name: str, mode: Literal["orthogonal", "random"]
) -> None:
    stages = [Stage((4, 8), (1,), block="residual")]
    space = ConvNetSpace(stages, 4, resolutions=(6,), stem=Stem((2, 4))) if name == "residual" else MLP
    small, large = picked(space, 0), picked(space, 1)
    members = [template_member(space, small, 4, seed) for seed in (1, 2)]
    inputs = random_inputs(space, 6)
    plain, mixed = grow(space, members, large, mode=mode), grow_mixed(space, members, large, mode=mode)
    torch.testing.assert_close(mixed.eval()(inputs), plain.eval()(inputs))
    before = mixed(inputs).detach()
    optimizer = torch.optim.SGD(mixed.parameters(), lr=0.1)
    mixed.train()(inputs).square().sum().backward()
    assert all(given.grad is not None and bool(given.grad.any()) for given in mixed.coefficients)
    assert all(given.grad is not None and bool(given.grad.any()) for given in mixed.templates)
    trained = {name for name, given in mixed.module.named_parameters() if given.grad is not None}
    inner = "linear2.weight" if name == "mlp" else "stage1.block1.conv1.weight"
    assert (inner in trained) == (mode == "random")
    optimizer.step()
    after = mixed.eval()(inputs)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(mixed.plain().eval()(inputs), after)
    assert all(parameter.requires_grad for parameter in mixed.plain().parameters())


def test_staying_mixed_needs_templates_too() -> None:
    space = MLP
    with pytest.raises(GrowthError, match=r"train them with TemplateWeights\(share='layer'\)"):
        grow_mixed(space, [trained(space, picked(space, 0), seed) for seed in (1, 2)], picked(space, 1))


def test_random_blocks_have_the_spread_of_the_trained_weight_and_follow_the_seed() -> None:
    space = MLPSpace(12, 4, widths=(64, 128), depths=(2,))
    members = [trained(space, picked(space, 0), seed) for seed in (1, 2)]
    first, again, other = (grow(space, members, picked(space, 1), mode="random", seed=s) for s in (0, 0, 1))
    assert torch.equal(first.linear2.weight, again.linear2.weight)
    assert not torch.equal(first.linear2.weight, other.linear2.weight)
    block = first.linear2.weight.detach()[:64, 64:]
    assert float(block.std() / members[0].module.linear2.weight.detach().std()) == pytest.approx(1, abs=0.05)


def test_one_member_grows_by_templates_too() -> None:
    space = MLPSpace(12, 4, widths=(4, 8), depths=(2,))
    member = template_member(space, picked(space, 0), 5, 1)
    weight = grow(space, [member], picked(space, 1), mode="orthogonal").linear2.weight.detach()
    bank = member.mixtures["linear2.weight"]
    directions = [bank.coefficients]
    for block in (weight[:4, 4:], weight[4:, :4], weight[4:, 4:]):
        directions.append(torch.linalg.lstsq(bank.templates.flatten(1).T, block.reshape(-1, 1)).solution[:, 0])
    gram = torch.stack(directions) @ torch.stack(directions).T
    torch.testing.assert_close(gram, torch.eye(4), atol=1e-4, rtol=0)


def test_growth_leaves_the_members_and_the_global_random_state_alone() -> None:
    space = SPACES["mlp"]
    member = trained(space, picked(space, 0), 1)
    before = {name: value.clone() for name, value in member.module.state_dict().items()}
    state = torch.get_rng_state()
    grow(space, [member], picked(space, -1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in member.module.state_dict().items())


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    inputs = torch.randn(4, 3)
    torch.testing.assert_close(Ensemble([first, second])(inputs), (first(inputs) + second(inputs)) / 2)


def test_what_cannot_be_grown_is_refused() -> None:
    space = SPACES["mlp"]
    small, middle, large = (picked(space, position) for position in range(3))
    member, other = trained(space, small, 1), trained(space, middle, 2)
    for members, to, options, message in (
        ([member], large, {"mode": "copy"}, r"mode must be one of .* got 'copy'"),
        ([], large, {}, r"one or two trained networks, got 0"),
        ([member, member], large, {}, r"widths must add up: dimension 0 of linear1.weight is 8, .* have 3 and 3"),
        ([other], small, {}, r"must not be larger in any dimension; choose a wider"),
        ([member], large, {"mode": "orthogonal"}, r"train them with TemplateWeights\(share='layer'\)"),
        ([trained(space, space.smallest(), 1)], large, {}, r"in width alone, but the tensors \['linear2.weight'"),
        (
            [member, trained(space, picked(space, 1), 2)],
            space.architecture({**large, "layer3.width": 3}),
            {},
            r"must not be larger|widths must add up",
        ),
    ):
        with pytest.raises(GrowthError, match=message):
            grow(space, members, to, **options)  # type: ignore[arg-type]


def test_two_members_are_refused_where_a_tensor_between_input_and_output_stays_as_it_is() -> None:
    space = ConvNetSpace([Stage((4, 8), (1,), block="residual")], 4, resolutions=(6,))
    small, large = space.smallest(), space.largest()
    members = [trained(space, small, seed) for seed in (1, 2)]
    with pytest.raises(GrowthError, match=r"need their own \['stem.weight', .* or grow one network"):
        grow(space, members, large)
    grow(space, members[:1], large)


def test_zero_growth_is_refused_where_it_would_change_the_function() -> None:
    space = FactorySpace(
        Attention, {"width": [4, 8], "depth": [1, 2]}, input_shape=(6, 5), slicing={"qkv.*": {"blocks": {0: 3}}}
    )
    member = trained(space, space.architecture({"width": 4, "depth": 2}), 1)
    with pytest.raises(GrowthError, match=r"would change what the network computes.*'norm.0', 'norm.1'.*use mode"):
        grow(space, [member], space.largest())
    sizes = ConvNetSpace([Stage((4, 8), (1,), block="residual")], 4, resolutions=(6, 8))
    with pytest.raises(GrowthError, match=r"something else than a width differs"):
        grow(sizes, [trained(sizes, sizes.smallest(), 1)], sizes.largest())


def test_zero_growth_of_two_is_refused_where_their_features_meet_before_the_output() -> None:
    """The inner width of squeeze-excite is rounded up to 8 in both, so that the sum over channels is shared."""
    space = ConvNetSpace(
        [Stage((8, 16), (2,), (3,), (2,), squeeze_excite=True, project_shortcut=True)],
        4,
        resolutions=(6,),
        stem=Stem((16, 32)),
    )
    members = [trained(space, space.smallest(), seed) for seed in (1, 2)]
    with pytest.raises(GrowthError, match=r"would change what the network computes"):
        grow(space, members, space.largest())


def test_templates_too_small_for_the_new_part_are_refused() -> None:
    space = MLPSpace(12, 4, widths=(4, 12), depths=(2,))
    member = template_member(space, picked(space, 0), 4, 1)
    with pytest.raises(GrowthError, match=r"templates of \(4, 4\), too small for 8 in dimension"):
        grow(space, [member], picked(space, 1), mode="orthogonal")
