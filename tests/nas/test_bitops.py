"""Bit operations and bytes of quantised networks against counts made by hand."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from nas import BitOps, MACs, ModelSize, WeightBits
from nas.commands.limits import costs_for
from nas.costs import measure
from nas.evaluation import Screen
from nas.sampling import sample_within
from nas.service.schemas import SubnetworkRequest
from nas.service.selection import wanted
from search_spaces import ConvNetSpace, FactorySpace, Head, MLPSpace, QuantizedSpace, Stage, TransformerSpace, fill
from supernets import LSQ, QuantizedWeights
from supernets.deployment import quantized_layers
from supernets.format import Subject
from supernets.lowbit import LowBitOnnxFormat
from trials import Metric, parse_limits


class Depthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(3, width, 1)
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.depth(self.point(x)).mean((2, 3)))
        return logits


def space(**options: Any) -> QuantizedSpace:
    wrapped = FactorySpace(Depthwise, {"width": [4, 8]}, input_shape=(3, 6, 6), slicing={"depth.*": {"blocks": {0: 1}}})
    return QuantizedSpace(wrapped, **options)


def test_both_formulas_count_what_one_counts_by_hand() -> None:
    given = space(ends=(8, 6))
    architecture = given.architecture({"width": 4, "depth.weight_bits": 2, "depth.input_bits": 4})
    assert dict(given.bitwidths(architecture)) == {"point": (8, 6), "depth": (2, 4), "head": (8, 6)}
    layers = [(36 * 4 * 3, 8, 6, 3), (36 * 4 * 9, 2, 4, 9), (4 * 5, 8, 6, 4)]  # MACs, bits, bits, fan-in
    product = sum(macs * w * a for macs, w, a, _ in layers)
    uniq = sum(macs * (w * a + w + a + math.log2(fan)) for macs, w, a, fan in layers)
    costs = [BitOps(given), BitOps(given, "bops_uniq")]
    found = measure(costs, given, architecture)
    assert found == {"bops_product": product, "bops_uniq": pytest.approx(uniq)}
    assert [cost.metric.unit for cost in costs] == ["bit operation"] * 2


@pytest.mark.parametrize("formula", ["bops_product", "bops_uniq"])
def test_full_precision_counts_32_bits_on_both_sides(formula: Any) -> None:
    plain = TransformerSpace(7, 5, widths=(8,), depths=(1,), heads=(2,), ffn_ratios=(1,), head_dim=4)
    architecture = plain.smallest()
    found = measure([BitOps(plain, formula), MACs(plain)], plain, architecture)
    if formula == "bops_product":
        assert found[formula] == found["macs"] * 1024
    else:
        assert found["macs"] * (1024 + 64) < found[formula] < found["macs"] * (1024 + 64 + 5)


def test_fewer_bits_of_any_layer_are_fewer_bit_operations_and_bytes() -> None:
    given = QuantizedSpace(
        ConvNetSpace([Stage((4, 8), (1,), block="residual")], 3, resolutions=(6,), head=Head((8,))), ends=None
    )
    costs = [BitOps(given), ModelSize(given), MACs(given)]
    largest = measure(costs, given, given.largest())
    for choice in given.choices[len(given.space.choices) :]:
        fewer = measure(costs, given, given.architecture({**given.largest(), choice.name: 2}))
        assert fewer["macs"] == largest["macs"]
        assert fewer["bops_product"] < largest["bops_product"]
        assert (fewer["model_size"] < largest["model_size"]) == choice.name.endswith("weight_bits")


def test_model_size_packs_weights_and_keeps_scales_and_biases_in_full() -> None:
    given = QuantizedSpace(MLPSpace(7, 3, widths=(5,), depths=(1,), batch_norm=False), ends=None, input_bits=(4, 32))
    bits = {"linear1.weight_bits": 2, "linear1.input_bits": 4, "head.weight_bits": 8, "head.input_bits": 32}
    architecture = given.architecture({**given.space.largest(), **bits})
    weights = math.ceil(35 * 2 / 8) + 15
    scales = 4 * 5 + 4 * 3 + 4  # of the output channels, and of one input
    biases = 4 * (5 + 3)
    assert measure([ModelSize(given)], given, architecture) == {"model_size": weights + scales + biases}
    full = QuantizedSpace(MLPSpace(7, 3, widths=(5,), depths=(1,), batch_norm=False), weight_bits=(4, 32), ends=None)
    architecture = full.quantized(full.space.largest(), 32, 8)
    assert measure([ModelSize(full)], full, architecture) == {"model_size": 4 * (35 + 15) + biases + 2 * 4}


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_model_size_is_what_the_tensors_of_a_low_bit_file_take(
    granularity: Literal["channel", "tensor"], tmp_path: Path
) -> None:
    plain = MLPSpace(32, 8, widths=(64,), depths=(1,), batch_norm=False)
    given = QuantizedSpace(plain, weight_bits=(4,), input_bits=None, ends=None)
    architecture, source = given.largest(), QuantizedWeights(given, quantizer=LSQ(granularity))
    module = fill(given.build(architecture), source(architecture)).eval()
    made = LowBitOnnxFormat(quantized_layers(source, architecture))
    path = tmp_path / "model.onnx"
    made.write(Subject(module, (torch.ones(2, 32),)), path, {})
    bytes_stored = sum(numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer)
    assert measure([ModelSize(given)], given, architecture) == {"model_size": bytes_stored}


def test_an_unknown_formula_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="must be 'bops_product' or 'bops_uniq', got 'bops'"):
        BitOps(space(), "bops")  # type: ignore[arg-type]


def test_the_most_bits_of_weights_are_those_of_layers_that_choose() -> None:
    given = space(ends=(8, 6), weight_bits=(2, 4, 8))
    cost = WeightBits(given)
    for bits in (2, 4, 8):
        architecture = given.quantized(given.space.largest(), bits)
        assert measure([cost], given, architecture) == {"weight_bits": bits}
    screen = Screen(given, costs_for(given, parse_limits({"max_weight_bits": 4})), parse_limits({"max_weight_bits": 4}))
    draws = sample_within(given, screen.limits, screen.meter, torch.Generator().manual_seed(0), count=8)
    assert {architecture["depth.weight_bits"] for architecture in draws} == {2, 4}
    with pytest.raises(ValueError, match=r"got FactorySpace; wrap it: class_path: search_spaces.QuantizedSpace"):
        WeightBits(given.space)


def test_the_service_takes_bits_for_a_limit_on_those_of_weights() -> None:
    metrics = {"weight_bits": WeightBits(space()).metric, "accuracy": Metric("accuracy", "fraction", "maximize")}
    task = SimpleNamespace(headline="accuracy")
    served: Any = SimpleNamespace(metrics=metrics, supernet=SimpleNamespace(task=task))
    for limits in ({}, {"max_weight_bits": 8}):
        [limit] = wanted(served, SubnetworkRequest(bits=4, limits=limits)).limits
        assert (limit.metric, limit.bound) == ("weight_bits", 4)
    [limit] = wanted(served, SubnetworkRequest(bits=4, limits={"max_weight_bits": 2})).limits
    assert limit.bound == 2
