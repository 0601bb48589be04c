"""MLflow's own pages after one fit and one search: what a person finds without knowing where to look."""

import contextlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest
import torch

from nas.__main__ import main
from trials import Tracker

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]
HERE = Path(__file__).parent
PHOTOGRAPHS = HERE.parents[1] / "runs" / "photographs"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


browser = load(HERE / "chromium.py")
experiment = load(HERE.parent / "nas" / "commands_fixture.py")


@dataclass(frozen=True)
class Site:
    """A running MLflow with one search in it."""

    address: str
    experiment_id: str
    parent: str
    children: tuple[str, ...]
    page: Any


def quietly(arguments: list[str]) -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        assert main(arguments) == 0, stream.getvalue()


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, Any]]:
    """Start MLflow on a free port, without waiting for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
    ]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        )
    address = f"http://127.0.0.1:{port}"

    def ready() -> None:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2):
                return
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "MLflow did not start within 300 s"
            time.sleep(0.1)

    try:
        yield address, ready
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Train and search while the server starts."""
    folder = tmp_path_factory.mktemp("site")
    experiment.write_config(folder, ("trials: 6", "trials: 12"))
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        quietly(["fit", "-c", "small.yaml"])
        with server(folder) as (address, ready):
            quietly(["search", "-c", "small.yaml", "--ckpt_path", "models:/small-supernet@champion"])
            tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "small")
            (parent,) = tracker.runs({"nas.kind": "search"})
            children = tracker.runs({"nas.kind": "trial", "mlflow.parentRunId": parent.run_id})
            ready()
            with browser.chromium(tmp_path_factory.mktemp("browser"), width=1500, height=1000) as page:
                runs = tuple(run.run_id for run in children)
                page.open(address)
                page.click_words("Model training")
                yield Site(address, tracker.experiment_id, parent.run_id, runs, page)


CLOSE = "[data-component-id='mlflow.assistant.chat_panel.close']"
EXPAND = "[data-component-id*='runnamecellrenderer']"


def visit(site: Site, place: str, words: str) -> Any:
    """Open a page of MLflow afresh, wait for some words, and close its assistant."""
    site.page.open("about:blank")
    site.page.open(f"{site.address}/#{place}")
    site.page.see(words)
    if site.page.value(f"document.querySelector({json.dumps(CLOSE)}) !== null"):
        site.page.click(CLOSE)
    return site.page


def test_run_list_shows_the_search_and_unfolds_its_trials(site: Site) -> None:
    page = visit(site, f"/experiments/{site.experiment_id}/runs", "matching runs")
    page.see("fit small")
    assert "DigitsData" in page.value("document.body.innerText")
    assert "t0000-" not in page.value("document.body.innerText")
    page.wait(f"document.querySelector({json.dumps(EXPAND)}) !== null")
    page.click(EXPAND)
    for number in (0, 11):
        page.see(f"t{number:04d}-")
    page.photograph(PHOTOGRAPHS / "mlflow-runs.png")


def test_search_opens_on_its_chart_and_its_front(site: Site) -> None:
    page = visit(site, f"/experiments/{site.experiment_id}/runs/{site.parent}", "12 trials")
    page.click_words("Show more")
    width = page.wait("document.querySelector('img[src*=\"pareto.png\"]')?.naturalWidth")
    assert width > 800
    text = page.value("document.body.innerText")
    assert "nas sample models:/small-supernet@champion --study small" in text
    page.photograph(PHOTOGRAPHS / "mlflow-search.png")


def test_report_is_shown_among_the_artifacts(site: Site) -> None:
    place = f"/experiments/{site.experiment_id}/runs/{site.parent}/artifacts/report/pareto.html"
    page = visit(site, place, "report/pareto.html")
    page.wait("document.querySelector('iframe') !== null")
    deadline = time.monotonic() + 20
    while (dots := page.inside("document.querySelectorAll('#pareto .dot[data-trial]').length")) != 12:
        assert time.monotonic() < deadline, f"{dots} of 12 trials are drawn"
        time.sleep(0.1)
    page.photograph(PHOTOGRAPHS / "mlflow-report.png")


def test_parallel_coordinates_compare_the_trials(site: Site) -> None:
    runs, experiments = quote(json.dumps(site.children)), quote(json.dumps([site.experiment_id]))
    page = visit(site, f"/compare-runs?runs={runs}&experiments={experiments}", "Parallel Coordinates Plot")
    page.see("Comparing 12 Runs")
    page.wait("document.querySelectorAll('.parcoords .axis-title').length >= 2")
    titles = page.value("[...document.querySelectorAll('.parcoords .axis-title')].map((e) => e.textContent)")
    assert any(title.startswith("arch/") for title in titles)
    page.photograph(PHOTOGRAPHS / "mlflow-parallel.png")


def test_registered_supernet_has_a_card(site: Site) -> None:
    page = visit(site, "/models/small-supernet/versions/1", "Supernet of 12 subnetworks")
    text = page.value("document.body.innerText")
    assert "mlflow models serve -m models:/small-supernet@champion" in text
    assert "nas.search.run" in text
    page.photograph(PHOTOGRAPHS / "mlflow-model.png")
