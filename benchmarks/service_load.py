"""32 clients ask one service for subnetworks under different limits for a minute: is every file right, and how soon?

Each client sends eight requests a second, in turn a question for the best subnetwork under limits of its own and a
download of the answer's weights. Every file is hashed, read, and compared with its manifest and with the limits of the
question. Uncached files are timed on their own: subnetworks that nobody has asked for, one client after another on each
core, so that the time is that of making a file and not of standing in a queue.
"""

import hashlib
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import safetensors.torch

from benchmarks import Result
from benchmarks._service import MODEL, Answer, Connection, percentile, prepare, serving

CLIENTS, RATE = 32, 8.0
QUESTIONS = f"/v1/models/{MODEL}/subnetworks"


def wrong(answer: Answer, found: dict[str, Any], manifest: dict[str, Any], limits: dict[str, float]) -> str:
    """What is wrong with a file, or nothing."""
    record = manifest["files"]["model.safetensors"]
    digest = hashlib.sha256(answer.body).hexdigest()
    if answer.headers["etag"] != f'"{digest}"' or digest != record["sha256"] or len(answer.body) != record["bytes"]:
        return "digest"
    size = int.from_bytes(answer.body[:8], "little")
    inside = json.loads(json.loads(answer.body[8 : 8 + size])["__metadata__"]["weightloom"])
    if not inside["architecture"] == manifest["architecture"] == found["architecture"]:
        return "architecture"
    tensors = safetensors.torch.load(answer.body)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(statistics))
    if not parameters == manifest["parameters"] == found["measurements"]["params"]["value"]:
        return "parameters"
    values = {name: item["value"] for name, item in found["measurements"].items()}
    kept = all(
        values[key[4:]] <= bound if key.startswith("max_") else values[key[4:]] >= bound
        for key, bound in limits.items()
    )
    return "" if kept else "limits"


class Tally:
    """What the clients have seen."""

    def __init__(self) -> None:
        self.cached: list[float] = []
        self.uncached: list[float] = []
        self.errors: list[str] = []
        self.wrong: list[str] = []
        self.requests = 0
        self.files = 0
        self._lock = threading.Lock()
        self._manifests: dict[str, dict[str, Any]] = {}

    def note(self, answer: Answer, *, file: bool) -> None:
        with self._lock:
            self.requests += 1
            if answer.status != 200:
                self.errors.append(f"{answer.status} {answer.body[:200]!r}")
            elif file and answer.headers["x-cache"] == "miss":
                self.uncached.append(answer.seconds)
            else:
                self.cached.append(answer.seconds)

    def check(self, connection: Connection, found: dict[str, Any], answer: Answer, limits: dict[str, float]) -> None:
        manifest = self._manifests.get(found["id"])
        if manifest is None:
            manifest = connection.ask("GET", f"/v1/subnetworks/{found['id']}/manifest").json()
            self._manifests[found["id"]] = manifest
        problem = wrong(answer, found, manifest, limits)
        with self._lock:
            self.files += 1
            if problem:
                self.wrong.append(f"{found['id']}: {problem}")


def client(port: int, number: int, reach: dict[str, Any], tally: Tally, until: float) -> None:
    """Ask and download in turn, at a steady pace, until the time is over."""
    draw = random.Random(number)
    connection = Connection(port)
    due = time.monotonic() + draw.random() / RATE
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        metric = draw.choice(("params", "macs", "model_size"))
        low, high = reach[metric]["smallest"], reach[metric]["largest"]
        limits = {f"max_{metric}": low + (high - low) * (0.1 + 0.9 * draw.random())}
        answer = connection.ask("POST", QUESTIONS, {"limits": limits, "count": 4})
        tally.note(answer, file=False)
        due += 1 / RATE
        if answer.status == 200:
            time.sleep(max(0.0, due - time.monotonic()))
            found = draw.choice(answer.json()["subnetworks"])
            given = connection.ask("GET", found["weights"]["safetensors"])
            tally.note(given, file=True)
            if given.status == 200:
                tally.check(connection, found, given, limits)
        due += 1 / RATE
    connection.close()


def fresh(port: int, architectures: list[dict[str, Any]], tally: Tally) -> None:
    """Ask for subnetworks that nobody has asked for, one after the other."""
    connection = Connection(port)
    for architecture in architectures:
        asked = connection.ask("POST", QUESTIONS, {"architecture": architecture})
        found = asked.json()["subnetworks"][0]
        given = connection.ask("GET", found["weights"]["safetensors"])
        tally.note(given, file=True)
        if given.status == 200:
            tally.check(connection, found, given, {})
    connection.close()


def together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(quick: bool) -> Result:
    from supernets import load

    seconds, epochs, trials, count = (4.0, 1, 8, 6) if quick else (60.0, 40, 60, 60)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, epochs=epochs, trials=trials)
        space = load(folder / "runs/digits/fit-1/supernet").space
        architectures = [dict(architecture) for architecture in space.architectures()]
        random.Random(0).shuffle(architectures)
        with serving(folder) as server:
            reach = Connection(server.port).ask("GET", f"/v1/models/{MODEL}").json()["costs"]
            making = Tally()
            halves = [architectures[start:count:2] for start in (0, 1)]
            together([threading.Thread(target=fresh, args=(server.port, half, making)) for half in halves])
            warm = Tally()
            limits = {"max_params": reach["params"]["largest"]}
            everything = Connection(server.port).ask("POST", QUESTIONS, {"limits": limits, "count": 64}).json()
            fresh(server.port, [found["architecture"] for found in everything["subnetworks"]], warm)
            tally = Tally()
            started = time.monotonic()
            arguments = [(server.port, number, reach, tally, started + seconds) for number in range(CLIENTS)]
            together([threading.Thread(target=client, args=given) for given in arguments])
            rate = tally.requests / (time.monotonic() - started)
    errors = [*making.errors, *warm.errors, *tally.errors]
    bad = [*making.wrong, *warm.wrong, *tally.wrong]
    p50, p99 = (1000 * percentile(tally.cached, share) for share in (0.5, 0.99))
    made = 1000 * percentile(making.uncached, 0.5)
    rows = (
        {
            "requests": f"{CLIENTS} clients, cached",
            "number": tally.requests,
            "per second": f"{rate:.0f}",
            "p50, ms": f"{p50:.1f}",
            "p99, ms": f"{p99:.1f}",
            "files checked": tally.files,
        },
        {
            "requests": "2 clients, uncached files",
            "number": len(making.uncached),
            "per second": "",
            "p50, ms": f"{made:.1f}",
            "p99, ms": f"{1000 * percentile(making.uncached, 0.99):.1f}",
            "files checked": making.files,
        },
    )
    verdict = (
        f"{len(errors)} errors, {len(bad)} wrong files (asked 0 and 0); cached p99 {p99:.1f} ms (asked <= 50) at "
        f"{rate:.0f} requests/s (asked >= 200); uncached p50 {made:.1f} ms (asked <= 100)"
    )
    if errors or bad:
        verdict += f"; first: {(errors + bad)[0]}"
    return Result(rows, verdict, not errors and not bad and p99 <= 50 and rate >= 200 and made <= 100)
