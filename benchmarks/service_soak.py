"""Ten minutes of requests, newer versions and cancelled jobs: does memory stay flat, and is every file cleared away?

Eight clients ask, download in all three formats through a cache that is too small for them, and predict, without a
pause. Meanwhile the folder of the supernet is written anew every few seconds, in turn with each of two versions, and
jobs are begun and cancelled. Memory is that of the server's process and of the process that traces. Before the clock
starts each format is asked for once, so that the libraries that trace are imported; the first fifth of the run is not
counted either, as caches fill in it.
"""

import contextlib
import itertools
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import Result
from benchmarks._service import MODEL, Connection, Server, percentile, prepare, serving
from nas import Client
from nas.service.schemas import Job

CACHE = 3_000_000
PARTS = 5
QUICK, FULL = (20.0, 1, 3.0), (600.0, 10, 10.0)  # seconds, epochs of training, seconds between versions
FORMATS = ("safetensors",) * 40 + ("pt2", "onnx")


class Tally:
    """What was done, and what went wrong."""

    def __init__(self) -> None:
        self.requests = 0
        self.reloads = 0
        self.cancelled = 0
        self.errors: list[str] = []

    def note(self, status: int, what: str) -> None:
        self.requests += 1
        if status not in (200, 304, 404, 429):  # 404: of a version that is gone
            self.errors.append(f"{status} {what}")


def warm(port: int) -> None:
    """Have one file of each format made."""
    connection = Connection(port)
    answer = connection.ask("POST", f"/v1/models/{MODEL}/subnetworks", {"seconds": 0.1})
    for form in dict.fromkeys(FORMATS):
        connection.ask("GET", answer.json()["subnetworks"][0]["weights"][form])
    connection.close()


def ask(port: int, number: int, tally: Tally, over: Callable[[], bool]) -> None:
    """Ask for a subnetwork, download it, and run it, until it is over."""
    draw = random.Random(number)
    connection = Connection(port)
    while not over():
        limits = {"max_params": draw.uniform(5000, 50000)}
        path = f"/v1/models/{MODEL}/subnetworks"
        answer = connection.ask(
            "POST", path, {"limits": limits, "count": 8, "seconds": 0.1, "seed": draw.randrange(99)}
        )
        tally.note(answer.status, f"question {answer.body[:200]!r}")
        if answer.status != 200:
            continue
        found = draw.choice(answer.json()["subnetworks"])
        given = connection.ask("GET", found["weights"][draw.choice(FORMATS)])
        tally.note(given.status, f"file {given.body[:200]!r}")
        body = {"subnetwork": found["id"], "inputs": [torch.zeros(2, 1, 8, 8).tolist()]}
        tally.note(connection.ask("POST", f"/v1/models/{MODEL}/predict", body).status, "prediction")
    connection.close()


def reload(folder: Path, tally: Tally, over: Callable[[], bool], pause: float) -> None:
    """Put one version of the supernet after the other in its place."""
    place = folder / "runs/digits/fit-1/supernet"
    for version in itertools.cycle(("b", "a")):
        for _ in range(int(pause / 0.1)):
            if over():
                return
            time.sleep(0.1)
        draft = place.with_name("draft")
        shutil.copytree(folder / version, draft)
        os.utime(draft / "supernet.json")
        old = place.with_name("old")
        place.rename(old)
        draft.rename(place)
        shutil.rmtree(old)
        tally.reloads += 1


def cancel(server: Server, tally: Tally, over: Callable[[], bool]) -> None:
    """Begin jobs that no study answers, and cancel them."""
    with Client(server.url) as client:
        while not over():
            job = client.begin(MODEL, limits={"min_accuracy": 1.0, "max_params": 5000}, seconds=60)
            if isinstance(job, Job):
                time.sleep(0.5)
                client.cancel(job.id)
                tally.cancelled += 1
            time.sleep(0.5)


def versions(folder: Path) -> None:
    """Keep the trained supernet as version a, and one with its weights halved as version b."""
    from nas.trainer import data_of
    from supernets import load, read_card, save

    place = folder / "runs/digits/fit-1/supernet"
    shutil.copytree(place, folder / "a")
    supernet = load(place)
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.mul_(0.5)
    save(supernet, folder / "b", data=data_of(read_card(place), None, address=str(place)))


def run(quick: bool) -> Result:
    seconds, epochs, pause = QUICK if quick else FULL
    tally = Tally()
    memory: list[list[float]] = [[] for _ in range(PARTS)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, epochs=epochs, trials=0)
        versions(folder)
        with serving(folder, "--cache_bytes", str(CACHE), "--reload", "1", "--timeout", "120") as server:
            warm(server.port)
            end = time.monotonic() + seconds

            def over() -> bool:
                return time.monotonic() > end

            threads = [threading.Thread(target=ask, args=(server.port, number, tally, over)) for number in range(8)]
            threads.append(threading.Thread(target=reload, args=(folder, tally, over, pause)))
            threads.append(threading.Thread(target=cancel, args=(server, tally, over)))
            for thread in threads:
                thread.start()
            while not over():
                part = min(PARTS - 1, int(PARTS * (1 - (end - time.monotonic()) / seconds)))
                memory[part].append(server.memory())
                time.sleep(0.5)
            for thread in threads:
                thread.join()
            descriptors = Path(f"/proc/{server.process.pid}/fd")
            opened = sum(1 for file in descriptors.iterdir() if _in(file, folder / "runs/service/weights"))
        weights = folder / "runs/service/weights"
        left = [item.name for item in weights.iterdir() if item.name.startswith(".")]
        size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
        unfinished = [file for file in (folder / "runs/service/jobs").rglob("*") if file.name.startswith(".")]
    medians = [percentile(part, 0.5) if part else 0.0 for part in memory]
    early, late = medians[1], medians[-1]
    growth = late / early - 1 if early else 1.0
    rows = tuple(
        {"part of the run": f"{number + 1} of {PARTS}", "resident memory, MiB": f"{value:.0f}"}
        for number, value in enumerate(medians)
    )
    leaked = len(left) + len(unfinished) + opened + (size > CACHE)
    verdict = (
        f"memory {100 * growth:+.1f} % from the second fifth to the last (asked within 5 %), {leaked} files leaked "
        f"(asked 0), {len(tally.errors)} errors in {tally.requests} requests with {tally.reloads} newer versions and "
        f"{tally.cancelled} cancelled jobs in {seconds:.0f} s"
    )
    if tally.errors:
        verdict += f"; first: {tally.errors[0]}"
    return Result(rows, verdict, abs(growth) <= 0.05 and not leaked and not tally.errors)


def _in(link: Path, folder: Path) -> bool:
    """Whether an open file of a process lies in a folder."""
    with contextlib.suppress(OSError):
        return str(folder) in os.readlink(link)
    return False
