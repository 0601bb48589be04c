"""Files whose weights are packed in few bits, and what every traced file is compared with."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import requests
import torch
from torch import Tensor

from nas.data import DigitsData
from nas.delivery import manifest_of
from nas.service.schemas import Form
from nas.service.settings import ServiceSettings
from nas.service.tracing import Order, trace
from search_spaces import MLPSpace, QuantizedSpace
from supernets import Classification, QuantizedWeights, Supernet, save
from supernets.deployment import quantized_layers
from supernets.formats import FORMATS, QUANTIZED_FORMATS
from trials import SerialExecutor

pytestmark = pytest.mark.filterwarnings("default")
LOWBIT = {"depth": 1, "layer1.width": 16, "linear1.weight_bits": 3, "linear1.input_bits": 8}
LOWBIT |= {"head.weight_bits": 4, "head.input_bits": 8}
FULL = {name: 32 if name.endswith("bits") else value for name, value in LOWBIT.items()}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]) -> Iterator[Any]:
    """A service of a supernet whose bits are searched; what it traces is traced in this process."""
    folder = tmp_path_factory.mktemp("bits")
    torch.manual_seed(0)
    inner = MLPSpace(64, 10, widths=(8, 16), depths=(1,))
    space = QuantizedSpace(inner, weight_bits=(3, 4, 32), input_bits=(8, 32), ends=None)
    supernet = Supernet(space, Classification(10), source=QuantizedWeights, calibration=2)
    supernet.source.observe([(torch.rand(32, 64),)])
    save(supernet, folder / "supernet", data=DigitsData())
    settings = ServiceSettings(
        (f"bits={folder / 'supernet'}",), storage=str(folder / "none"), folder=str(folder / "service")
    )
    with pytest.MonkeyPatch.context() as patch, serving(settings) as found:
        patch.setattr("nas.service.tracing.ProcessExecutor", lambda function, **_: SerialExecutor(function))
        yield found


def test_packed_weights_are_handed_out_with_what_became_of_each_layer(running: Any, tmp_path: Path) -> None:
    with running.client() as client:
        assert client.model("bits").formats == [*FORMATS, *QUANTIZED_FORMATS]
        found = client.subnetwork("bits", LOWBIT)
        path = client.download(found, tmp_path / "packed.onnx", format="onnx-lowbit")
        manifest = client.manifest(found, format="onnx-lowbit")
    record = manifest["files"]["model.lowbit.onnx"]
    made = {name: (row["bits"], row["stored_bits"], row["deploy"]) for name, row in record["layers"].items()}
    assert made == {"linear1": (3, 4, "simulated"), "head": (4, 4, "real")}
    assert "no kernel of 3 bits" in record["layers"]["linear1"]["reason"]
    assert record["bytes"] == path.stat().st_size
    answer = requests.head(running.url + found.weights["onnx-lowbit"], timeout=100)
    assert answer.headers["Content-Disposition"].endswith('.lowbit.onnx"')
    assert answer.headers["ETag"] == f'"{record["sha256"]}"'
    served = running.service.catalogue.get("bits")
    evaluated = served.objective.module(served.space.architecture(LOWBIT))
    inputs = torch.randn(7, 64)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        wanted = evaluated(inputs).numpy()
    assert np.abs(given - wanted).max() <= 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("ask", ["get", "head"])
def test_without_low_bits_there_is_nothing_to_pack(running: Any, studied: Any, ask: str) -> None:
    with running.client() as client, studied.client() as other:
        full, unquantised = client.subnetwork("bits", FULL), other.subnetworks("tiny")[0]
        assert other.model("tiny").formats == list(FORMATS)
    for url, found in ((running.url, full), (studied.url, unquantised)):
        assert tuple(found.weights) == FORMATS
        asked = url + found.weights["onnx"]
        answer = getattr(requests, ask)(f"{asked}-lowbit", timeout=100)
        assert answer.status_code == 422
        if ask == "get":
            assert answer.json()["error"] == "not_quantized"
            assert answer.json()["message"].endswith("has none; ask for one of safetensors, pt2, onnx")
            manifest = asked.replace("/weights?", "/manifest?")
            assert requests.get(f"{manifest}-lowbit", timeout=100).json()["error"] == "not_quantized"


def test_the_description_names_every_format(running: Any) -> None:
    assert get_args(Form) == (*FORMATS, *QUANTIZED_FORMATS)
    described = requests.get(f"{running.url}/openapi.json", timeout=100).json()
    given = described["paths"]["/v1/subnetworks/{subnetwork}/weights"]["get"]["parameters"]
    (form,) = [parameter["schema"] for parameter in given if parameter["name"] == "format"]
    assert form["enum"] == [*FORMATS, *QUANTIZED_FORMATS]


def test_what_is_traced_elsewhere_is_compared_with_the_supernet(running: Any, tmp_path: Path) -> None:
    served = running.service.catalogue.get("bits")
    architecture = served.space.architecture(LOWBIT)
    handed, bound = served.extracted(architecture)

    def order(reference: Callable[..., Tensor], name: str) -> Order:
        return Order.of(
            handed,
            architecture,
            served.space.inputs(architecture, batch_size=2),
            reference=reference,
            quantized=quantized_layers(served.supernet.source, architecture),
            space=served.supernet.tree()["space"],
            trust=(),
            form="safetensors",
            folder=tmp_path / name,
            manifest=manifest_of(served.supernet, architecture, {}, weights="1"),
        )

    assert trace(order(bound, "same")) is None
    told = trace(order(lambda x: bound(x) + 1e-3, "other"))
    assert told is not None
    assert (told.status, told.error) == (422, "not_exportable")
    assert "must give the outputs of the reference" in told.message
    assert not (tmp_path / "other").exists()
