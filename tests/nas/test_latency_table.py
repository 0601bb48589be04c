"""Latency from a table: operators, the fit, and the machine that it belongs to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from nas import latency_table as module
from nas.costs import measure
from nas.latency_table import AffineFit, LatencyTable, affine_fit, make_latency_table
from nas.operators import Operator, operator_model, operators
from nas.runtime import fingerprint
from search_spaces import Architecture, ConvNetSpace, MLPSpace, QuantizedSpace, SearchSpace, Stage

pytestmark = pytest.mark.filterwarnings("ignore:latency is measured on a busy machine:RuntimeWarning")
PLAIN = MLPSpace(8, 2, widths=(4, 6), depths=(1, 2))
SPACE = QuantizedSpace(PLAIN, weight_bits=(4, 8), input_bits=(8,), ends=None)


def linear_network(space: SearchSpace, architecture: Architecture, folder: Path) -> Path:
    """The first operator in place of the exported network, which takes seconds to make."""
    path = folder / f"{architecture.arch_id}.onnx"
    path.write_bytes(operator_model(operators(space, architecture)[0]))
    return path


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, AffineFit]:
    monkeypatch.setattr(module, "write_network", linear_network)
    path = tmp_path / "table.json"
    lock = str(tmp_path / "lock")
    return path, make_latency_table(SPACE, path, networks=4, samples=0, lock=lock, warmup=0, repeats=3)


def test_operators_are_the_layers_of_the_network_with_their_bits() -> None:
    architecture = SPACE.quantized(PLAIN.largest(), 4, 8)
    keys = [operator.key for operator in operators(SPACE, architecture)]
    assert keys == ["linear 8>6 w4a8", "linear 6>6 w4a8", "linear 6>2 w4a8"]
    images = ConvNetSpace([Stage((4,), (1,), (3,), (2,), stride=2)], 3, resolutions=(8,))
    found = operators(images, images.largest())
    assert any(operator.groups > 1 and operator.stride == (2, 2) for operator in found)
    assert all(operator.key.endswith("w32a32") for operator in found)


def test_a_convolution_stays_among_integers_where_its_output_is_quantised_first() -> None:
    residual = ConvNetSpace([Stage((4,), (1,), (3,), (1,), block="residual")], 3, resolutions=(8,))
    space = QuantizedSpace(residual, weight_bits=(8, 32), input_bits=(8, 32), ends=None, groups={"all": ["*"]})
    found = operators(space, space.quantized(residual.largest(), 8))
    stem, inner, summed, shortcut, head = found
    assert inner.is_integer  # through batch norm and ReLU into the next convolution
    assert inner.key.endswith("w8a8q")
    assert not stem.is_integer  # into two quantisers with steps of their own
    assert not summed.is_integer  # into a sum
    assert (summed.is_product, shortcut.is_product, head.is_product) == (False, True, True)
    assert not any(operator.is_integer for operator in operators(space, space.quantized(residual.largest(), 32)))


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (Operator((5, 8), 3), (1, 5, 3)),
        (Operator((8,), 3, bits=2, input_bits=8), (1, 3)),
        (Operator((4, 8, 8), 6, (3, 3), (2, 2), (1, 1), (1, 1), 2, 8, 8), (1, 6, 4, 4)),
        (Operator((4, 8, 8), 6, (1, 1), (2, 2), (0, 0), (1, 1), 1, 4, 8), (1, 6, 4, 4)),
        (Operator((4, 9), 6, (3,), (1,), (1,), (1,), 1, 8, 32), (1, 6, 9)),
        (Operator((4, 9), 6, (3,), (1,), (1,), (1,), 1, 4, 4), (1, 6, 9)),
    ],
    ids=["linear", "linear2", "conv8", "pointwise4", "conv1d", "conv4"],
)
def test_every_operator_runs(operator: Operator, shape: tuple[int, ...]) -> None:
    session = onnxruntime.InferenceSession(operator_model(operator), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": np.ones((1, *operator.timed_shape), np.float32)})
    assert output.shape == shape


def test_the_fit_is_the_line_through_what_was_measured() -> None:
    totals = [1.0, 2.0, 4.0]
    fit = affine_fit(totals, [0.5 * total + 0.25 for total in totals])
    assert (fit.slope, fit.intercept, fit.error) == pytest.approx((0.5, 0.25, 0.0), abs=1e-9)
    assert fit(10.0) == pytest.approx(5.25)
    assert AffineFit(1.0, -1.0, 3, 0.0)(0.5) == 0.0
    with pytest.raises(ValueError, match=r"at least two different sums"):
        affine_fit([1.0, 1.0], [1.0, 2.0])


def test_the_cost_is_the_fit_of_the_sum_of_measured_operators(made: tuple[Path, AffineFit], tmp_path: Path) -> None:
    path, fit = made
    rows = json.loads(path.read_text())["operators"]
    cost = LatencyTable(SPACE, str(path), lock=str(tmp_path / "lock"))
    architecture = SPACE.smallest()
    total = sum(rows[operator.key]["min"] for operator in operators(SPACE, architecture))
    assert cost.total(architecture) == pytest.approx(total)
    assert measure([cost], SPACE, architecture) == {
        "onnx_latency": pytest.approx(max(0.0, fit.slope * total + fit.intercept))
    }
    assert (cost.metric.unit, cost.metric.direction) == ("ms", "minimize")


def test_an_operator_that_is_missing_is_measured_and_kept(made: tuple[Path, AffineFit], tmp_path: Path) -> None:
    path, _ = made
    table = json.loads(path.read_text())
    lost = operators(SPACE, SPACE.largest())[-1].key
    before = table["operators"].pop(lost)
    path.write_text(json.dumps(table))
    cost = LatencyTable(SPACE, str(path), lock=str(tmp_path / "lock"))
    assert cost.total(SPACE.largest()) > 0
    kept = json.loads(path.read_text())["operators"]
    assert kept.keys() == {*table["operators"], lost}
    assert kept[lost]["min"] > 0
    assert before["min"] <= before["p25"]


def changed(path: Path, **parts: Any) -> str:
    other = path.with_name("changed.json")
    other.write_text(json.dumps(json.loads(path.read_text()) | parts))
    return str(other)


def test_a_table_of_another_machine_space_or_kind_is_refused(made: tuple[Path, AffineFit], tmp_path: Path) -> None:
    path, _ = made
    elsewhere = fingerprint(1) | {"onnxruntime": "0.1"}
    with pytest.raises(ValueError, match=r"measured on another machine \(onnxruntime 0\.1 there.*--latency_table"):
        LatencyTable(SPACE, changed(path, machine=elsewhere))
    with pytest.raises(ValueError, match=r"fitted for another search space"):
        LatencyTable(PLAIN, str(path))
    with pytest.raises(ValueError, match=r"it is of another version"):
        LatencyTable(SPACE, changed(path, version=0))
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match=r"it is no latency table"):
        LatencyTable(SPACE, str(tmp_path / "text"))
    with pytest.raises(ValueError, match=r"No such file"):
        LatencyTable(SPACE, str(tmp_path / "missing"))


def test_a_table_needs_two_networks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 2 networks to fit to, got 1"):
        make_latency_table(SPACE, tmp_path / "table.json", networks=1)


def test_times_are_of_the_inputs_given(tmp_path: Path) -> None:
    from nas.runtime import time_models

    models = {name: operator_model(Operator((8,), size)) for name, size in (("a", 4), ("b", 6))}
    timings = time_models(models, [torch.ones(1, 8)], warmup=1, repeats=4, lock=str(tmp_path / "lock"))
    assert timings.keys() == models.keys()
    assert all(0 < timing.minimum <= timing.p25 <= timing.median for timing in timings.values())
    assert all(timing.repeats == 4 for timing in timings.values())
