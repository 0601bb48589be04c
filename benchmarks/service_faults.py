"""``kill -9`` of the service while it works on jobs and hands out files: what does the next process find and serve?

Two processes share the cache and the jobs. One round: clients download without a pause, a job is running, and every
process is killed at a moment drawn at random; then the service is started again. Every file that a client ever gets
complete is compared with its digest, every file in the cache with its manifest, and every job must come to its end.
"""

import contextlib
import hashlib
import http.client
import json
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks import Result
from benchmarks._service import MODEL, Connection, Server, prepare, serving
from nas import Client
from nas.service.schemas import Job


class Tally:
    """What clients saw."""

    def __init__(self) -> None:
        self.files = 0
        self.cut = 0
        self.wrong: list[str] = []


def download(port: int, number: int, tally: Tally, until: float) -> None:
    """Ask for random subnetworks and download them; the service may die at any moment."""
    draw = random.Random(number)
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        connection = Connection(port)
        while time.monotonic() < until:
            body = {"limits": {"max_params": draw.uniform(5000, 50000)}, "seed": draw.randrange(9999), "seconds": 0.1}
            answer = connection.ask("POST", f"/v1/models/{MODEL}/subnetworks", body | {"count": 8})
            if answer.status != 200:
                continue
            found = draw.choice(answer.json()["subnetworks"])
            given = connection.ask("GET", found["weights"]["safetensors"])
            if given.status != 200:
                continue
            tally.files += 1
            if f'"{hashlib.sha256(given.body).hexdigest()}"' != given.headers["etag"]:
                tally.wrong.append(found["id"])
        return
    tally.cut += 1


def kill(server: Server) -> None:
    """Kill every process of the service at once."""
    parent = psutil.Process(server.process.pid)
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    server.process.wait()


def damaged(folder: Path) -> list[str]:
    """Names of entries of the cache that do not fit their manifest."""
    found = []
    for place in folder.iterdir():
        if place.name.startswith("."):
            continue
        for name, record in json.loads((place / "manifest.json").read_text())["files"].items():
            if hashlib.sha256((place / name).read_bytes()).hexdigest() != record["sha256"]:
                found.append(place.name)
    return found


def run(quick: bool) -> Result:
    rounds = 1 if quick else 5
    draw = random.Random(0)
    tally = Tally()
    jobs: list[str] = []
    resumed = 0
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, epochs=1, trials=0)
        for _ in range(rounds):
            with serving(folder, "--workers", "2", "--storage", "none.journal") as server, Client(server.url) as client:
                job = client.begin(MODEL, limits={"max_params": 40000}, seconds=4)
                assert isinstance(job, Job)
                jobs.append(job.id)
                while client.job(job.id).state == "queued":
                    time.sleep(0.05)
                until = time.monotonic() + 60
                threads = [
                    threading.Thread(target=download, args=(server.port, number, tally, until)) for number in range(4)
                ]
                for thread in threads:
                    thread.start()
                time.sleep(1 + 2 * draw.random())
                kill(server)
                for thread in threads:
                    thread.join()
            bad += damaged(folder / "runs/service/weights")
        with serving(folder, "--storage", "none.journal") as server, Client(server.url) as client:
            states = []
            for name in jobs:
                job = client.job(name)
                while job.state in ("queued", "running"):
                    time.sleep(0.1)
                    job = client.job(name)
                states.append(job.state)
                resumed += job.state == "done"
            served = damaged(folder / "runs/service/weights")
    lost = sum(state not in ("done", "failed") for state in states)
    wrong = [*tally.wrong, *bad, *served]
    row = {
        "kills": rounds,
        "files got complete": tally.files,
        "connections cut": tally.cut,
        "jobs resumed": resumed,
        "jobs reported failed": states.count("failed"),
    }
    verdict = (
        f"{len(wrong)} partial or wrong files served or kept, {lost} of {len(jobs)} jobs neither resumed nor reported "
        f"failed, after {rounds} x kill -9 (asked 0 and 0)"
    )
    return Result((row,), verdict, not wrong and not lost)
