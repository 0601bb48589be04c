"""Networks sampled for the examples that a client sends: at once or as a job, and what is refused."""

import hashlib
import json
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from safetensors.torch import load, save, save_file

from hypernets import read_provenance
from nas import DatasetSampler, DigitsData, Request, ServiceError, save_sampler
from nas.dataset_maker import DatasetMaker
from nas.service.settings import ServiceSettings
from nas.service.uploads import UploadedImages

pytestmark = pytest.mark.filterwarnings("default")
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def sampling(
    sampler: DatasetSampler, trained: Any, serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A service of a hypernetwork that samples, and of a supernet that does not."""
    folder = tmp_path_factory.mktemp("sampling")
    save_sampler(sampler, folder / "sampler")
    models = (f"draws={folder / 'sampler'}", f"tiny={trained.folder}")
    with serving(ServiceSettings(models, storage=str(trained.storage), folder=str(folder / "service"))) as found:
        yield found


def examples(count: int = 120) -> dict[str, torch.Tensor]:
    train = DigitsData().splits.train
    return {"inputs": train.images[:count].contiguous(), "labels": train.labels[:count].contiguous()}


def examples_named() -> dict[str, torch.Tensor]:
    return dict(zip(("images", "labels"), examples().values(), strict=True))


def post(running: Any, body: bytes, model: str = "draws", **given: Any) -> requests.Response:
    return requests.post(f"{running.url}/v1/generate/{model}", data=body, params=given, headers=OCTETS, timeout=100)


def test_one_network_is_drawn_at_once_and_is_that_of_the_library(
    sampling: Any, sampler: DatasetSampler, tmp_path: Path
) -> None:
    given = examples()
    save_file(given, tmp_path / "few")
    with sampling.client() as client:
        made = client.sample("draws", tmp_path / "few", tmp_path / "a", per_class=3, seed=4)
        again = client.sample("draws", tmp_path / "few", tmp_path / "b", per_class=3, seed=4)
        other = client.sample("draws", tmp_path / "few", tmp_path / "c", per_class=3, seed=5)
    data = UploadedImages(**examples_named(), num_classes=10, held=0.0)
    expected = DatasetMaker(sampler, data).write(Request(seed=4, examples=3), tmp_path / "d", evaluate=False)
    assert made.read_bytes() == again.read_bytes() == expected.path.read_bytes()
    assert made.read_bytes() != other.read_bytes()
    assert read_provenance(made)["condition"] == expected.provenance["condition"]


def test_of_several_the_best_on_examples_set_aside_is_kept_by_a_job(
    sampling: Any, sampler: DatasetSampler, tmp_path: Path
) -> None:
    save_file(examples(), tmp_path / "few")
    begun = post(sampling, (tmp_path / "few").read_bytes(), count=3, examples=2)
    assert begun.status_code == 202
    job = begun.json()
    assert begun.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert job["request"] == {"model": "draws", "examples": 2, "count": 3, "seed": 0}
    with sampling.client() as client:
        made = client.sample("draws", tmp_path / "few", tmp_path / "a", per_class=2, count=3)
        deadline = time.monotonic() + 200
        while client.job(job["id"]).state in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ended = client.job(job["id"])
        with pytest.raises(ServiceError, match="is no search; its weights are at /v1/jobs/"):
            client.wait(ended)
    assert ended.weights == f"/v1/jobs/{job['id']}/weights"
    answer = requests.get(sampling.url + ended.weights, timeout=100)
    assert answer.headers["ETag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.content == made.read_bytes()
    data = UploadedImages(**examples_named(), num_classes=10, held=0.2)
    assert (len(data.splits.train), len(data.splits.validation), len(data.splits.test)) == (96, 24, 0)
    expected = DatasetMaker(sampler, data).write(Request(examples=2, count=3), tmp_path / "d", evaluate=False)
    assert made.read_bytes() == expected.path.read_bytes()
    assert read_provenance(made)["count"] == 3
    assert not list(Path(sampling.settings.folder).glob("jobs/*/examples.safetensors"))


def test_a_draw_that_was_interrupted_is_begun_again(
    sampling: Any, launch: Callable[..., Any], tmp_path: Path, sampler: DatasetSampler
) -> None:
    save_sampler(sampler, tmp_path / "sampler")
    folder = tmp_path / "service"
    begun = post(sampling, save(examples()), count=2).json()
    left = {**begun, "id": "0" * 32, "state": "running"}
    (folder / "jobs" / left["id"]).mkdir(parents=True)
    (folder / "jobs" / left["id"] / "examples.safetensors").write_bytes(save(examples()))
    (folder / "jobs" / left["id"] / "job.json").write_text(json.dumps(left))
    running = launch(models=(f"draws={tmp_path / 'sampler'}",), folder=str(folder))
    deadline = time.monotonic() + 200
    with running.client() as client:
        while client.job(left["id"]).state in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.job(left["id"]).state == "done"
    assert load(requests.get(f"{running.url}/v1/jobs/{left['id']}/weights", timeout=100).content)


def _bomb() -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs", b"\0" * 20_000_000)
    return packed.getvalue()


def _header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"\0", "must be a safetensors file"),
    "bomb": (_bomb, "must be a safetensors file"),
    "pickle": (lambda: b"\x80\x04cos\nsystem\n(S'true'\ntR.", "must be a safetensors file"),
    "header": (lambda: struct.pack("<Q", 1 << 60) + b"{}", "must be a safetensors file"),
    "short": (lambda: save(examples())[:-7], "must be a safetensors file"),
    "huge": (
        lambda: _header(inputs={"dtype": "U8", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}) + b"0000",
        "must be a safetensors file",
    ),
    "names": (lambda: save({"images": examples()["inputs"]}), r"exactly the tensors inputs and labels, got \['images'"),
    "floats": (
        lambda: save({**examples(), "inputs": examples()["inputs"].float()}),
        r"of type uint8, got \(120, 1, 8, 8\) of type float32",
    ),
    "shape": (lambda: save({**examples(), "inputs": examples()["inputs"].flatten(1)}), r"uint8, got \(120, 64\)"),
    "fewer": (lambda: save({**examples(), "labels": examples()["labels"][:9].clone()}), r"labels must be \(120,\)"),
    "labels": (lambda: save({**examples(), "labels": examples()["labels"] + 1}), "between 0 and 9, got 1 to 10"),
    "none": (lambda: save({k: v[:0].clone() for k, v in examples().items()}), "between 0 and 9, got none"),
    "few": (lambda: save(examples(30)), r"each class needs 5 examples, got .* send more, or ask for fewer"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_what_is_no_example_set_is_refused_and_the_service_stays_up(sampling: Any, kind: str) -> None:
    make, words = BAD[kind]
    with pytest.raises(ServiceError, match=words) as refused, sampling.client() as client:
        client._send("POST", "/v1/generate/draws", data=make(), headers=OCTETS)
    assert (refused.value.status, refused.value.error) == (422, "invalid_upload")
    assert requests.get(f"{sampling.url}/livez", timeout=100).status_code == 200


def test_other_refusals_have_their_documented_code(sampling: Any) -> None:
    body = save(examples())
    for answer, status, error in (
        (post(sampling, body, model="tiny"), 404, "not_sampled"),
        (post(sampling, body, model="none"), 404, "unknown_model"),
        (post(sampling, body, count=65), 422, "invalid_request"),
        (post(sampling, body, examples=0), 422, "invalid_request"),
        (post(sampling, b"0" * (sampling.settings.max_body + 1)), 413, "body_too_large"),
        (post(sampling, b""), 422, "invalid_request"),
        (requests.get(f"{sampling.url}/v1/jobs/{'1' * 32}/weights", timeout=100), 404, "unknown_job"),
    ):
        assert (answer.status_code, answer.json()["error"]) == (status, error)
    few = post(sampling, save(examples(60)), count=2)
    assert "a fifth being set aside to choose among 2 networks" in few.json()["message"]
    asked = requests.post(f"{sampling.url}/v1/generate", json={"model": "draws", "condition": {"few": 1}}, timeout=100)
    assert (asked.status_code, asked.json()["error"]) == (422, "needs_examples")
    assert "POST its examples to /v1/generate/draws" in asked.json()["message"]
    search = requests.post(
        f"{sampling.url}/v1/models/tiny/subnetworks",
        json={"limits": {"min_accuracy": 2.0}, "seconds": 1.1},
        timeout=100,
    )
    answer = requests.get(f"{sampling.url}/v1/jobs/{search.json()['id']}/weights", timeout=100)
    assert (answer.status_code, answer.json()["error"]) == (404, "no_weights")


def test_a_cancelled_draw_leaves_no_weights(sampling: Any) -> None:
    jobs = [post(sampling, save(examples()), count=64).json()["id"] for _ in range(3)]
    with sampling.client() as client:
        client.cancel(jobs[-1])
        deadline = time.monotonic() + 200
        while client.job(jobs[-1]).state in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.job(jobs[-1]).state == "cancelled"
        with pytest.raises(ServiceError, match="is cancelled and has no weights"):
            client._send("GET", f"/v1/jobs/{jobs[-1]}/weights")
