"""ONNX with real low bits: what is packed, what is computed, and what is said of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from search_spaces import InputQuantizer
from search_spaces.quantizer import quantize_input
from supernets.deployment import Deployed, QuantizedLayer, deployment_summary, max_abs_layers, quantized_layers
from supernets.export import ExportError, export
from supernets.format import Subject
from supernets.lowbit import LowBitOnnxFormat
from supernets.lowbit_graph import fold_batch_norms
from supernets.lowbit_layers import BLOCKS, block_size, pack

BITS = {"stem": (8, 8), "point": (4, 4), "deep": (4, 8), "wide": (8, 8), "hidden": (2, 8), "head": (3, 32)}


class Net(nn.Module):
    """One layer of each kind: integer convolution, 1x1 as a product, packed, widened, product, and simulated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, groups=8, stride=2)
        self.wide = nn.Conv2d(8, 10, 2)
        self.hidden, self.head = nn.Linear(10, 40), nn.Linear(40, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.point(x)
        x = x * torch.sigmoid(x)
        x = self.wide(torch.relu(self.deep(x)))
        scores: Tensor = self.head(torch.relu(self.hidden(x.mean((2, 3)))))
        return scores


def network(**other: tuple[int, int]) -> tuple[nn.Module, dict[str, QuantizedLayer]]:
    """The network and its integers; the grid of the hidden layer is mid-rise."""
    torch.manual_seed(0)
    net, widths = Net(), BITS | other
    for name, (_, bits) in widths.items():
        if bits < 32:
            quantizer = InputQuantizer(bits, signed=name not in ("point", "wide"))
            quantizer.scale.data.fill_(0.03 if bits == 8 else 0.4)
            quantize_input(net.get_submodule(name), quantizer)
    torch.nn.init.normal_(net.norm.weight)  # some are negative
    torch.nn.init.normal_(net.norm.bias)
    net.norm.get_buffer("running_mean").normal_()
    net.norm.get_buffer("running_var").uniform_(0.5, 2)
    net.norm.get_buffer("num_batches_tracked").add_(1)
    layers = max_abs_layers(net, widths)
    hidden = layers["hidden"]
    layers["hidden"] = replace(hidden, offset=0.5, scale=torch.tensor(0.05))
    net.hidden.weight.data = 0.05 * (hidden.codes + 0.5)
    return net.eval(), layers


INPUTS = (torch.randn(3, 2, 9, 9, generator=torch.Generator().manual_seed(3)),)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    net, layers = network()
    folder = tmp_path_factory.mktemp("lowbit") / "out"
    exported = export(net, INPUTS, folder, formats=["onnx-lowbit"], manifest={}, quantized=layers)
    return {"net": net, "layers": layers, "exported": exported, "model": onnx.load(folder / "model.lowbit.onnx")}


def initial(model: Any, name: str) -> Any:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def test_every_layer_is_told_what_became_of_it(made: Mapping[str, Any]) -> None:
    told = made["exported"].manifest["files"]["model.lowbit.onnx"]["layers"]
    short = {name: (row["deploy"], row["stored_bits"], row["computes"], row["operator"]) for name, row in told.items()}
    assert short == {
        "stem": ("real", 8, "int8", "QLinearConv"),
        "point": ("real", 4, "int8", "MatMulNBits"),
        "deep": ("storage", 4, "int8", "QLinearConv"),
        "wide": ("storage", 8, "float32", "Conv"),
        "hidden": ("real", 2, "int8", "MatMulNBits"),
        "head": ("simulated", 4, "int8", "MatMulNBits"),
    }
    assert "not quantised before it is added" in told["wide"]["reason"]
    assert "no 4-bit convolution" in told["deep"]["reason"]
    assert "no kernel of 3 bits" in told["head"]["reason"]
    assert "reason" not in told["stem"]


def test_the_file_computes_what_the_quantised_network_does(made: Mapping[str, Any]) -> None:
    session = onnxruntime.InferenceSession(made["exported"].files["onnx-lowbit"], providers=["CPUExecutionProvider"])
    images = torch.randn(7, 2, 9, 9, generator=torch.Generator().manual_seed(4))
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        wanted = made["net"](images)
    assert np.abs(given - wanted.numpy()).max() <= 0.05 * wanted.abs().max()
    assert 0 < made["exported"].parity["onnx-lowbit"] < 0.05


def test_weights_are_stored_in_their_bits(made: Mapping[str, Any]) -> None:
    sizes = {name: initial(made["model"], f"{name}.codes").nbytes for name in BITS}
    assert sizes == {
        "stem": 8 * 2 * 9,
        "point": 8 * 32 // 2,  # rows of 8 padded to one block of 32
        "deep": 8 * 9 // 2,
        "wide": 10 * 8 * 4,
        "hidden": 40 * 32 // 4,
        "head": 3 * 64 // 2,
    }
    floats = {tensor.name for tensor in made["model"].graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert not any(name.endswith(".weight") for name in floats)
    assert not any(node.metadata_props or node.doc_string for node in made["model"].graph.node)
    assert made["exported"].files["onnx-lowbit"].stat().st_size < sum(sizes.values()) + 10_000


def test_batch_norm_is_folded_into_scale_and_bias(made: Mapping[str, Any]) -> None:
    norm, layer = made["net"].norm, made["layers"]["stem"]
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    np.testing.assert_allclose(initial(made["model"], "stem.scale"), layer.scale.flatten().numpy() * factor, rtol=1e-5)
    bias = norm.bias.detach().numpy() - norm.running_mean.numpy() * factor
    np.testing.assert_allclose(initial(made["model"], "stem.scale.folded_bias"), bias, rtol=1e-5, atol=1e-6)
    assert not any(node.op_type == "BatchNormalization" for node in made["model"].graph.node)
    assert (factor < 0).any()


def convolution_and_norm(gamma: float) -> Any:
    """A graph of one 1x1 convolution of integers and its batch norm; the second channel has weight ``gamma``."""
    arrays: dict[str, Any] = {
        "codes": np.array([[[[1]]], [[[2]]]], np.int8),
        "scale": np.ones(2, np.float32),
        "gamma": np.array([1, gamma], np.float32),
        "beta": np.ones(2, np.float32),
        "mean": np.zeros(2, np.float32),
        "variance": np.ones(2, np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["weight"], axis=0),
        helper.make_node("Conv", ["x", "weight"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "variance"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    )


@pytest.mark.parametrize(("gamma", "kept"), [(-2.0, 0), (0.0, 1), (1e-12, 1)])
def test_a_batch_norm_whose_bias_would_overflow_the_integers_stays(gamma: float, kept: int) -> None:
    model = convolution_and_norm(gamma)
    fold_batch_norms(model)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == kept
    if not kept:
        np.testing.assert_allclose(initial(model, "scale"), np.array([1, gamma]) / np.sqrt(1 + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_puts_the_first_value_into_the_lowest_bits(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 16), generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    each = 8 // bits
    for row in range(3):
        for column in range(16):
            byte = int(packed[row, column // each])
            assert byte >> (bits * (column % each)) & (2**bits - 1) == codes[row, column]


def test_the_block_pads_least() -> None:
    for features in range(1, 400):
        padding = {block: -(-features // block) * block - features for block in BLOCKS}
        assert padding[block_size(features)] == min(padding.values())


def test_bits_that_differ_from_the_weights_are_refused_by_name() -> None:
    net, layers = network()
    layers["deep"] = replace(layers["deep"], scale=2 * layers["deep"].scale)
    with pytest.raises(ValueError, match=r"weight of 'deep' must be scale \* \(codes \+ offset\) of its 4 bits"):
        LowBitOnnxFormat(layers).write(Subject(net, INPUTS), Path("unused"), {})
    layers["deep"] = replace(layers["deep"], scale=layers["deep"].scale / 2, weight_bits=2)
    with pytest.raises(ValueError, match=r"codes of 'deep' must fit 2 bits, -2 to 1, got -7 to 7"):
        LowBitOnnxFormat(layers).write(Subject(net, INPUTS), Path("unused"), {})
    del layers["deep"]
    with pytest.raises(ValueError, match=r"quantised layer 'lost' must be a module of the network"):
        LowBitOnnxFormat({**layers, "lost": layers["head"]}).write(Subject(net, INPUTS), Path("unused"), {})


@pytest.mark.parametrize(("fused", "written"), [(True, [False]), (False, [False, True])])
def test_a_1x1_convolution_that_is_not_fused_becomes_a_product(
    fused: bool, written: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, layers = network(point=(8, 8))
    products = []

    def noted(_self: object, _module: object, plans: Mapping[str, Any], *_: object) -> None:
        products.append(plans["point"].as_product)

    def running(_path: Path, tensors: Mapping[str, Any]) -> dict[str, str]:
        return {name: "MatMulNBits" if products[-1] else "QLinearConv" for name in tensors if fused or products[-1]}

    monkeypatch.setattr(LowBitOnnxFormat, "_save", noted)
    monkeypatch.setattr("supernets.lowbit.multiplying_operators", running)
    told = LowBitOnnxFormat(layers).write(Subject(net, INPUTS), Path("unused"), {})["layers"]["point"]
    assert products == written
    assert (told["deploy"], told["operator"]) == ("real", "QLinearConv" if fused else "MatMulNBits")


def test_bits_that_are_not_real_are_refused_where_asked(
    made: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def copied(_self: object, _module: object, _plans: object, _inputs: object, path: Path, _facts: object) -> None:
        path.write_bytes(made["exported"].files["onnx-lowbit"].read_bytes())

    monkeypatch.setattr(LowBitOnnxFormat, "_save", copied)  # which takes seconds
    with pytest.raises(
        ExportError, match=r"not all bits are real \('deep', 4 bits: there is no 4-bit conv.*has 2, 4 and 8"
    ):
        export(
            made["net"],
            INPUTS,
            tmp_path / "out",
            formats=["onnx-lowbit"],
            manifest={},
            quantized=made["layers"],
            real_only=True,
        )
    assert not (tmp_path / "out").exists()


def test_a_network_without_bits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"onnx-lowbit format needs a quantised subnetwork.*QuantizedSpace"):
        export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), tmp_path / "out", formats=["onnx-lowbit"], manifest={})
    assert quantized_layers(nn.Linear(2, 2), None) == {}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"accuracy_level must be 0 or 4, got 2"):
        LowBitOnnxFormat({"a": QuantizedLayer(4, 8, torch.zeros(1, 1), torch.ones(()))}, accuracy_level=2)


def test_the_summary_counts_classes() -> None:
    real, stored = Deployed(4, 8, 4, "real", "int8", "MatMulNBits"), Deployed(2, 8, 2, "storage", "int8", "Conv", "why")
    assert deployment_summary([real, stored, real]) == "2 real (4 bits), 1 storage only (2 bits)"
