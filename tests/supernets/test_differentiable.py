"""Architecture parameters: how weights are drawn, what they cost, and how they learn beside the weights."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces import (
    Architecture,
    CellSpace,
    ConvNetSpace,
    DARTSSpace,
    FactorySpace,
    Head,
    MLPSpace,
    SearchSpace,
    Stage,
    TransformerSpace,
)
from supernets import (
    AlphaSampler,
    Classification,
    DifferentiableRule,
    DrNASSampler,
    ExpectedParameters,
    GDASSampler,
    RelaxationError,
    SharedWeights,
    SoftmaxSampler,
    SPOSSampler,
    Supernet,
    WeightSource,
    load,
    read_card,
    save,
)
from supernets.expected import Expectation
from supernets.held_out import HeldOut
from supernets.relaxation import Relaxation
from tests.supernets.conftest import Batches, spaces
from tests.supernets.family import SOURCES


def space() -> MLPSpace:
    return MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))


class Data(L.LightningDataModule):
    """Three classes of normal numbers; the mean of the first features tells them apart."""

    def _batches(self, count: int, seed: int, size: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(3, (count,), generator=generator)
        inputs = torch.randn(count, 6, generator=generator) + F.one_hot(labels, 6) * 3
        return list(zip(inputs.split(size), labels.split(size), strict=True))

    def train_dataloader(self) -> Batches:
        return Batches(self._batches(40, 0, 10))

    def val_dataloader(self) -> Batches:
        return Batches(self._batches(30, 1, 20))


def supernet(rule: DifferentiableRule, seed: int = 0) -> Supernet:
    return Supernet(space(), Classification(3), rule=rule, calibration=2, seed=seed)


def alphas(net: Supernet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.rule.named_parameters()}


# Samplers ------------------------------------------------------------------------------------------------------------


def draws(sampler: AlphaSampler, alpha: Tensor, count: int, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sampler.sample(alpha.expand(count, -1), step=step, generator=generator)


def test_drnas_draws_have_the_moments_of_their_dirichlet() -> None:
    """DrNAS: ``a ~ Dirichlet(elu(alpha) + 1)``; mean ``c_k/s`` and variance ``c_k (s - c_k) / (s^2 (s + 1))``."""
    alpha = torch.tensor([[1.5, 0.0, -1.0]])
    c = np.array([2.5, 1.0, math.exp(-1.0)])
    found, s = draws(DrNASSampler(), alpha, 40_000).double().numpy(), c.sum()
    np.testing.assert_allclose(found.mean(0), c / s, atol=0.01)
    np.testing.assert_allclose(found.var(0), c * (s - c) / (s**2 * (s + 1)), rtol=0.05)
    np.testing.assert_allclose(DrNASSampler().mean(alpha)[0].numpy(), c / s, rtol=1e-5)


def test_drnas_penalty_is_the_divergence_from_a_flat_dirichlet_and_vanishes_there() -> None:
    alpha = torch.tensor([[1.5, 0.0, -1.0]], dtype=torch.float64)
    c = [2.5, 1.0, math.exp(-1.0)]
    digamma = [float(torch.digamma(torch.tensor(v, dtype=torch.float64))) for v in (*c, sum(c))]
    expected = math.lgamma(sum(c)) - sum(map(math.lgamma, c)) - math.lgamma(3)
    expected += sum((value - 1) * (own - digamma[-1]) for value, own in zip(c, digamma, strict=False))
    assert float(DrNASSampler(0.5).penalty(alpha)) == pytest.approx(0.5 * expected, rel=1e-9)
    assert float(DrNASSampler(0.5).penalty(torch.zeros(2, 3))) == pytest.approx(0, abs=1e-6)


def test_drnas_draws_stay_finite_where_alpha_has_run_away() -> None:
    alpha = torch.tensor([[-60.0, -60.0, -60.0], [60.0, -60.0, 0.0]], requires_grad=True)
    for seed in range(50):
        weights = DrNASSampler().sample(alpha, step=0, generator=torch.Generator().manual_seed(seed))
        (gradient,) = torch.autograd.grad(weights.square().sum(), alpha)
        assert bool(weights.isfinite().all() and gradient.isfinite().all())
        assert torch.allclose(weights.sum(1), torch.ones(2))


def test_gdas_draws_one_candidate_with_softmax_probability_and_the_gradient_of_its_softmax() -> None:
    """GDAS, Eq. 3-6."""
    sampler, alpha = GDASSampler(100, (5.0, 0.5)), torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    found = draws(sampler, alpha, 20_000)
    assert set(found.detach().flatten().tolist()) == {0.0, 1.0}
    assert torch.allclose(found.mean(0), alpha[0].softmax(0), atol=0.01)
    assert [sampler.temperature(step) for step in (0, 50, 100, 1000)] == [5.0, 2.75, 0.5, 0.5]

    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(1, 3, generator=generator, dtype=torch.float64)
    soft = ((alpha.double().log_softmax(1) - (-uniform.log()).log()) / 2.75).softmax(1)
    weights = sampler.sample(alpha, step=50, generator=torch.Generator().manual_seed(3))
    noise = torch.tensor([0.3, -1.0, 2.0])
    (mine,) = torch.autograd.grad((weights * noise).sum(), alpha)
    (expected,) = torch.autograd.grad((soft * noise).sum(), alpha)
    assert torch.allclose(mine, expected, atol=1e-6)


def test_softmax_draws_nothing_and_spos_draws_uniformly() -> None:
    alpha = torch.tensor([[1.0, 0.0, -1.0]])
    assert torch.equal(draws(SoftmaxSampler(), alpha, 2), alpha.softmax(1).expand(2, -1))
    found = draws(SPOSSampler(), alpha, 9_000)
    assert set(found.flatten().tolist()) == {0.0, 1.0}
    assert torch.allclose(found.mean(0), torch.full((3,), 1 / 3), atol=0.02)


@pytest.mark.parametrize("sampler", [DrNASSampler(), GDASSampler(10), SPOSSampler()])
def test_draws_depend_on_seed_and_step_and_leave_the_global_random_state_alone(sampler: AlphaSampler) -> None:
    rule = DifferentiableRule(sampler)
    supernet(rule)
    before = torch.get_rng_state()
    runs = ((1, range(20)), (1, range(20)), (1, range(20, 40)), (2, range(20)))
    flat = [torch.cat([*itertools.chain(*(rule.draw(seed=a, step=b).values() for b in steps))]) for a, steps in runs]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    assert not torch.equal(flat[0], flat[3])


# Costs ---------------------------------------------------------------------------------------------------------------

COSTED: dict[str, Callable[[], SearchSpace]] = {
    "mlp": lambda: MLPSpace(6, 3, widths=(3, 5, 7), depths=(1, 2, 4)),
    "residual": lambda: ConvNetSpace(
        [Stage((4, 6), (1, 3), (3, 5), (0.5, 1), block="residual")], 3, resolutions=(7,), per_block=True
    ),
    "inverted": lambda: ConvNetSpace(
        [Stage((4, 6), (1, 2), (3, 5), (1, 2), squeeze_excite=True), Stage((8, 10), (1, 2), stride=2)],
        3,
        resolutions=(6,),
        head=Head((8, 12), expansion=2),
    ),
    "tied_transformer": lambda: TransformerSpace(
        7, 5, widths=(4, 6), depths=(1, 3), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4
    ),
}


@pytest.mark.parametrize("name", COSTED)
def test_expected_parameters_are_exact_at_every_architecture_and_an_expectation_between(name: str) -> None:
    given = COSTED[name]()
    expectation = Expectation(given, ExpectedParameters().terms(Relaxation(given)))
    generator = torch.Generator().manual_seed(0)

    def count(architecture: Architecture) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in given.build(architecture).parameters())

    for architecture in (given.smallest(), given.largest(), *(given.sample(generator) for _ in range(8))):
        assert float(expectation(given.relax(architecture))) == count(architecture)
    if len(given.choices) > 5:
        return
    weights = {c.name: torch.rand(c.size, generator=generator).double().softmax(0) for c in given.choices}
    total = 0.0
    for positions in itertools.product(*(range(choice.size) for choice in given.choices)):
        chosen = list(zip(given.choices, positions, strict=True))
        architecture = given.architecture({c.name: c.candidates[p] for c, p in chosen})
        total += math.prod(float(weights[c.name][p]) for c, p in chosen) * count(architecture)
    assert float(expectation(weights)) == pytest.approx(total, rel=1e-9)


def test_operations_have_no_expected_cost_yet_and_that_is_said() -> None:
    cells = CellSpace(3, resolution=6, widths=(4,), cells=1, affine=False)
    rule = DifferentiableRule(cost=ExpectedParameters(), cost_weight=1.0)
    with pytest.raises(ValueError, match=r"operations.*leave cost out"):
        Supernet(cells, Classification(3), rule=rule)


@pytest.mark.parametrize(
    "space",
    [
        CellSpace(3, resolution=6, widths=(4,), cells=1),
        DARTSSpace(3, in_channels=2, resolution=9, width=2, cells=3, nodes=1),
    ],
    ids=["cells", "darts"],
)
def test_scales_of_norms_that_would_undo_the_weights_of_operations_are_refused(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match=rf"affine: false in the space {type(space).__name__}"):
        Supernet(space, Classification(3), rule=DifferentiableRule())


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["bilevel", "single"])
def test_alpha_learns_beside_the_weights_in_steps_that_count_once(schedule: Any, fit: Callable[..., L.Trainer]) -> None:
    rule = DifferentiableRule(schedule=schedule, warmup=3, held_out=10, cost=ExpectedParameters(), cost_weight=0.1)
    net = supernet(rule)
    before, weights = alphas(net), net.source.state_dict()
    weights = {name: value.clone() for name, value in weights.items()}
    assert (rule.loss(2), rule.held_out_rows(2)) == (None, 0)
    assert rule.loss(3) is not None
    trainer = fit(net, None, 6, datamodule=Data())
    assert trainer.global_step == 6
    assert all(not torch.equal(value, before[name]) for name, value in alphas(net).items())
    assert any(not torch.equal(value, weights[name]) for name, value in net.source.state_dict().items())


def test_in_the_bilevel_schedule_alpha_follows_the_validation_batch_and_the_weights_do_not(
    fit: Callable[..., L.Trainer],
) -> None:
    """One step by hand: Adam on ``d loss(held-out part 0) / d alpha``, with the weights as they were."""
    rule = DifferentiableRule(DrNASSampler(0), held_out=10, weight_decay=0.0, lr=0.1)
    net = supernet(rule)
    twin = supernet(DifferentiableRule(DrNASSampler(0), held_out=10))
    batch = (Data().val_dataloader().batches[0][0][:10], Data().val_dataloader().batches[0][1][:10])
    loss, _ = twin.step_loss(twin.rule.held_out_slot(seed=0, step=0), batch, None)
    gradients = torch.autograd.grad(loss, list(twin.rule.parameters()))
    fit(net, None, 1, datamodule=Data())
    for gradient, start, end in zip(gradients, twin.rule.parameters(), net.rule.parameters(), strict=True):
        assert torch.allclose(end, start - 0.1 * gradient / (gradient.abs() + 1e-8), atol=1e-4)
    for slot in twin.rule.slots(twin.space, seed=0, step=0, score=lambda _: 0.0):
        assert not any(weights.requires_grad for weights in slot.architecture.values())


def test_the_weights_learn_nothing_from_the_validation_split(fit: Callable[..., L.Trainer]) -> None:
    """Another validation split moves alpha, and after one step of both the weights only through alpha's draw."""

    class Other(Data):
        def val_dataloader(self) -> Batches:
            return Batches(self._batches(30, 2, 20))

    nets = [supernet(DifferentiableRule(SoftmaxSampler(), held_out=10, lr=1e-9)) for _ in range(2)]
    for net, data in zip(nets, (Data(), Other()), strict=True):
        fit(net, None, 3, datamodule=data)
    for name, value in nets[0].source.state_dict().items():
        assert torch.allclose(value, nets[1].source.state_dict()[name], atol=1e-6), name
    assert any(not torch.equal(value, alphas(nets[1])[name]) for name, value in alphas(nets[0]).items())


def test_a_resumed_search_goes_on_as_if_it_had_not_stopped(fit: Callable[..., L.Trainer], tmp_path: Path) -> None:
    def rule() -> DifferentiableRule:
        return DifferentiableRule(held_out=10)

    whole, first, second = supernet(rule()), supernet(rule()), supernet(rule(), seed=0)
    fit(whole, None, 7, datamodule=Data())
    trainer = fit(first, None, 4, datamodule=Data())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    fit(second, None, 7, ckpt_path=str(tmp_path / "half.ckpt"), datamodule=Data())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_saved_supernet_keeps_alpha_and_names_what_it_selected(tmp_path: Path) -> None:
    net = supernet(DifferentiableRule(GDASSampler(10), schedule="single"))
    with torch.no_grad():
        for value in net.rule.parameters():
            value.copy_(torch.randn(value.shape))
    restored = load(save(net, tmp_path / "saved"))
    assert alphas(restored).keys() == alphas(net).keys()
    assert all(torch.equal(value, alphas(net)[name]) for name, value in alphas(restored).items())
    assert restored.rule.selected() == net.rule.selected()
    assert read_card(tmp_path / "saved")["selected"] == dict(net.rule.selected())
    assert restored.tree() == net.tree()


def test_selected_takes_the_largest_alphas_and_drops_what_they_make_inactive() -> None:
    rule = DifferentiableRule()
    net = supernet(rule)
    rule.restore({"depth": [1.0, 0.0], "layer1.width": [0.0, 2.0], "layer2.width": [0.0, 5.0]})
    assert dict(rule.selected()) == {"depth": 1, "layer1.width": 8}
    assert net.anchors()["selected"] == rule.selected()
    found = rule.diagnostics()
    share = (math.e / (math.e + 1), 1 / (math.e + 1))
    dirichlet = (2 / 3, 1 / 3)
    assert found["entropy/depth"] == pytest.approx(-sum(p * math.log2(p) for p in dirichlet), rel=1e-5), share
    assert found["selected/depth"] == 0
    spos = DifferentiableRule(SPOSSampler())
    supernet(spos)
    assert spos.selected() is None
    assert spos.optimizer() is None


def test_validation_reports_the_selected_subnetwork_and_what_alpha_says(fit: Callable[..., L.Trainer]) -> None:
    net = supernet(DifferentiableRule(held_out=10, cost=ExpectedParameters(), cost_weight=0.1))
    trainer = fit(net, None, 4, datamodule=Data())
    names = set(trainer.callback_metrics)
    assert {"val/selected/accuracy", "val/rule/entropy/depth", "val/rule/selected/depth"} <= names
    assert 0 < float(trainer.callback_metrics["val/rule/expected/params"]) < 200


@pytest.mark.parametrize("name", ["transformer", "cells"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_of_relaxed_weights_trains_with_it_and_the_others_are_refused(
    source: str, name: str, fit: Callable[..., L.Trainer], labelled: Callable[..., Batches]
) -> None:
    given = spaces()[name]
    try:
        rule = DifferentiableRule(schedule="single")
        net = Supernet(given, Classification(4), source=lambda space: SOURCES[source](space, 1), rule=rule)
    except ValueError as refusal:
        assert any(word in str(refusal) for word in ("use ", "set "))  # noqa: PT017
        return
    before, alpha = {name: value.clone() for name, value in net.source.named_parameters()}, rule.learned()
    fit(net, labelled(given), 2)
    assert all(bool(value.isfinite().all()) for value in net.source.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in net.source.named_parameters())
    assert all(rule.learned()[name] != values for name, values in alpha.items())


def test_a_cost_drives_alpha_to_small_candidates_and_a_target_only_down_to_it(fit: Callable[..., L.Trainer]) -> None:
    chosen = {}
    for name, weight, target in (("none", 0.0, None), ("always", 20.0, None), ("far above", 20.0, 10_000.0)):
        rule = DifferentiableRule(
            SoftmaxSampler(),
            held_out=10,
            lr=0.1,
            cost=ExpectedParameters() if weight else None,
            cost_weight=weight,
            cost_target=target,
        )
        fit(supernet(rule), None, 20, datamodule=Data())
        chosen[name] = rule.learned()
    assert all(values[0] > values[-1] + 1 for values in chosen["always"].values())
    assert chosen["far above"] == chosen["none"]


def test_a_target_counts_while_the_selected_architecture_costs_more_and_an_expectation_above_it_does_not() -> None:
    rule = DifferentiableRule(SoftmaxSampler(), cost=ExpectedParameters(), cost_weight=3.0, cost_target=70.0)
    net = supernet(rule)
    expectation = Expectation(net.space, ExpectedParameters().terms(Relaxation(net.space)))
    undecided = {"depth": [0.1, 0.0], "layer1.width": [0.1, 0.0], "layer2.width": [0.1, 0.0]}  # 47 parameters
    rule.restore(undecided)
    assert expectation(rule.mean()).item() > 70 > rule.diagnostics()["selected/params"]
    assert rule.loss(0).item() == 0
    rule.restore(undecided | {"layer1.width": [0.0, 0.1]})  # 91 parameters
    assert rule.loss(0).item() == pytest.approx(3.0 * expectation(rule.mean()).item() / 70, rel=1e-6)


@pytest.mark.parametrize("step", [0, 1, 4, 5, 13])
def test_held_out_parts_depend_on_the_step_alone_and_split_batches_evenly(step: int) -> None:
    def loader() -> Iterator[tuple[Tensor, str]]:
        yield torch.arange(10), "first"
        yield torch.arange(10, 15), "second"

    steady, jump = HeldOut(loader, 4), HeldOut(loader, 4)
    parts = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    for before in range(step):
        steady(before)
    assert steady(step)[0].tolist() == jump(step)[0].tolist() == parts[step % 3]


# Refusals ------------------------------------------------------------------------------------------------------------


class Single(WeightSource):
    """Knows single architectures only."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.shared = SharedWeights(space)

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        return self.shared(architecture)


class Sum(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x).sum(1, keepdim=True).expand(-1, 3)
        return outputs


@pytest.mark.parametrize(
    ("given", "source", "message"),
    [
        (space(), Single, "Single does not give: Single gives .* single architectures only; use SharedWeights"),
        (space(), None, "kernel_transform: false"),
        (ConvNetSpace([Stage((4,), (1,))], 3, resolutions=(4, 6)), SharedWeights, "'resolution' has no place"),
        (FactorySpace(Sum, {"width": [2, 4]}, input_shape=(3,)), SharedWeights, "'width' has no place for a mask"),
        (MLPSpace(3, 3, widths=(4,), depths=(1,)), SharedWeights, None),
        (ConvNetSpace([Stage((4,), (1,))], 3, resolutions=(4,)), SharedWeights, "none; use UniformRule"),
    ],
)
def test_what_does_not_go_together_is_refused_at_construction(given: Any, source: Any, message: str | None) -> None:
    if source is None:
        given = ConvNetSpace([Stage((4,), (1,), (3, 5))], 3, resolutions=(4,))

        def source(space: SearchSpace) -> SharedWeights:
            return SharedWeights(space, kernel_transform=True)

    if message is None:
        Supernet(given, Classification(3), source=source, rule=DifferentiableRule())
        return
    with pytest.raises((ValueError, RelaxationError), match=message):
        Supernet(given, Classification(3), source=source, rule=DifferentiableRule())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "both"}, "'bilevel' or 'single', got 'both'"),
        ({"lr": 0}, "lr > 0"),
        ({"held_out": 1}, "held_out >= 2"),
        ({"cost": ExpectedParameters()}, "belong together"),
        ({"cost_weight": 1.0}, "belong together"),
        ({"cost_target": 5.0}, "needs both"),
    ],
)
def test_arguments_out_of_range_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DifferentiableRule(**arguments)


def test_samplers_check_their_arguments() -> None:
    with pytest.raises(ValueError, match="regularisation must be >= 0"):
        DrNASSampler(-1)
    with pytest.raises(ValueError, match="temperatures above 0"):
        GDASSampler(10, (1.0, 0.0))


def test_without_held_out_data_the_bilevel_schedule_says_what_to_do(fit: Callable[..., L.Trainer]) -> None:
    with pytest.raises(ValueError, match=r"pass datamodule=... instead of dataloaders, or set schedule: single"):
        fit(supernet(DifferentiableRule()), Data().train_dataloader(), 1)
    with pytest.raises(ValueError, match=r"validation_fraction above 0.*or set schedule: single"):
        HeldOut(list, 4)(0)


def test_alpha_of_another_space_is_refused() -> None:
    rule = DifferentiableRule()
    with pytest.raises(ValueError, match="give it to a Supernet"):
        rule.mean()
    supernet(rule)
    with pytest.raises(ValueError, match="use the space it was learned on"):
        rule.restore({"depth": [0.0]})


def test_a_target_that_no_architecture_meets_is_refused() -> None:
    rule = DifferentiableRule(cost=ExpectedParameters(), cost_weight=1.0, cost_target=0.4)
    with pytest.raises(
        ValueError, match=r"cost_target must be at least the params of the smallest .* got 0.4; .*share"
    ):
        supernet(rule)


def test_a_warmup_as_long_as_the_training_is_refused(fit: Callable[..., L.Trainer]) -> None:
    with pytest.raises(ValueError, match=r"warmup must end before the training of 3 steps does, got 3; set warmup low"):
        fit(supernet(DifferentiableRule(warmup=3)), None, 3, datamodule=Data())
