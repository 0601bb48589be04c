"""Subnetworks by constraint and by architecture, their files, and predictions."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import safetensors
import torch
from safetensors.torch import load, load_file

from nas import ServiceError
from nas.data import DigitsData
from nas.service.identity import architecture_of, subnetwork_id
from nas.service.problems import RefusedError
from nas.service.tracing import Tracer
from search_spaces import ConvNetSpace, MLPSpace, Stage
from supernets import calibrate, calibration_batches
from supernets.export import ExportError, export
from trials import SerialExecutor, TrialStore

pytestmark = pytest.mark.filterwarnings("default")


def post(running: Any, body: dict[str, Any], path: str = "/v1/models/tiny/subnetworks") -> requests.Response:
    return requests.post(running.url + path, json=body, timeout=100)


def test_a_supernet_is_described(studied: Any, trained: Any) -> None:
    with studied.client() as client:
        assert client.ready()
        assert [model.name for model in client.models()] == ["tiny"]
        info = client.model("tiny")
    space = trained.supernet.space
    assert info.space.size == space.size()
    assert [choice.candidates for choice in info.space.choices] == [list(c.candidates) for c in space.choices]
    assert info.costs["params"].largest == sum(p.numel() for p in space.build(space.largest()).parameters())
    assert info.costs["params"].smallest == sum(p.numel() for p in space.build(space.smallest()).parameters())
    assert (info.headline, info.inputs, info.studied) == ("accuracy", [["batch", 64]], trained.trials)
    assert info.source["class_path"] == "supernets.SharedWeights"


def test_the_study_answers_with_its_best_trials_under_the_limits(studied: Any, trained: Any) -> None:
    with TrialStore.load(str(trained.storage), "small") as store:
        trials = [trial for trial in store.trials() if trial.value("params") <= 2000]
    with studied.client() as client:
        found = client.subnetworks("tiny", limits={"max_params": 2000}, count=3)
        smallest = client.subnetworks("tiny", objective="macs")[0]
    expected = sorted(trials, key=lambda t: (-t.value("accuracy"), t.value("loss"), t.value("params")))[:3]
    assert [item.arch_id for item in found] == [trial.arch_id for trial in expected]
    assert {item.origin for item in found} == {"study"}
    assert smallest.measurements["macs"].value == min(trial.value("macs") for trial in trials)


def test_the_front_is_what_no_trial_beats(studied: Any, trained: Any) -> None:
    with TrialStore.load(str(trained.storage), "small") as store:
        points = {(-t.value("accuracy"), t.value("params")) for t in store.trials()}
    best = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    with studied.client() as client:
        front = client.pareto("tiny")
    given = {(-s.measurements["accuracy"].value, s.measurements["params"].value) for s in front.subnetworks}
    assert front.objectives == ["accuracy", "params"]
    assert given == best


def test_a_quick_search_answers_where_no_study_does_and_the_same_every_time(launch: Callable[..., Any]) -> None:
    with launch().client() as client:
        first = client.subnetworks("tiny", limits={"max_params": 1500, "max_loss": 9}, count=2, seed=3)
        again = client.subnetworks("tiny", limits={"max_params": 1500, "max_loss": 9}, count=2, seed=3)
    assert [item.id for item in first] == [item.id for item in again]
    assert all(item.origin == "search" and item.measurements["params"].value <= 1500 for item in first)
    assert first[0].measurements["accuracy"].value >= first[1].measurements["accuracy"].value


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ({"limits": {"max_params": 10}}, "unsatisfiable", "the smallest subnetwork has 618 params"),
        ({"limits": {"max_parms": 10}}, "unknown_metric", "accuracy, loss, macs, model_size, params"),
        ({"limits": {"params": 10}}, "invalid_limits", "max_<metric> or min_<metric>"),
        ({"limits": {"max_params": 9, "min_params": 10}}, "invalid_limits", "no value could satisfy both"),
        ({"limit": {}}, "invalid_request", "body.limit: Extra inputs are not permitted"),
        ({"bits": 4}, "no_bitwidths", "has no bitwidth choices"),
        ({"objective": "beauty"}, "unknown_metric", "beauty"),
        ({"architecture": {"depth": 1, "layer1.width": 9}}, "invalid_architecture", "(8, 16, 32)"),
        ({"architecture": {"depth": 1}}, "invalid_architecture", "missing"),
        ({"count": 0}, "invalid_request", "body.count"),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_reason(
    studied: Any, body: dict[str, Any], error: str, words: str
) -> None:
    answer = post(studied, body)
    assert answer.status_code == 422
    assert answer.json()["error"] == error
    assert words in answer.json()["message"]
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]


def test_an_architecture_without_a_trial_is_measured(studied: Any, trained: Any) -> None:
    from nas.objectives import WeightSharing

    with TrialStore.load(str(trained.storage), "small") as store:
        known = {trial.arch_id for trial in store.trials()}
    fresh = next(item for item in trained.supernet.space.architectures() if item.arch_id not in known)
    with studied.client() as client:
        found = client.subnetwork("tiny", fresh)
    expected = WeightSharing(trained.supernet, DigitsData())(fresh, seed=0).measurements
    assert {name: found.measurements[name].value for name in expected} == pytest.approx(expected)
    assert found.origin == "request"


def test_ids_name_one_subnetwork_each_and_can_be_read_back() -> None:
    for space in (
        MLPSpace(4, 2, widths=(8, 16, 32), depths=(1, 2, 3)),
        ConvNetSpace([Stage((8, 16), (1, 2), (3, 5), (2, 3))], 10, resolutions=(12, 16), per_block=True),
    ):
        names = {architecture: subnetwork_id("0" * 16, space, architecture) for architecture in space.architectures()}
        assert len(set(names.values())) == space.size()
        for architecture, name in names.items():
            assert architecture_of(space, name.partition("-")[2]) == architecture
        top = max(int(name.partition("-")[2], 36) for name in names.values())
        assert architecture_of(space, "z" * 100) is None
        known = {int(name.partition("-")[2], 36) for name in names.values()}
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"
        for number in range(min(top, 1295)):
            text = (digits[number // 36] if number >= 36 else "") + digits[number % 36]
            assert (architecture_of(space, text) is not None) == (number in known)


def test_the_file_is_the_calibrated_subnetwork_and_fits_its_manifest(
    studied: Any, trained: Any, tmp_path: Path
) -> None:
    space = trained.supernet.space
    with studied.client() as client:
        found = client.subnetworks("tiny", limits={"max_params": 2000})[0]
        path = client.download(found, tmp_path / "tiny.safetensors")
        manifest = client.manifest(found)
    content = path.read_bytes()
    record = manifest["files"]["model.safetensors"]
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["bytes"] == len(content)
    assert manifest["architecture"] == found.architecture
    assert manifest["parameters"] == found.measurements["params"].value
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["weightloom"])["arch_id"] == found.arch_id
    architecture = space.architecture(found.architecture)
    data = DigitsData()
    data.setup("fit")
    expected = trained.supernet.extract(architecture)
    calibrate(expected, calibration_batches(data, 2), lambda batch: (batch[0],))
    stored = load_file(path)
    assert stored.keys() == expected.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.state_dict().items())


def in_this_process(function: Callable[..., Any], **_: Any) -> SerialExecutor[Any, Any]:
    return SerialExecutor(function)


def test_each_format_has_a_file_of_its_own(launch: Callable[..., Any], monkeypatch: Any) -> None:
    """Tracing takes seconds in a fresh process and is tested with the exporter: a file of safetensors stands in."""
    asked, form = [], "pt2"

    def stand_in(*given: Any, formats: list[str], **more: Any) -> None:
        asked.extend(formats)
        exported = export(*given, formats=["safetensors"], **more)
        written = exported.folder / "manifest.json"
        exported.files["safetensors"].rename(exported.folder / f"model.{form}")
        written.write_text(written.read_text().replace("model.safetensors", f"model.{form}"))

    monkeypatch.setattr("nas.service.tracing.export", stand_in)
    monkeypatch.setattr("nas.service.tracing.ProcessExecutor", in_this_process)
    running = launch()
    with running.client() as client:
        found = client.subnetworks("tiny", seconds=0.01)[0]
        manifest = client.manifest(found, format=form)
        expected = load(requests.get(running.url + found.weights["safetensors"], timeout=100).content)
    answer = requests.get(running.url + found.weights[form], timeout=100)
    assert asked == [form]
    assert hashlib.sha256(answer.content).hexdigest() == manifest["files"][f"model.{form}"]["sha256"]
    assert answer.headers["Content-Disposition"].endswith(f'.{form}"')
    stored = load(answer.content)
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())


def test_a_format_that_cannot_be_made_is_refused_and_the_next_file_is_made(
    launch: Callable[..., Any], monkeypatch: Any
) -> None:
    troubles = [ExportError("no such operator"), RuntimeError("it died")]

    def stand_in(*given: Any, formats: list[str], **more: Any) -> None:
        raise troubles.pop(0)

    monkeypatch.setattr("nas.service.tracing.export", stand_in)
    monkeypatch.setattr("nas.service.tracing.ProcessExecutor", in_this_process)
    running = launch()
    with running.client() as client:
        found = client.subnetworks("tiny", seconds=0.01)[0]
    answers = [requests.get(running.url + found.weights["onnx"], timeout=100) for _ in range(2)]
    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [
        (422, "not_exportable"),
        (503, "tracing"),
    ]
    assert [answer.json()["message"] for answer in answers] == ["no such operator", "RuntimeError: it died"]


def test_a_process_that_cannot_start_is_told_and_the_next_file_gets_another(monkeypatch: Any) -> None:
    class Unable(SerialExecutor[Any, Any]):
        closed = False

        def wait(self, timeout: float | None = None) -> Any:
            raise RuntimeError("a worker process must be able to start")

        def close(self) -> None:
            self.closed = True

    begun: list[Unable] = []
    monkeypatch.setattr(
        "nas.service.tracing.ProcessExecutor", lambda function, **_: begun.append(Unable(function)) or begun[-1]
    )
    tracer = Tracer()
    for _ in range(2):
        with pytest.raises(RefusedError, match="must be able to start") as refused:
            tracer(None)  # type: ignore[arg-type]
        assert (refused.value.status, refused.value.error) == (503, "tracing")
    assert [executor.closed for executor in begun] == [True, True]


def test_a_file_is_made_once_and_known_by_its_digest(launch: Callable[..., Any]) -> None:
    running = launch()
    with running.client() as client:
        found = client.subnetworks("tiny")[0]
    url = running.url + found.weights["safetensors"]
    first, second = requests.get(url, timeout=100), requests.get(url, timeout=100)
    assert (first.headers["X-Cache"], second.headers["X-Cache"]) == ("miss", "hit")
    assert first.content == second.content
    tag = first.headers["ETag"]
    assert tag == f'"{hashlib.sha256(first.content).hexdigest()}"'
    assert "immutable" in first.headers["Cache-Control"]
    for given in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        again = requests.get(url, headers={"If-None-Match": given}, timeout=100)
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert requests.get(url, headers={"If-None-Match": '"other"'}, timeout=100).status_code == 200
    head = requests.head(url, timeout=100)
    assert head.headers["Content-Length"] == str(len(first.content))
    assert head.content == b""


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-999999999", slice(5, None)),
    ],
)
def test_a_range_gives_that_part(studied: Any, header: str, part: slice) -> None:
    with studied.client() as client:
        url = studied.url + client.subnetworks("tiny")[0].weights["safetensors"]
    whole = requests.get(url, timeout=100)
    tag = whole.headers["ETag"]
    for extra in ({}, {"If-Range": tag}):
        answer = requests.get(url, headers={"Range": header, **extra}, timeout=100)
        assert answer.status_code == 206
        assert answer.content == whole.content[part]
        start = range(len(whole.content))[part][0]
        assert answer.headers["Content-Range"] == (
            f"bytes {start}-{start + len(answer.content) - 1}/{len(whole.content)}"
        )
    changed = requests.get(url, headers={"Range": header, "If-Range": '"old"'}, timeout=100)
    assert (changed.status_code, changed.content) == (200, whole.content)


@pytest.mark.parametrize(
    ("header", "status"), [("bytes=99999999-", 416), ("bytes=-0", 416), ("bytes=9-2", 200), ("lines=1-2", 200)]
)
def test_a_range_that_is_not_there_or_not_understood(studied: Any, header: str, status: int) -> None:
    with studied.client() as client:
        url = studied.url + client.subnetworks("tiny")[0].weights["safetensors"]
    answer = requests.get(url, headers={"Range": header}, timeout=100)
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["Content-Range"].startswith("bytes */")


def test_predictions_are_those_of_the_subnetwork_and_are_made_in_batches(studied: Any, trained: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from nas.objectives import WeightSharing

    architecture = trained.supernet.space.middle()
    module = WeightSharing(trained.supernet, DigitsData()).module(architecture)
    inputs = torch.randn(24, 1 + 2, 64)
    before = studied.service.batcher.batches

    def ask(rows: torch.Tensor) -> torch.Tensor:
        with studied.client() as client:
            return torch.tensor(client.predict("tiny", architecture, [rows.tolist()]))

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, inputs))
    with torch.no_grad():
        for rows, answer in zip(inputs, answers, strict=True):
            torch.testing.assert_close(answer, module(rows), rtol=1e-4, atol=1e-5)
    assert studied.service.batcher.batches - before < 24


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([[[0.0] * 63]], "shape ['batch', 64]"),
        ([[]], "at least one row"),
        ([[[0.0] * 64, [0.0] * 3]], "shape ['batch', 64]"),
        ([[["a"] * 64]], "finite numbers"),
        ([[[True] * 64]], "finite numbers"),
        ([[[1e300] * 64]], "finite numbers"),
        ([[[0.0] * 64], [[0.0] * 64]], "takes 1 inputs, got 2"),
        ([[[3e38] * 64]], "not finite"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(studied: Any, trained: Any, inputs: Any, words: str) -> None:
    body = {"architecture": dict(trained.supernet.space.smallest()), "inputs": inputs}
    answer = post(studied, body, "/v1/models/tiny/predict")
    assert answer.status_code == 422
    assert words in answer.json()["message"]


def test_the_client_raises_what_the_service_says(studied: Any) -> None:
    with studied.client() as client:
        with pytest.raises(ServiceError, match="cannot be met: the smallest subnetwork has") as refused:
            client.subnetworks("tiny", limits={"max_params": 1})
        assert (refused.value.status, refused.value.error) == (422, "unsatisfiable")
        with pytest.raises(ServiceError, match="it has tiny"):
            client.model("other")
        with pytest.raises(ServiceError, match="ask for a subnetwork again"):
            client.manifest("0" * 16 + "-1")
