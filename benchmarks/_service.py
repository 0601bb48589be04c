"""A served supernet for benchmarks: trained and searched in a minute, then served by a process of its own."""

import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
MODEL = "digits"


def prepare(folder: Path, *, epochs: int, trials: int) -> None:
    """Train the supernet of the demo in ``folder`` and, where trials are asked for, search it."""
    from nas.__main__ import main

    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {"max_epochs": epochs, "check_val_every_n_epoch": epochs, "logger": False}
    config["search"] |= {"trials": max(1, trials)}
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as said:
        Path("digits.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        commands = [["fit", "-c", "digits.yaml"]]
        if trials:
            commands.append(["search", "-c", "digits.yaml", "--ckpt_path", "runs/digits/fit-1/supernet"])
        for command in commands:
            if main(command):
                raise RuntimeError(f"nas {command[0]} failed:\n{said.getvalue()}")


@dataclass(frozen=True)
class Server:
    """A running ``nas serve``."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self) -> float:
        """Resident mebibytes of the process and its children."""
        import psutil

        found = psutil.Process(self.process.pid)
        return sum(item.memory_info().rss for item in (found, *found.children(recursive=True))) / 2**20


@contextlib.contextmanager
def serving(folder: Path, *options: str, token: str | None = None) -> Iterator[Server]:
    """Run ``nas serve`` on the supernet of :func:`prepare` until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if token is not None:
        environment["NAS_SERVICE_TOKEN"] = token
    command = [sys.executable, "-m", "nas", "serve", f"{MODEL}=runs/digits/fit-1/supernet", "--port", str(port)]
    log = folder / "serve.log"
    with log.open("ab") as file:
        process = subprocess.Popen([*command, *options], cwd=folder, env=environment, stdout=file, stderr=file)
    server = Server(port, process, log)
    try:
        deadline = time.monotonic() + 300
        while not ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nas serve did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(port: int) -> bool:
    """Whether the service answers that it is ready."""
    try:
        connection = Connection(port)
        return connection.ask("GET", "/readyz").status == 200
    except OSError:
        return False


@dataclass(frozen=True)
class Answer:
    """What came back, and how long it took."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One kept connection: as little client as possible, so that it is the service that is timed."""

    def __init__(self, port: int, token: str | None = None) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        started = time.perf_counter()
        headers = dict(self._headers)
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self._http.request(method, path, body=content, headers=headers)
        answer = self._http.getresponse()
        data = answer.read()
        seconds = time.perf_counter() - started
        return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, data, seconds)

    def close(self) -> None:
        self._http.close()


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
