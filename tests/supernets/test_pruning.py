"""Groups of filters that gates prune, beside the bits of what is left."""

import math

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from search_spaces import (
    Architecture,
    ArchitectureCost,
    ConvNetSpace,
    MLPSpace,
    QuantizedSpace,
    RelaxedArchitecture,
    SearchSpace,
    Stage,
    Stem,
    VisionTransformerSpace,
    cost_of,
)
from supernets import (
    LSQ,
    SBS,
    DifferentiableRule,
    ImplicitWeights,
    SBSRule,
    Slot,
    StatsQ,
    UniformRule,
    WeightQuantizer,
    sort_channels,
)
from supernets.gate_costs import GatedCost
from supernets.pruning import ChannelGroups
from tests.supernets.gates import made, observed


class WeightedBits(ArchitectureCost):
    """Bits of all weights and inputs, those of a layer times a width: no sum over single choices."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        del model
        bits = sum(float(v) for name, v in architecture.items() if name.endswith("bits"))
        widths = math.prod(float(v) for name, v in architecture.items() if not name.endswith("bits"))
        return 10.0 + bits * widths


def convnet(expansions: tuple[float, ...] = (0.5, 0.75, 1.0), **more) -> QuantizedSpace:
    stages = [Stage((8,), (2,), expansions=expansions, block="residual")]
    return QuantizedSpace(
        ConvNetSpace(stages, 3, in_channels=1, resolutions=(6,), stem=Stem((4,)), per_block=True), **more
    )


def hold(rule: SBSRule, space: SearchSpace, values: dict[str, object]) -> None:
    """Set thresholds so that gates lead to ``values``, whatever is measured."""
    for key, thresholds in rule.thresholds.items():
        choice = space.choice(key.replace("/", "."))
        place = choice.index(values.get(choice.name, choice.candidates[-1]))
        thresholds.data = torch.tensor([0.0 if i < place else 5.0 for i in range(choice.size - 1)])


SPACES = {
    "convnet": (convnet(), (1, 6, 6), ["*.expansion"]),
    "mlp": (QuantizedSpace(MLPSpace(6, 3, widths=(4, 6, 8), depths=(3,))), (6,), ["*.width"]),
    "vision transformer": (
        QuantizedSpace(
            VisionTransformerSpace(
                3, 8, 4, in_channels=1, widths=(8, 16), depths=(2,), heads=(2,), ffn_ratios=(1.0, 2.0), head_dim=8
            )
        ),
        (1, 8, 8),
        ["*ffn_ratio"],
    ),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("quantizer", [SBS(), LSQ("tensor")], ids=lambda q: type(q).__name__)
def test_the_masked_network_at_hard_gates_is_the_subnetwork_that_they_select(
    name: str, quantizer: WeightQuantizer
) -> None:
    space, shape, prune = SPACES[name]
    rule = SBSRule(WeightedBits, prune=prune)
    supernet = made(space, rule, quantizer)
    batch = observed(supernet, *shape)
    supernet.train()
    generator = torch.Generator().manual_seed(0)
    fixed = {c.name: c.candidates[-1] for c in space.space.choices if c.name.replace(".", "/") not in rule.thresholds}
    for step in range(4):
        wanted = space.architecture({**space.sample(generator), **fixed})
        hold(rule, space, dict(wanted))
        assert rule.selected() == wanted
        (slot,) = rule.slots(space, seed=0, step=step, score=lambda _: 0.0)
        gated, _ = supernet.step_loss(slot, batch, None)
        single, _ = supernet.step_loss(Slot(wanted, "labels"), batch, None)
        assert float(gated.detach()) == pytest.approx(float(single.detach()), abs=2e-5)


def test_gates_of_groups_learn_with_those_of_weights_and_get_gradients_from_masks() -> None:
    space, shape, prune = SPACES["convnet"]
    rule = SBSRule(WeightedBits, prune=prune)
    supernet = made(space, rule)
    batch = observed(supernet, *shape)
    hold(rule, space, {"stage1.block1.expansion": 0.75, "stage1.block2.expansion": 0.75})
    for step in range(2):
        rule.zero_grad()
        (slot,) = rule.slots(space, seed=0, step=step, score=lambda _: 0.0)
        supernet.step_loss(slot, batch, None)[0].backward()
        for block in ("block1", "block2"):
            gradient = rule.thresholds[f"stage1/{block}/expansion"].grad
            if step:
                assert gradient is None or not bool(gradient.any())
            else:  # both neighbours, the open group and the closed one
                assert bool((gradient != 0).all())


def test_the_metric_of_a_group_is_the_norm_of_the_weights_that_read_it_relative_to_all() -> None:
    space = convnet()
    supernet = made(space, SBSRule(WeightedBits, prune=["*.expansion"]))
    groups = ChannelGroups(space.space, ["stage1.block1.expansion"])
    reader = supernet.source.wrapped.largest.stage1.block1.conv2.weight.detach()
    norms = [float(reader[:, i].abs().sum()) for i in range(8)]
    expected = [
        sum(norms[4:6]) / 2 / (sum(norms) / 8),
        sum(norms[6:8]) / 2 / (sum(norms) / 8),
    ]
    found = groups.metrics(supernet.source.wrapped.stored())
    assert found["stage1.block1.expansion"].tolist() == pytest.approx(expected)


def test_the_listener_is_told_the_metrics_when_masks_have_run() -> None:
    space, shape, prune = SPACES["convnet"]
    rule = SBSRule(WeightedBits, prune=prune)
    supernet = made(space, rule)
    batch = observed(supernet, *shape)
    wanted = ChannelGroups(space.space, ["stage1.block2.expansion"]).metrics(supernet.source.wrapped.stored())
    (slot,) = rule.slots(space, seed=0, step=0, score=lambda _: 0.0)
    supernet.step_loss(slot, batch, None)
    found = rule.metrics["stage1/block2/expansion"]
    assert found.tolist() == pytest.approx(wanted["stage1.block2.expansion"].tolist())
    assert found.tolist() != [1.0, 1.0]


def test_the_gradient_of_the_cost_is_that_of_its_expectation_over_candidates() -> None:
    space = convnet()
    cost = cost_of(space, WeightedBits)
    present = space.sample(torch.Generator().manual_seed(1))
    gated = GatedCost(space, cost)
    weights = {
        c.name: torch.nn.functional.one_hot(torch.tensor(c.index(present[c.name])), c.size).float().requires_grad_()
        for c in space.choices
        if c.size > 1
    }
    total = gated(present, weights)
    assert float(total.detach()) == cost(present)
    total.backward()
    for name, given in weights.items():
        choice = space.choice(name)
        for k, candidate in enumerate(choice.candidates):
            near = abs(k - choice.index(present[name])) <= 1
            expected = cost(space.architecture({**present, name: candidate})) if near else 0.0
            assert float(given.grad[k]) == pytest.approx(expected)


def test_a_heavy_cost_prunes_and_the_most_important_channels_stay() -> None:
    space = convnet()
    rule = SBSRule(WeightedBits, 30.0, prune=["*.expansion"], warmup=2, lr=0.5)
    supernet = made(space, rule, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, (x[:, 0, 0, 0] > 0).long()), batch_size=16)
    reader = supernet.source.wrapped.largest.stage1.block1.conv2.weight
    with torch.no_grad():
        reader[:, :4] *= 0.01  # the first four channels matter least
    trainer = L.Trainer(
        max_steps=14,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(supernet, data, data)
    selected = rule.selected()
    assert selected["stage1.block1.expansion"] == 0.5
    assert rule.diagnostics()["selected/stage1.block1.expansion"] == 0.5
    norms = reader.detach().abs().transpose(0, 1).flatten(1).sum(1)
    assert float(norms[:4].min()) > 10 * float(norms[4:].max())
    assert rule.whole
    module = supernet.extract(selected)
    assert module.get_submodule("stage1.block1.conv1").weight.shape[0] == 4
    again = SBSRule(WeightedBits, prune=["*.expansion"])
    made(space, again)
    again.restore(rule.learned())
    assert again.selected() == selected


def test_channels_are_sorted_when_gates_begin_and_at_once_where_some_begin_closed() -> None:
    space = convnet()
    whole = SBSRule(WeightedBits, prune=["*.expansion"], warmup=3)
    closed = SBSRule(WeightedBits, prune=["*.expansion"], warmup=3, start={"stage1.block1.expansion": 0.75})
    bits = SBSRule(WeightedBits, architecture="smallest", warmup=3)
    few = {"stage1.block1.conv1.weight_bits": 4}
    both = SBSRule(WeightedBits, prune=["stage1.block1.*"], warmup=3, start=few)
    for rule, expected in ((whole, [3]), (closed, [0]), (bits, []), (both, [3])):
        made(space, rule)
        assert [step for step in range(5) if rule.sorts(step)] == expected
    (slot,) = closed.slots(space, seed=0, step=0, score=lambda _: 0.0)
    assert slot.architecture["stage1.block1.expansion"] == 0.75
    assert slot.architecture["stage1.block2.expansion"] == 1.0


@pytest.mark.parametrize("quantizer", [SBS(), LSQ(), LSQ("tensor"), StatsQ()], ids=lambda q: str(vars(q)))
def test_sorted_channels_take_their_scales_and_moments_along(quantizer: WeightQuantizer) -> None:
    space, shape, _ = SPACES["convnet"]
    supernet = made(space, UniformRule(), quantizer)
    batch = observed(supernet, *shape)
    optimizer = torch.optim.SGD(supernet.source.parameters(), lr=1e-3, momentum=0.9)
    with torch.no_grad():
        for parameter in supernet.source.weight_scales.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    largest = space.largest()

    def loss() -> Tensor:
        supernet.source.zero_grad()
        return supernet.step_loss(Slot(largest, "labels"), batch, None)[0]

    loss().backward()
    optimizer.step()
    for parameter in supernet.source.parameters():
        if "momentum_buffer" in optimizer.state[parameter]:
            optimizer.state[parameter]["momentum_buffer"] = parameter.detach().clone()
    before, first = float(loss().detach()), supernet.source.wrapped.largest.stage1.block1.conv1.weight.detach().clone()
    assert supernet.source.sortable
    found = sort_channels(supernet.source, optimizer)
    assert len(found.verified) >= 2
    assert not torch.equal(first, supernet.source.wrapped.largest.stage1.block1.conv1.weight)
    assert float(loss().detach()) == pytest.approx(before, abs=1e-5)
    for parameter, state in optimizer.state.items():
        if "momentum_buffer" in state:
            assert torch.equal(state["momentum_buffer"], parameter)


def test_alpha_mixes_widths_and_bits_in_one_pass() -> None:
    space, shape, _ = SPACES["convnet"]
    rule = DifferentiableRule(schedule="single")
    supernet = made(space, rule, LSQ())
    batch = observed(supernet, *shape)
    (slot,) = rule.slots(space, seed=0, step=0, score=lambda _: 0.0)
    supernet.step_loss(slot, batch, None)[0].backward()
    for name in ("stage1/block1/expansion", "stage1.block1.conv2.weight_bits".replace(".", "/")):
        assert bool((rule.alpha[name].grad != 0).any())
    hard = space.sample(torch.Generator().manual_seed(3))
    weights = {name: given.clone().requires_grad_() for name, given in space.relax(hard).items()}
    supernet.train()
    mixed, _ = supernet.step_loss(Slot(RelaxedArchitecture(weights), "labels"), batch, None)
    single, _ = supernet.step_loss(Slot(hard, "labels"), batch, None)
    assert float(mixed.detach()) == pytest.approx(float(single.detach()), abs=2e-5)


def test_what_cannot_be_pruned_is_refused_with_the_field_and_the_way_out() -> None:
    with pytest.raises(
        ValueError, match=r"SBSRule.prune must be globs .* 'no.such' matches none; choices are \['stage"
    ):
        made(convnet(), SBSRule(WeightedBits, prune=["no.such"]))
    with pytest.raises(ValueError, match=r"SBSRule.prune: StatsQ takes its scales from all weights .* use LSQ or SBS"):
        made(convnet(), SBSRule(WeightedBits, prune=["*.expansion"]), StatsQ())
    with pytest.raises(ValueError, match=r"SBSRule.prune: .* set the source of QuantizedWeights to SharedWeights"):
        made(convnet(), SBSRule(WeightedBits, prune=["*.expansion"]), source=ImplicitWeights)
    with pytest.raises(ValueError, match=r"'stage1.block1.expansion' cannot be pruned .* the same number of them"):
        made(convnet((0.45, 0.5, 1.0)), SBSRule(WeightedBits, prune=["*.block1.expansion"]))
    deep = QuantizedSpace(MLPSpace(6, 3, widths=(4, 8), depths=(1, 2)))
    with pytest.raises(ValueError, match=r"'depth' cannot be pruned by gates: .* and it opens none"):
        made(deep, SBSRule(WeightedBits, prune=["depth"]))
    stages = [Stage((4, 8), (1,), expansions=(0.5, 1.0), block="residual")]
    wide = QuantizedSpace(ConvNetSpace(stages, 3, in_channels=1, resolutions=(6,), stem=Stem((4,))))
    with pytest.raises(ValueError, match=r"'stage1.width' and 'stage1.expansion' open the same channels"):
        made(wide, SBSRule(WeightedBits, prune=["*"]))
    with pytest.raises(
        ValueError, match=r"\['stage1.width'\] of the architecture are smaller; set them to their largest"
    ):
        made(wide, SBSRule(WeightedBits, prune=["*.expansion"], architecture="smallest"))
    with pytest.raises(ValueError, match=r"SBSRule.start .* \['stage1.expansion'\] have none; give their values as"):
        made(wide, SBSRule(WeightedBits, start={"stage1.expansion": 0.5}))
    kernels = QuantizedSpace(
        ConvNetSpace([Stage((4,), (1,), kernels=(3, 5), block="residual")], 3, in_channels=1, resolutions=(6,))
    )
    with pytest.raises(ValueError, match=r"'stage1.kernel' cannot be pruned by gates: .* and it opens none"):
        made(kernels, SBSRule(WeightedBits, prune=["*"]))
    with pytest.raises(ValueError, match="at least the cost of the lowest bits and widths, 15"):
        made(convnet(), SBSRule(WeightedBits, prune=["*.expansion"], cost_target=1.0))
