"""Operations and bits of graph networks under gradients, and the task of classifying nodes."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from nas.buffers import BufferSize
from nas.costs import measure
from search_spaces import GraphSpace, MLPSpace, RelaxedArchitecture, SearchSpace
from supernets import (
    ExpectedBufferBytes,
    ExpectedWeightBytes,
    GumbelSampler,
    LPGNASRule,
    NodeClassification,
    SandwichRule,
    SharedWeights,
    SoftTargets,
    SPOSSampler,
    Supernet,
    export,
)
from supernets.expected import Expectation
from supernets.held_out import HeldOut
from supernets.relaxation import Relaxation
from supernets.samplers import AlphaSampler

NODES, FEATURES, CLASSES = 30, 6, 3
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def space(**options: Any) -> GraphSpace:
    given = {"widths": (2, 4), "attentions": ("gcn", "gat"), "weight_bits": (1, 8), "activation_bits": (2, 8)} | options
    return GraphSpace(FEATURES, CLASSES, nodes=NODES, edges=60, dropout=0.0, **given)


class Nodes(L.LightningDataModule):
    """Three groups of nodes with edges inside them; one feature tells which, the others are noise."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(NODES) % CLASSES
        self.features = 0.3 * torch.randn(NODES, FEATURES, generator=generator)
        self.features[torch.arange(NODES), self.labels] += 1
        steps = 3 * torch.randint(1, 9, (60,), generator=generator)
        sources = torch.arange(60) % NODES
        self.edges = torch.stack([sources, (sources + steps) % NODES])

    def batch(self, first: int, last: int) -> Batch:
        places = torch.arange(NODES)
        return self.features.to_sparse(), self.edges, self.labels, (places >= first) & (places < last)

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader([self.batch(0, 12)], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader([self.batch(12, 24)], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader([self.batch(24, 30)], batch_size=None)  # type: ignore[arg-type]


def fitted(rule: Any, steps: int, made: SearchSpace | None = None) -> Supernet:
    torch.manual_seed(0)
    supernet = Supernet(
        space() if made is None else made,
        NodeClassification(CLASSES),
        rule=rule,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )
    L.Trainer(
        max_steps=steps,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(supernet, datamodule=Nodes())
    return supernet.eval()


def test_losses_and_metrics_are_over_the_nodes_of_the_mask() -> None:
    task, data = NodeClassification(CLASSES, label_smoothing=0.1), Nodes()
    batch, logits, teacher = data.batch(12, 24), torch.randn(NODES, CLASSES), torch.randn(NODES, CLASSES)
    assert [given is wanted for given, wanted in zip(task.inputs(batch), batch, strict=False)] == [True, True]
    right = (logits[12:24], data.labels[12:24])
    torch.testing.assert_close(task.loss(logits, batch), F.cross_entropy(*right))
    smoothed = F.cross_entropy(*right, label_smoothing=0.1)
    torch.testing.assert_close(task.loss(logits, batch, regularise=True), smoothed)
    student, wise = task.counted(logits, batch), task.counted(teacher, batch)
    torch.testing.assert_close(task.distil(student, wise), SoftTargets()(logits[12:24], teacher[12:24]).mean())
    assert NodeClassification(CLASSES, distilled="all").counted(logits, batch) is logits
    decisions = task.decisions(logits, batch)
    assert torch.equal(decisions.logits, logits[12:24])
    assert torch.equal(decisions.labels, data.labels[12:24])
    assert decisions.examples.tolist() == list(range(12))
    metrics = task.metrics()
    task.update(metrics, logits, batch)
    assert float(metrics.compute()["accuracy"]) == pytest.approx(
        float((logits.argmax(1) == data.labels)[12:24].float().mean())
    )


def test_wrong_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of \(features, edge_index\), and those of MLPSpace take 1 input"):
        Supernet(MLPSpace(FEATURES, CLASSES), NodeClassification(CLASSES))
    with pytest.raises(ValueError, match=r"num_classes must be that of the space, got 4 and GraphSpace.num_classes=3"):
        Supernet(space(), NodeClassification(4))
    with pytest.raises(ValueError, match="LPGNASRule needs a GraphSpace, got MLPSpace"):
        LPGNASRule(5).check(MLPSpace(4, 2), SharedWeights(MLPSpace(4, 2)))
    with pytest.raises(ValueError, match="ExpectedWeightBytes needs a GraphSpace, got MLPSpace"):
        list(ExpectedWeightBytes().terms(Relaxation(MLPSpace(4, 2, batch_norm=False))))
    with pytest.raises(ValueError, match="BufferSize needs a GraphSpace, got MLPSpace"):
        BufferSize(MLPSpace(4, 2))


def test_a_supernet_of_graphs_trains_and_teaches() -> None:
    supernet = fitted(SandwichRule(1), 25, space(weight_bits=(32,), activation_bits=(32,), depths=(1, 2)))
    batch = Nodes().batch(24, 30)
    for architecture in (supernet.space.smallest(), supernet.space.largest()):
        outputs = supernet.bind(architecture)(*supernet.task.inputs(batch))
        assert float((outputs.argmax(1) == batch[2])[24:].float().mean()) > 0.8


def test_the_relaxed_network_is_verified_for_every_kind_of_choice() -> None:
    made = space(
        depths=(1, 2, 3),
        heads=2,
        attentions=("gcn", "gat", "cos", "linear"),
        aggregations=("mean", "max", "sum"),
        activations=("relu", "elu"),
        shortcuts=True,
        weight_bits=(1, 2, 8),
    )
    assert set(Relaxation(made).operations) == {
        choice.name for choice in made.choices if choice.kind == "categorical" or ".bits." in choice.name
    }


def test_expected_bytes_of_one_architecture_are_its_bytes() -> None:
    made = space(depths=(1, 2), attentions=("gcn", "gat"))
    relaxation = Relaxation(made)
    weights = Expectation(made, ExpectedWeightBytes().terms(relaxation))
    buffers = Expectation(made, ExpectedBufferBytes().terms(relaxation))
    generator = torch.Generator().manual_seed(0)
    for architecture in (made.smallest(), made.largest(), *(made.sample(generator) for _ in range(8))):
        module, bits = made.build(architecture), made.bitwidths(architecture)
        expected = sum(module.get_parameter(f"{name}.weight").numel() * bits[name][0] / 8 for name in bits)
        relaxed = made.relax(architecture)
        assert float(weights(relaxed)) == pytest.approx(expected)
        total = measure([BufferSize(made, total=True)], made, architecture)["buffer_total"]
        assert float(buffers(relaxed)) == pytest.approx(total, abs=len(made.activations_of(architecture)))


def test_the_buffer_is_the_largest_tensor_the_network_writes() -> None:
    made = space(attentions=("gat",), weight_bits=(8,))
    architecture = made.architecture({**made.largest(), "block1.bits.attention": 2})
    sizes = {
        "linear": NODES * 4,
        "aggregation": NODES * 4,
        "attention": (NODES + 60) * 2 // 8 + 1,
        "head": (NODES + 60),
    }
    found = measure([BufferSize(made), BufferSize(made, total=True)], made, architecture)
    assert found["buffer_size"] == max(sizes.values())
    assert found["buffer_total"] == sum(sizes.values()) + NODES * 4 + NODES * CLASSES  # read and written by the head
    assert measure([BufferSize(made, data=True)], made, architecture)["buffer_size"] == NODES * FEATURES


def test_a_gumbel_draw_is_soft_and_then_straight_through() -> None:
    sampler, alpha = GumbelSampler(10, (1.0, 0.5), hard=0.3), torch.randn(4, 3, requires_grad=True)

    def draw(step: int) -> Tensor:
        return sampler.sample(alpha, step=step, generator=torch.Generator().manual_seed(step))

    uniform = torch.rand(4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    noise = -(-uniform.log()).log()
    torch.testing.assert_close(draw(4), ((alpha.log_softmax(-1) + noise) / 0.8).softmax(-1).float())
    assert sorted(set(draw(8).flatten().tolist())) == pytest.approx([0, 1], abs=1e-6)
    (gradient,) = torch.autograd.grad(draw(8)[:, 0].sum(), alpha)
    assert bool(gradient.any())
    with pytest.raises(ValueError, match="hard=2"):
        GumbelSampler(10, hard=2)


def test_choices_learn_in_three_phases() -> None:
    made = space()
    rule = LPGNASRule(10, warmup=3, bits_warmup=6, tolerance=None)
    rule.prepare(made, SharedWeights(made), seed=0)

    def drawn(step: int) -> RelaxedArchitecture:
        slot = rule.held_out_slot(seed=0, step=step)
        assert isinstance(slot.architecture, RelaxedArchitecture)
        return slot.architecture

    assert [rule.held_out_rows(step) > 0 for step in (2, 3)] == [False, True]
    assert rule.loss(2) is None
    assert drawn(5)["block1.bits.weights"].tolist() == [0, 1]
    assert drawn(7)["block1.bits.weights"][0] > 0
    for step, moved in ((5, False), (7, True)):
        loss = rule.loss(step)
        assert loss is not None
        gradients = torch.autograd.grad(loss, list(rule.search.alpha.values()), allow_unused=True)
        found = dict(zip(rule.search.alpha, gradients, strict=True))
        assert (found["block1/bits/weights"] is not None and bool(found["block1/bits/weights"].any())) == moved
        assert bool(found["block1/width"].any())


def test_a_site_that_ruins_the_network_is_barred() -> None:
    made = space(weight_bits=(8,))
    rule = LPGNASRule(10, tolerance=0.5)
    rule.prepare(made, SharedWeights(made), seed=0)
    scored = []

    def score(architecture: Any) -> float:
        scored.append(architecture)
        return 2.0 if architecture["block1.bits.features"] == 2 else 1.0

    rule.slots(made, seed=0, step=rule.bits_warmup, score=score)
    assert all(sum(value == 2 for name, value in a.items() if ".bits." in name) <= 1 for a in scored)
    assert rule.table == {
        (name, 2): float(name == "block1.bits.features") for name in made.weighted() if ".bits." in name
    }
    selected = rule.selected()
    assert selected is not None
    assert selected["block1.bits.features"] == 8
    drawn = rule.held_out_slot(seed=0, step=9).architecture
    assert isinstance(drawn, RelaxedArchitecture)
    assert drawn["block1.bits.features"][0] < 1e-6


def test_the_search_learns_finds_and_is_restored() -> None:
    supernet = fitted(LPGNASRule(30, model_weight=1.0, buffer_weight=1.0, lr=0.2), 30)
    rule = supernet.rule
    found = rule.selected()
    assert found is not None
    assert found != supernet.space.largest()
    batch = Nodes().batch(24, 30)
    assert supernet.bind(found)(*supernet.task.inputs(batch)).shape == (NODES, CLASSES)
    diagnostics = rule.diagnostics()
    assert diagnostics["expected/weight_bytes"] > 0
    assert "sensitivity/block1.bits.weights/1" in diagnostics
    other = LPGNASRule(30)
    other.prepare(supernet.space, supernet.source, seed=1)
    other.restore(rule.learned())
    assert other.selected() == found


def test_a_graph_network_leaves_for_any_graph(tmp_path: Path) -> None:
    made = space(widths=(4,), attentions=("cos",), weight_bits=(4,), activation_bits=(8,))
    module = Supernet(made, NodeClassification(CLASSES)).extract(made.largest())
    exported = export(module, made.inputs(made.largest(), 2), tmp_path / "out", formats=["pt2"], manifest={})
    features, edges, _, _ = Nodes().batch(0, 1)
    program = torch.export.load(exported.files["pt2"]).module()
    torch.testing.assert_close(program(features.to_dense(), edges), module(features, edges), atol=1e-5, rtol=1e-5)
    assert [given["shape"] for given in exported.manifest["inputs"]] == [["nodes", FEATURES], [2, "edges"]]


def test_one_graph_is_never_split() -> None:
    batch = Nodes().batch(12, 24)
    assert HeldOut(lambda: [batch], 2**31)(3) is batch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": 6, "bits_warmup": 4}, r"warmup=6, bits_warmup=4, steps=10"),
        ({"model_weight": -1.0}, r"must not be negative.*model_weight=-1.0"),
        ({"sampler": SPOSSampler()}, r"LPGNASRule.sampler must learn, SPOSSampler does not"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    made = space()
    with pytest.raises(ValueError, match=message):
        LPGNASRule(10, **arguments).check(made, SharedWeights(made))


def test_a_training_too_short_for_the_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bits_warmup must end before the training of 4 steps does, got 4"):
        LPGNASRule(10).check_length(4)


@pytest.mark.parametrize(("sampler", "field"), [(None, "steps"), (GumbelSampler(12), r"sampler\.steps")])
def test_a_training_that_ends_before_the_sampler_is_cold_is_refused(sampler: AlphaSampler | None, field: str) -> None:
    rule = LPGNASRule(12 if sampler is None else 8, sampler=sampler)
    with pytest.raises(ValueError, match=rf"LPGNASRule\.{field} must be at most the 9 steps of the training, got 12"):
        rule.check_length(9)


def test_a_training_that_goes_on_with_a_cold_sampler_is_told() -> None:
    with pytest.warns(UserWarning, match=r"LPGNASRule\.steps is 10 of 12 steps of the training") as told:
        LPGNASRule(10).check_length(12)
    assert len(told) == 1
    LPGNASRule(10).check_length(10)
    LPGNASRule(10).check_length(math.inf)
