"""Bits by gates that learn beside the weights."""

import copy
from collections.abc import Mapping

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from search_spaces import (
    Architecture,
    ArchitectureCost,
    Choice,
    ConvNetSpace,
    MLPSpace,
    QuantizedSpace,
    RelaxedArchitecture,
    SearchSpace,
    Stage,
    Stem,
    VisionTransformerSpace,
)
from supernets import (
    LSQ,
    SBS,
    Classification,
    DifferentiableRule,
    SBSRule,
    SharedWeights,
    Slot,
    StatsQ,
    Supernet,
    WeightQuantizer,
)
from tests.supernets.gates import made, observed


class Products(ArchitectureCost):
    """The product of the bits of each layer, and 100 for all else."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        del model
        pairs = [
            (bits, architecture[name.replace("weight_bits", "input_bits")])
            for name, bits in architecture.items()
            if name.endswith(".weight_bits")
        ]
        return 100.0 + sum(float(w) * float(a) for w, a in pairs)


def mlp(**more) -> QuantizedSpace:
    return QuantizedSpace(MLPSpace(6, 3, widths=(8,), depths=(3,)), **more)


def set_bits(rule: SBSRule, bits: Mapping[str, int]) -> None:
    for name, thresholds in rule.thresholds.items():
        open_ones = {2: 0, 4: 1, 8: 2}[bits[name.replace("/", ".")]]
        thresholds.data = torch.tensor([0.0 if i < open_ones else 5.0 for i in range(2)])


SPACES = {
    "mlp": (mlp(), (6,)),
    "convnet": (
        QuantizedSpace(
            ConvNetSpace([Stage((4, 8), (1, 2), block="residual")], 3, in_channels=1, resolutions=(6,), stem=Stem((4,)))
        ),
        (1, 6, 6),
    ),
    "vision transformer": (
        QuantizedSpace(
            VisionTransformerSpace(
                3, 8, 4, in_channels=1, widths=(16,), depths=(1, 2), heads=(2,), ffn_ratios=(2.0,), head_dim=8
            )
        ),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("quantizer", [SBS(), LSQ(), StatsQ()], ids=lambda q: type(q).__name__)
def test_through_hard_gates_the_network_is_that_of_its_bits(name: str, quantizer: WeightQuantizer) -> None:
    space, shape = SPACES[name]
    rule = SBSRule(Products)
    supernet = made(space, rule, quantizer)
    batch = observed(supernet, *shape)
    supernet.train()
    for number in range(3):
        bits = {n.replace("/", "."): (2, 4, 8)[(number + i) % 3] for i, n in enumerate(rule.thresholds)}
        set_bits(rule, bits)
        architecture = rule.selected()
        assert all(architecture[choice] == b for choice, b in bits.items())
        (slot,) = rule.slots(space, seed=0, step=number, score=lambda _: 0.0)
        gated, _ = supernet.step_loss(slot, batch, None)
        single, _ = supernet.step_loss(Slot(architecture, "labels"), batch, None)
        assert float(gated.detach()) == pytest.approx(float(single.detach()), abs=1e-6)


def test_the_cost_is_a_function_of_the_gates_and_its_gradient_closes_them() -> None:
    rule = SBSRule(Products, 0.5)
    made(mlp(), rule)
    names = {name.replace("/", ".") for name in rule.thresholds}
    set_bits(rule, dict.fromkeys(names, 4))
    assert float(rule.loss(0).detach()) == pytest.approx(0.5 * torch.tensor(100 + 2 * 16.0).log().item())
    set_bits(rule, dict.fromkeys(names, 8))
    total = 100 + 2 * 64.0
    for step, kind in ((0, "weight_bits"), (1, "input_bits")):
        rule.zero_grad()
        rule.loss(step).backward()
        for name, thresholds in rule.thresholds.items():
            if not name.endswith(kind):
                assert thresholds.grad is None
                continue
            slope = 0.25 * 1.0 - (1 / (1 + torch.tensor(-1.0).exp()) - 0.5) ** 2  # sigma (1 - sigma) at metric 1
            expected = -0.5 * (64 - 32) / total * float(slope)
            assert thresholds.grad.tolist() == pytest.approx([0.0, expected])


def test_a_target_stops_the_cost() -> None:
    rule = SBSRule(Products, cost_target=140.0)
    made(mlp(), rule)
    names = {name.replace("/", ".") for name in rule.thresholds}
    set_bits(rule, dict.fromkeys(names, 4))
    assert float(rule.loss(0).detach()) == 0
    set_bits(rule, dict.fromkeys(names, 8))
    assert float(rule.loss(0).detach()) == pytest.approx(0.1 * torch.tensor(228 / 140).log().item(), rel=1e-5)


def test_a_closed_gate_is_not_wound_up_and_opens_as_soon_as_the_task_wants_it() -> None:
    rule = SBSRule(Products)
    made(mlp(), rule)
    rule.thresholds["linear2/weight_bits"].data = torch.tensor([0.2, 9.0])
    rule.thresholds["linear3/weight_bits"].data = torch.tensor([-3.0, 0.5])
    rule.metrics["linear2/weight_bits"].data = torch.tensor([0.9, 0.6])
    rule.weights(0)
    assert rule.thresholds["linear2/weight_bits"].tolist() == pytest.approx([0.2, 0.85])
    assert rule.thresholds["linear3/weight_bits"].tolist() == [0.0, 0.5]
    rule.thresholds["linear2/weight_bits"].data -= torch.tensor([0.0, 0.3])
    assert rule.weights(0)["linear2.weight_bits"].tolist() == [0, 0, 1]


def test_what_is_selected_holds_the_target_by_closing_the_gates_nearest_to_it() -> None:
    rule = SBSRule(Products, cost_target=140.0, warmup=1, until=2)
    made(mlp(), rule)  # 100 and the products of the bits of two layers: 228 at 8 bits
    near = {
        "linear2/weight_bits": 0.9,
        "linear2/input_bits": 0.1,
        "linear3/weight_bits": 0.2,
        "linear3/input_bits": 0.3,
    }
    for name, threshold in near.items():
        rule.thresholds[name].data = torch.tensor([0.05, threshold])
        rule.metrics[name].data = torch.ones(2)
    # margins 0.1, 0.9, 0.8 and 0.7: 4x8 + 8x8, then 4x8 + 8x4, then 4x8 + 4x4, then 4x4 + 4x4 = 32 <= 40
    assert rule.diagnostics()["selected/cost"] == 132.0
    assert {v for n, v in rule.selected().items() if n.endswith("bits") and n.startswith(("linear2", "linear3"))} == {4}
    assert float(rule.loss(1).detach()) == pytest.approx(0.1 * torch.tensor(228 / 140).log().item(), rel=1e-5)
    for step, bits in ((0, 8), (2, 4)):  # the warm-up is at the bits that gates start with
        (slot,) = rule.slots(mlp(), seed=0, step=step, score=lambda _: 0.0)
        assert slot.architecture["linear2.weight_bits"] == bits


def test_gates_alternate_before_the_forward_pass() -> None:
    space, rule = mlp(), SBSRule(Products)
    supernet = made(space, rule)
    batch = observed(supernet, 6)
    for step in range(2):
        rule.zero_grad()
        (slot,) = rule.slots(space, seed=0, step=step, score=lambda _: 0.0)
        supernet.step_loss(slot, batch, None)[0].backward()
        moved = {name for name, t in rule.thresholds.items() if t.grad is not None and bool((t.grad != 0).any())}
        assert moved == {n for n in rule.thresholds if n.endswith("input_bits" if step else "weight_bits")}


def test_residuals_of_weights_are_the_latest_and_those_of_inputs_a_running_mean() -> None:
    space, rule = mlp(), SBSRule(Products)
    supernet = made(space, rule)
    batch = observed(supernet, 6)
    (slot,) = rule.slots(space, seed=0, step=0, score=lambda _: 0.0)
    supernet.step_loss(slot, batch, None)
    source = supernet.source
    weight = source.wrapped(space.space.largest())["linear2.weight"].detach()
    v = source.scale("linear2", 2, space.space.largest()).detach()
    z = ((weight / v).clamp(-1, 1) + 1) / 2
    for gate, b in enumerate((2, 4)):
        step = 1 / (2**b - 1)
        expected = float((z - step * (z / step).round()).square().mean() / (step**2 / 12))
        assert float(rule.metrics["linear2/weight_bits"][gate]) == pytest.approx(expected, rel=1e-4)
    assert all(0.9 < float(m) < 1.01 for m in rule.metrics["linear2/input_bits"])


def test_ranks_that_see_different_data_have_the_same_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [SBSRule(Products) for _ in range(2)]
    seen = [torch.tensor([0.8, 0.6]), torch.tensor([0.4, 1.2])]
    for rule in rules:
        made(mlp(), rule)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rule, other in zip(rules, reversed(seen), strict=True):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, other=other: tensor.add_(other))
        rule._listen({"linear2.input_bits": seen[rules.index(rule)]})
    for rule in rules:
        assert rule.metrics["linear2/input_bits"].tolist() == pytest.approx([0.9 + 0.1 * 0.6, 0.9 + 0.1 * 0.9])


def test_training_under_a_heavy_cost_lowers_bits_and_keeps_the_gates_in_the_checkpoint() -> None:
    space = mlp()
    rule = SBSRule(Products, 20.0, warmup=2, lr=1.0)
    supernet = made(space, rule)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long()), batch_size=16)
    trainer = L.Trainer(
        max_steps=10,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(supernet, data, data)
    bits = {name: value for name, value in rule.selected().items() if name.endswith("bits")}
    assert set(bits.values()) == {2}
    assert rule.diagnostics()["selected/cost"] == 100 + 2 * 4
    again = SBSRule(Products, 20.0)
    other = made(space, again)
    other.load_state_dict(supernet.state_dict())
    assert again.selected() == rule.selected()
    fresh = SBSRule(Products, 20.0)
    made(space, fresh)
    fresh.restore(rule.learned())
    assert fresh.selected() == rule.selected()
    assert copy.deepcopy(supernet).rule.selected() == rule.selected()


def test_the_warm_up_trains_the_starting_bits_and_gates_may_start_at_an_allocation() -> None:
    space = mlp()
    start = {"linear2.weight_bits": 4, "linear3.input_bits": 2}
    rule = SBSRule(Products, start=start, warmup=1)
    made(space, rule)
    (slot,) = rule.slots(space, seed=0, step=0, score=lambda _: 0.0)
    assert {n: slot.architecture[n] for n in start} == start
    assert slot.architecture["linear2.input_bits"] == 8
    assert rule.loss(0) is None
    (later,) = rule.slots(space, seed=0, step=1, score=lambda _: 0.0)
    assert isinstance(later.architecture, RelaxedArchitecture)
    assert later.architecture["linear3.input_bits"].tolist() == [1, 0, 0]


def test_what_the_gates_have_found_is_tuned_alone_from_a_step_on() -> None:
    space, rule = mlp(), SBSRule(Products, warmup=1, until=3)
    supernet = made(space, rule)
    batch = observed(supernet, 6)
    for step, hard in ((0, True), (1, False), (2, False), (3, True), (9, True)):
        (slot,) = rule.slots(space, seed=0, step=step, score=lambda _: 0.0)
        assert (slot.architecture == rule.selected()) == hard
        assert (rule.loss(step) is None) == hard
        supernet.step_loss(slot, batch, None)
    rule.check_length(4)
    with pytest.raises(ValueError, match="until must lie before the end of the training of 3 steps, got 3"):
        rule.check_length(3)
    with pytest.raises(ValueError, match="until must be a step after the warm-up"):
        SBSRule(Products, warmup=5, until=5)


def test_what_does_not_go_together_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="no choice of them"):
        made(mlp(weight_bits=(4,), input_bits=(4,)), SBSRule(Products))
    with pytest.raises(ValueError, match=r"use supernets.QuantizedWeights"):
        Supernet(MLPSpaceWithBits(), Classification(3), source=SharedWeights, rule=SBSRule(Products))
    with pytest.raises(ValueError, match="at least the cost of the lowest bits and widths, 108"):
        made(mlp(), SBSRule(Products, cost_target=50.0))
    with pytest.raises(ValueError, match=r"must be one of \(2, 4, 8\), got 3"):
        made(mlp(), SBSRule(Products, start={"linear2.weight_bits": 3}))
    with pytest.raises(ValueError, match="cost_weight > 0"):
        SBSRule(Products, 0.0)
    with pytest.raises(ValueError, match="must end before the training of 10 steps"):
        SBSRule(Products, warmup=10).check_length(10)
    assert made(mlp(), SBSRule(Products)).rule.whole
    elastic = QuantizedSpace(MLPSpace(6, 3, widths=(4, 8), depths=(3,)))
    with pytest.raises(ValueError, match=r"DifferentiableRule needs relaxed weights.*StatsQ takes its scales"):
        made(elastic, DifferentiableRule(), StatsQ())
    assert not made(elastic, SBSRule(Products)).rule.whole


@pytest.mark.parametrize("quantizer", [SBS(), StatsQ()], ids=lambda q: type(q).__name__)
def test_alpha_of_bits_learns_where_nothing_else_is_to_choose(quantizer: WeightQuantizer) -> None:
    rule = DifferentiableRule(schedule="single")
    supernet = made(mlp(), rule, quantizer)
    batch = observed(supernet, 6)
    (slot,) = rule.slots(supernet.space, seed=0, step=0, score=lambda _: 0.0)
    supernet.step_loss(slot, batch, None)[0].backward()
    gradients = [alpha.grad for name, alpha in rule.alpha.items() if name.endswith("bits")]
    assert len(gradients) == 4
    assert all(bool((gradient != 0).any()) for gradient in gradients)


class MLPSpaceWithBits(SearchSpace):
    """A space with a choice of bits that no source quantises."""

    def __init__(self) -> None:
        self.inner = MLPSpace(6, 3, widths=(8,), depths=(1,))
        self.choices = (*self.inner.choices, Choice("linear1.weight_bits", (2, 4)))

    def build(self, architecture: Architecture) -> torch.nn.Module:
        return self.inner.build(self.inner.largest())

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return self.inner.inputs(self.inner.largest(), batch_size)
