"""Allocations as seeds of a search, on a trained network."""

import json
import re

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nas import BitAllocation, SearchSettings, SelectedArchitecture, open_search
from nas.__main__ import main
from nas.allocation import BudgetError, SubnetworkOutputs
from nas.bitops import BitOps
from nas.costs import ModelSize, measure
from nas.data import DigitsData
from search_spaces import MLPSpace, QuantizedSpace, cost_of
from search_spaces.quantizer import fake_quantize, input_range
from supernets import LSQ, SBS, Classification, QuantizedWeights, SBSRule, SharedWeights, Supernet, fit_scales, save


class Points(L.LightningDataModule):
    """Three classes of points in six dimensions."""

    def __init__(self) -> None:
        super().__init__()
        x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
        self.points = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 1).long())

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.points, batch_size=32)

    val_dataloader = test_dataloader = train_dataloader


def quantized(rule: SBSRule | None = None) -> Supernet:
    space = QuantizedSpace(MLPSpace(6, 3, widths=(6, 12), depths=(3,)))
    supernet = Supernet(space, Classification(3), source=QuantizedWeights, rule=rule, calibration=2)
    supernet.source.observe([(Points().points.tensors[0],)])
    return supernet.eval()


def test_a_search_begins_with_the_front_of_allocations_within_its_limits(tmp_path) -> None:
    supernet, data = quantized(), Points()
    space = supernet.space
    bits = {"depth": 3, "layer1.width": 12, "layer2.width": 6, "layer3.width": 12}
    ends = [
        measure([BitOps(space)], space, space.quantized(space.space.architecture(bits), b))["bops_product"]
        for b in (2, 8)
    ]
    limit = ends[0] + 0.6 * (ends[1] - ends[0])
    seeds = BitAllocation([BitOps], architecture=bits, count=2, samples=32, rounds=0)
    settings = SearchSettings(
        study="seeded",
        trials=2,
        costs=[BitOps],
        objectives=["accuracy", "bops_product"],
        limits={"max_bops_product": limit},
        seeds=[seeds],
        storage=str(tmp_path / "studies.journal"),
    )
    with open_search(supernet, data, settings, runs=str(tmp_path / "runs")) as search:
        planted = search.seeds
        trials = search.run(2).trials
    assert [dict(trial.architecture) for trial in trials] == [dict(architecture) for architecture in planted]
    assert all({name: trial.architecture[name] for name in bits} == bits for trial in trials)
    best, cheapest = (trial.value("bops_product") for trial in trials)
    assert cheapest == ends[0] < best <= limit


def test_limits_out_of_reach_name_the_least_and_samples_are_whole_batches(tmp_path) -> None:
    supernet, data = quantized(), Points()
    outputs = SubnetworkOutputs(supernet, data, samples=33)
    assert outputs(supernet.space.largest()).shape == (64, 3)
    assert torch.equal(outputs(supernet.space.largest()), outputs(supernet.space.largest()))
    settings = SearchSettings(
        costs=[ModelSize],
        limits={"max_model_size": 700.0},
        seeds=[BitAllocation([ModelSize], samples=32)],
        storage=str(tmp_path / "s.journal"),
    )
    with (
        pytest.raises(
            BudgetError, match=r"search.seeds: BitAllocation: .*model_size <= 700 cannot .* least is \d+; loosen"
        ),
        open_search(supernet, data, settings, runs=str(tmp_path)),
    ):
        pass


@pytest.mark.parametrize("make", [BitOps, ModelSize])
def test_what_rules_weigh_is_the_cost_of_the_architecture(make) -> None:
    space = QuantizedSpace(MLPSpace(6, 3, widths=(4, 6), depths=(3,)), weight_bits=(2, 8), input_bits=(4, 8))
    paid, cost = cost_of(space, make), make(space)
    generator = torch.Generator().manual_seed(0)
    for architecture in (space.smallest(), space.largest(), space.sample(generator)):
        assert paid(architecture) == measure([cost], space, architecture)[cost.name]


def test_what_a_rule_has_selected_is_evaluated_first_by_itself() -> None:
    rule = SBSRule(BitOps, start={"linear2.weight_bits": 4})
    supernet = quantized(rule)
    with_bits = SelectedArchitecture()(_problem(supernet), supernet, Points())
    assert with_bits == [rule.selected()]
    assert with_bits[0]["linear2.weight_bits"] == 4
    with pytest.raises(ValueError, match="SandwichRule does not"):
        SelectedArchitecture()(_problem(supernet), quantized(), Points())


def _problem(supernet: Supernet):
    from nas.controllers import Problem
    from trials import Metric

    return Problem(supernet.space, (Metric("accuracy", "fraction", "maximize"),))


@pytest.mark.parametrize(("arguments", "message"), [({"count": 0}, "count >= 1"), ({"distortion": "x"}, "'worst'")])
def test_wrong_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        BitAllocation([BitOps], **arguments)


@pytest.mark.parametrize("quantizer", [LSQ("channel"), LSQ("tensor"), SBS("channel")], ids=["channel", "tensor", "SBS"])
def test_scales_of_a_trained_network_have_less_squared_error_than_those_near_them(quantizer) -> None:
    base = MLPSpace(6, 3, widths=(8,), depths=(3,))
    space = QuantizedSpace(base)
    source = QuantizedWeights(space, quantizer=quantizer, source=lambda s: SharedWeights(s, seed=3))
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    fit_scales(source, space.largest(), [(x,)])
    weight = source.wrapped(base.largest())["linear2.weight"].detach()
    groups = [(2, 4, 8)] if quantizer.shared else [(2,), (4,), (8,)]
    for bits in groups:
        scale = source.scale("linear2", bits[0], base.largest()).detach()

        def error(factor: float, bits=bits, scale=scale) -> np.ndarray:
            total = 0.0
            for b in bits:
                squares = (quantizer(weight, b, scale * factor) - weight).square().detach().numpy()
                total = total + np.log(squares.mean(1) if scale.ndim else squares.mean())
            return total

        for factor in (2**-0.5, 2**0.5):  # on the grid of factors
            assert (error(1.0) <= error(factor) + 1e-3).all()
    scale = source.input_scales("linear1", 8).detach()
    low, high = input_range(8, signed=True)
    near = [fake_quantize(x, scale * factor, low, high) for factor in (1.0, 2**-0.5, 2**0.5)]
    errors = [float((values - x).square().mean()) for values in near]
    assert errors[0] == min(errors)


def test_the_command_prints_table_and_answer_and_what_to_do_next(tmp_path, capsys) -> None:
    space = QuantizedSpace(MLPSpace(64, 10, widths=(8,), depths=(3,)))
    supernet = Supernet(space, Classification(10), source=QuantizedWeights, calibration=2)
    supernet.source.observe([(torch.rand(16, 64),)])
    save(supernet, tmp_path / "net", data=DigitsData())
    four = measure([BitOps(space)], space, space.quantized(space.space.largest(), 4))["bops_product"]
    assert main(["allocate", str(tmp_path / "net"), "--max_bops_product", str(four), "--samples", "64"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^layer +2 / 2 +2 / 4 +2 / 8 +4 / 2 ", printed, re.MULTILINE)
    chosen = json.loads(printed.partition("--architecture '")[2].partition("'")[0])
    assert measure([BitOps(space)], space, space.architecture(chosen))["bops_product"] <= four
    assert main(["allocate", str(tmp_path / "net"), "--max_bops_product", "1000"]) == 2
    refused = capsys.readouterr()
    assert not refused.out
    least = refused.err.partition("bops_product <= 1000 cannot be kept: the least is ")[2].partition(";")[0]
    assert main(["allocate", str(tmp_path / "net"), "--max_bops_product", least, "--samples", "64"]) == 0
    capsys.readouterr()
    assert main(["allocate", str(tmp_path / "net")]) == 2
    assert "needs a budget" in capsys.readouterr().err
