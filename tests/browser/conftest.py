"""One browser for all pages, and one process that trains, searches and serves while the first of them are looked at."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEAN = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1"}
PREPARE = """
import json, sys
from pathlib import Path
import torch
from nas.__main__ import main
from trials import Tracker

database, port = sys.argv[1:]
torch.set_num_threads(1)
tracker = Tracker(database, "small")
assert tracker.experiment_id  # the tables are made, by one process alone
Path("tables").touch()
assert main(["fit", "-c", "small.yaml"]) == 0
assert main(["search", "-c", "small.yaml", "--ckpt_path", "models:/small-supernet@champion"]) == 0
(parent,) = tracker.runs({"nas.kind": "search"})
children = tracker.runs({"nas.kind": "trial", "mlflow.parentRunId": parent.run_id})
facts = {"experiment_id": tracker.experiment_id, "parent": parent.run_id, "children": [run.run_id for run in children]}
Path("facts.part").write_text(json.dumps(facts))
Path("facts.part").rename("facts.json")
main(["serve", "small=runs/small/fit-1/supernet", "--port", port, "--reload", "60"])
"""

SERVE = """
import os, sys, time
from pathlib import Path

while not Path("tables").exists():
    time.sleep(0.02)
os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *sys.argv[1:]])
"""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """End with the tests that wait for a training; it goes on during the others."""
    items.sort(key=lambda item: HERE in item.path.parents and "site" in getattr(item, "fixturenames", ()))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def begin(command: list[str], folder: Path, log: str) -> tuple["subprocess.Popen[bytes]", Callable[[str], None]]:
    """Begin a process; return it, and what waits for its answer or for a file that it writes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **LEAN}
    with (folder / log).open("wb") as stream:
        process = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream, env=environment)

    def wait(sign: str) -> None:
        deadline = time.monotonic() + 300
        while True:
            if not sign.startswith("http"):
                if (folder / sign).exists():
                    return
            else:
                with contextlib.suppress(OSError), urllib.request.urlopen(sign, timeout=20):
                    return
            assert process.poll() is None, (folder / log).read_text()[-3000:]
            assert time.monotonic() < deadline, f"no {sign} within 300 s"
            time.sleep(0.05)

    return process, wait


@dataclass(frozen=True)
class Site:
    """A running MLflow with one search in it, and a service of its supernet, which begins to load then.

    Attributes:
        wait: for an answer of the service.
    """

    address: str
    service: str
    experiment_id: str
    parent: str
    children: tuple[str, ...]
    wait: Callable[[str], None]


@pytest.fixture(scope="session", autouse=True)
def preparing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Site]]:
    """Begin to train, to search and to serve; yield what waits for it."""
    folder = tmp_path_factory.mktemp("site").resolve()
    load(HERE.parent / "nas" / "commands_fixture.py").write_config(folder, ("trials: 6", "trials: 12"))
    database = f"sqlite:///{folder}/mlflow.db"
    ports = [free_port(), free_port()]
    address, service = (f"http://127.0.0.1:{port}" for port in ports)
    server = [
        *(sys.executable, "-c", SERVE, "--backend-store-uri", database),
        *("--host", "127.0.0.1", "--port", str(ports[0]), "--workers", "1"),
    ]
    work = [sys.executable, "-c", PREPARE, database, str(ports[1])]
    (working, worked), (serving, served) = begin(work, folder, "work.log"), begin(server, folder, "server.log")

    def ready() -> Site:
        worked("facts.json")
        served(f"{address}/health")
        facts = json.loads((folder / "facts.json").read_text())
        return Site(address, service, facts["experiment_id"], facts["parent"], tuple(facts["children"]), worked)

    try:
        yield ready
    finally:
        for process in (working, serving):
            process.terminate()
        for process in (working, serving):
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def site(preparing: Callable[[], Site]) -> Site:
    """Wait for the search and for MLflow."""
    return preparing()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of the one browser."""
    with load(HERE / "chromium.py").chromium(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Where pictures are kept."""
    return ROOT / "runs" / "photographs"


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Any:
    """The browser's page in the size that a module asks for."""
    browser.resize(*getattr(request.module, "SIZE", (1240, 1000)))
    browser.complaints.clear()
    return browser
