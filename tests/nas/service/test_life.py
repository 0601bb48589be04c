"""Loading, newer versions, jobs, the cache on disk, and what is left when a process dies."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import torch

from nas import Client, ServiceError
from nas.addresses import Located
from nas.data import DigitsData
from nas.service.catalogue import Catalogue
from nas.service.jobs import Jobs
from nas.service.problems import RefusedError
from nas.service.schemas import Job, SubnetworkRequest, Subnetworks
from nas.service.settings import Offer, ServiceSettings
from search_spaces import MLPSpace
from supernets import Classification, Supernet, save
from trials import tracking_uri

pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[3]


def save_supernet(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    supernet = Supernet(MLPSpace(64, 10, widths=(8, 16), depths=(1,)), Classification(10), calibration=2)
    for parameter in supernet.parameters():
        torch.nn.init.normal_(parameter.data, generator=torch.Generator().manual_seed(seed))
    save(supernet, folder, data=DigitsData())


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_while_it_loads_the_service_says_so(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    from nas.service.app import create_app

    gate = threading.Event()
    load = Catalogue._refresh
    monkeypatch.setattr(Catalogue, "_refresh", lambda self, *a, **k: gate.wait(200) and load(self, *a, **k))
    settings = ServiceSettings((f"tiny={trained.folder}",), folder=str(tmp_path), reload=0.05)
    with TestClient(create_app(settings)) as http:
        early = http.get("/readyz")
        assert (early.status_code, early.json()["status"]) == (503, "loading")
        assert int(early.headers["Retry-After"]) > 0
        assert http.get("/livez").status_code == 200
        for method, path in (("GET", "/v1/models/tiny"), ("GET", f"/v1/subnetworks/{'0' * 16}-1/weights")):
            answer = http.request(method, path)
            assert (answer.status_code, answer.json()["error"]) == (503, "loading")
            assert "Retry-After" in answer.headers
        gate.set()
        until(lambda: http.get("/readyz").status_code == 200)


def test_a_supernet_that_cannot_be_loaded_is_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "late"
    catalogue = Catalogue(ServiceSettings((f"late={folder}",), folder=str(tmp_path)))
    catalogue.refresh()
    assert not catalogue.ready
    assert "does not exist" in catalogue.states()["late"]
    with pytest.raises(RefusedError, match="could not be loaded") as refused:
        catalogue.get("late")
    assert refused.value.status == 503
    save_supernet(folder, 1)
    catalogue.refresh()
    assert catalogue.ready
    assert catalogue.get("late").offer.name == "late"


def test_a_newer_version_takes_over_and_links_to_the_one_before_still_work(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "moving"
    save_supernet(folder, 1)
    running = launch(models=(f"moving={folder}",))
    with running.client() as client:
        old = client.subnetworks("moving")[0]
        first = client.model("moving").revision
        held = running.service.catalogue.get("moving")
        save_supernet(folder, 2)
        until(lambda: client.model("moving").revision != first)
        new = client.subnetworks("moving")[0]
        assert new.revision != old.revision
        before, after = client.manifest(old), client.manifest(new)
        assert before["weights_version"] == held.objective.version
        assert after["weights_version"] != before["weights_version"]
        shutil.rmtree(folder)
        time.sleep(0.3)
        assert client.model("moving").revision == new.revision


def test_requests_in_flight_end_on_the_version_they_began_with(launch: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "moving"
    save_supernet(folder, 1)
    running = launch(models=(f"moving={folder}",))
    make, begun, gate = running.service.cache.make, threading.Event(), threading.Event()

    def slow(*given: Any) -> None:
        begun.set()
        gate.wait(200)
        make(*given)

    running.service.cache.make = slow
    with running.client() as client:
        old = client.subnetworks("moving")[0]
        answers: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: answers.append(Client(running.url).manifest(old)))
        thread.start()
        begun.wait(200)
        for seed in (2, 3):  # the version in flight is neither the present one nor that before it
            save_supernet(folder, seed)
            present = client.model("moving").revision
            until(lambda present=present: client.model("moving").revision != present)
        gate.set()
        thread.join()
    assert answers[0]["arch_id"] == old.arch_id
    assert running.service.catalogue.of_revision(old.revision) is None


def test_an_alias_that_moves_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the registry, which takes seconds to make and is tested with the tracker."""
    present = 1

    class Registry:
        def __init__(self, uri: str) -> None:
            assert uri == tracking_uri()

        def present_version(self, address: str) -> int:
            assert address == "models:/served-supernet@champion"
            return present

    def find(offer: Offer) -> Located:
        return Located(offer.address, tmp_path / str(present), "served-supernet", present)

    monkeypatch.setattr("nas.service.catalogue.Tracker", Registry)
    monkeypatch.setattr(Offer, "locate", find)
    catalogue = Catalogue(ServiceSettings(("models:/served-supernet@champion",), folder=str(tmp_path)))
    loaded = []
    for present in (1, 2):
        save_supernet(tmp_path / str(present), present)
        catalogue.refresh()
        loaded.append(catalogue.get("served-supernet"))
        catalogue.refresh()
        assert catalogue.get("served-supernet") is loaded[-1]
    assert [served.located.version for served in loaded] == [1, 2]
    assert loaded[0].revision != loaded[1].revision


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("models:/digits-supernet@champion", "digits-supernet"),
        ("models:/digits/3", "digits"),
        ("runs/digits/fit-1/supernet", "supernet"),
        ("best=runs/a=b", "best"),
        ("last.ckpt", "last"),
    ],
)
def test_names_of_supernets(text: str, name: str) -> None:
    assert Offer.parse(text).name == name
    assert text.endswith(Offer.parse(text).address)


def test_a_long_search_is_a_job(launch: Callable[..., Any]) -> None:
    running = launch()
    answer = requests.post(
        f"{running.url}/v1/models/tiny/subnetworks", json={"seconds": 5, "limits": {"max_params": 1500}}, timeout=100
    )
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['id']}"
    with running.client() as client:
        found = client.wait(Job.model_validate(answer.json()))
        job = client.job(answer.json()["id"])
        assert [item.id for item in client.jobs()] == [job.id]
        assert client.cancel(job.id) == job  # it has ended, and stays as it is
        with pytest.raises(ServiceError, match="there is no job"):
            client.job("0" * 32)
        failed = client.begin("tiny", limits={"max_params": 1}, seconds=5)
        assert isinstance(failed, Job)
        with pytest.raises(ServiceError, match="the smallest subnetwork has 618 params"):
            client.wait(failed)
    assert (job.state, job.progress.tried) == ("done", found.considered)
    assert found.subnetworks[0].measurements["params"].value <= 1500


def slow_search(tries: list[int], gate: threading.Event) -> Callable[..., Subnetworks]:
    """Try one candidate after another until told to stop, or until the gate is open."""

    def search(*_: Any, progress: Any, stop: Any, **__: Any) -> Subnetworks:
        for tried in range(10_000):
            tries.append(tried)
            progress(tried + 1, tried + 1)
            if stop() or gate.is_set():
                break
            time.sleep(0.01)
        return Subnetworks(subnetworks=[], considered=len(tries))

    return search


@pytest.fixture
def catalogue(trained: Any, tmp_path: Path) -> Catalogue:
    made = Catalogue(ServiceSettings((f"tiny={trained.folder}",), folder=str(tmp_path), storage=str(tmp_path / "no")))
    made.refresh()
    return made


def test_jobs_are_cancelled_running_and_waiting_and_bounded(catalogue: Catalogue, tmp_path: Path) -> None:
    tries: list[int] = []
    jobs = Jobs(tmp_path / "jobs", catalogue, queue=1, search=slow_search(tries, threading.Event()))
    served = catalogue.get("tiny")
    running, waiting = (jobs.create(served, SubnetworkRequest(seconds=60)) for _ in range(2))
    with pytest.raises(RefusedError, match="2 jobs are waiting"):
        jobs.create(served, SubnetworkRequest(seconds=60))
    until(lambda: jobs.get(running.id).state == "running")
    assert jobs.cancel(waiting.id).state == "cancelled"
    jobs.cancel(running.id)
    until(lambda: jobs.get(running.id).state == "cancelled")
    assert jobs.get(running.id).progress.tried == len(tries) > 0
    jobs.close()


def test_a_job_is_taken_up_by_the_next_process_and_by_one_only(catalogue: Catalogue, tmp_path: Path) -> None:
    tries: list[int] = []
    gate = threading.Event()
    first = Jobs(tmp_path / "jobs", catalogue, queue=4, search=slow_search(tries, gate))
    job = first.create(catalogue.get("tiny"), SubnetworkRequest(seconds=60))
    until(lambda: tries)
    other = Jobs(tmp_path / "jobs", catalogue, queue=4, search=lambda *_, **__: pytest.fail("two work on one job"))
    other.tend()
    other.close()
    first.close()
    assert first.get(job.id).state == "queued"
    gate.set()
    second = Jobs(tmp_path / "jobs", catalogue, queue=4, search=slow_search(tries, gate))
    second.tend()
    assert until(lambda: second.get(job.id).result) == Subnetworks(subnetworks=[], considered=len(tries))
    second.close()


def test_a_job_of_a_supernet_that_is_gone_has_failed_and_old_jobs_are_forgotten(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    jobs = Jobs(tmp_path / "jobs", catalogue, queue=4)
    for name, state, age in (("a" * 32, "running", 0.0), ("b" * 32, "done", 2 * 86400.0), ("c" * 32, "done", 10.0)):
        now = time.time() - age
        job = Job(
            id=name,
            model="tiny",
            revision="0" * 16,
            state=state,
            request=SubnetworkRequest(),
            created=now,
            finished=now,
        )
        (tmp_path / "jobs" / name).mkdir()
        (tmp_path / "jobs" / name / "job.json").write_text(job.model_dump_json())
    (tmp_path / "jobs" / ("d" * 32)).mkdir()
    (tmp_path / "jobs" / ("d" * 32) / "job.json").write_text('{"id": ')
    jobs.tend()
    assert "is not served any more" in str(until(lambda: jobs.get("a" * 32).message))
    assert [job.id[0] for job in jobs.all()] == ["c", "a"]
    jobs.close()


def test_the_cache_keeps_its_bound_and_what_is_being_read(catalogue: Catalogue, tmp_path: Path) -> None:
    from nas.service.cache import WeightCache

    served = catalogue.get("tiny")
    architectures = list(served.space.architectures())[:4]
    names = [served.name_of(architecture) for architecture in architectures]
    cache = WeightCache(tmp_path / "weights", 22_000)
    cache.make(served, architectures[0], "safetensors")
    opened = cache.open(names[0], "safetensors")
    assert opened is not None
    for number, architecture in enumerate(architectures[1:], 1):
        cache.make(served, architecture, "safetensors")
        os.utime(tmp_path / "weights" / f"{names[number]}.safetensors", (number, number))
    cache.make(served, served.space.largest(), "safetensors")
    kept = sorted(place.name for place in (tmp_path / "weights").iterdir())
    assert f"{served.name_of(served.space.largest())}.safetensors" in kept
    assert f"{names[1]}.safetensors" not in kept
    assert sum(file.stat().st_size for file in (tmp_path / "weights").rglob("*") if file.is_file()) <= 22_000
    shutil.rmtree(tmp_path / "weights")
    with opened.file as file:
        content = file.read()
    import hashlib

    assert hashlib.sha256(content).hexdigest() == opened.digest
    assert cache.open(names[0], "safetensors") is None


def test_what_a_killed_process_leaves_is_never_served_and_removed_later(catalogue: Catalogue, tmp_path: Path) -> None:
    from nas.service.cache import WeightCache

    served = catalogue.get("tiny")
    name = served.name_of(served.space.smallest())
    folder = tmp_path / "weights"
    draft = folder / f".{name}.safetensors.0123abcd.partial"
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(b"half")
    fresh = WeightCache(folder, 1 << 20)
    assert draft.exists()  # it may be another process's
    assert fresh.open(name, "safetensors") is None
    fresh.make(served, served.space.smallest(), "safetensors")
    opened = fresh.open(name, "safetensors")
    assert opened is not None
    opened.file.close()
    os.utime(draft, (0, 0))
    WeightCache(folder, 1 << 20)
    assert [place.name for place in folder.iterdir()] == [f"{name}.safetensors"]
