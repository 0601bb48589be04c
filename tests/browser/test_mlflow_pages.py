"""MLflow's own pages after one fit and one search: what a person finds without knowing where to look."""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("default"), pytest.mark.timeout(600)]
SIZE = (1500, 1000)
CLOSE = "[data-component-id='mlflow.assistant.chat_panel.close']"
EXPAND = "[data-component-id*='runnamecellrenderer']"


@pytest.fixture(scope="module", autouse=True)
def entered(site: Any, browser: Any) -> None:
    """Choose MLflow's pages for training, once."""
    browser.open(site.address)
    browser.click_words("Model training")


def visit(page: Any, site: Any, place: str, words: str) -> None:
    """Open a page of MLflow afresh, wait for some words, and close its assistant."""
    page.open("about:blank")
    page.open(f"{site.address}/#{place}")
    page.see(words)
    if page.value(f"document.querySelector({json.dumps(CLOSE)}) !== null"):
        page.click(CLOSE)


def test_run_list_shows_the_search_and_unfolds_its_trials(page: Any, site: Any, photographs: Path) -> None:
    visit(page, site, f"/experiments/{site.experiment_id}/runs", "matching runs")
    page.see("fit small")
    assert "DigitsData" in page.value("document.body.innerText")
    assert "t0000-" not in page.value("document.body.innerText")
    page.wait(f"document.querySelector({json.dumps(EXPAND)}) !== null")
    page.click(EXPAND)
    for number in (0, 11):
        page.see(f"t{number:04d}-")
    page.photograph(photographs / "mlflow-runs.png")


def test_search_opens_on_its_chart_and_its_front(page: Any, site: Any, photographs: Path) -> None:
    visit(page, site, f"/experiments/{site.experiment_id}/runs/{site.parent}", "12 trials")
    page.click_words("Show more")
    width = page.wait("document.querySelector('img[src*=\"pareto.png\"]')?.naturalWidth")
    assert width > 800
    text = page.value("document.body.innerText")
    assert "nas sample models:/small-supernet@champion --study small" in text
    page.photograph(photographs / "mlflow-search.png")


def test_report_is_shown_among_the_artifacts(page: Any, site: Any, photographs: Path) -> None:
    place = f"/experiments/{site.experiment_id}/runs/{site.parent}/artifacts/report/pareto.html"
    visit(page, site, place, "report/pareto.html")
    page.wait("document.querySelector('iframe') !== null")
    deadline = time.monotonic() + 200
    while (dots := page.inside("document.querySelectorAll('#pareto .dot[data-trial]').length")) != 12:
        assert time.monotonic() < deadline, f"{dots} of 12 trials are drawn"
        time.sleep(0.1)
    page.photograph(photographs / "mlflow-report.png")


def test_parallel_coordinates_compare_the_trials(page: Any, site: Any, photographs: Path) -> None:
    runs, experiments = quote(json.dumps(site.children)), quote(json.dumps([site.experiment_id]))
    visit(page, site, f"/compare-runs?runs={runs}&experiments={experiments}", "Parallel Coordinates Plot")
    page.see("Comparing 12 Runs")
    page.wait("document.querySelectorAll('.parcoords .axis-title').length >= 2")
    titles = page.value("[...document.querySelectorAll('.parcoords .axis-title')].map((e) => e.textContent)")
    assert any(title.startswith("arch/") for title in titles)
    page.photograph(photographs / "mlflow-parallel.png")


def test_registered_supernet_has_a_card(page: Any, site: Any, photographs: Path) -> None:
    visit(page, site, "/models/small-supernet/versions/1", "Supernet of 12 subnetworks")
    text = page.value("document.body.innerText")
    assert "mlflow models serve -m models:/small-supernet@champion" in text
    assert "nas.search.run" in text
    page.photograph(photographs / "mlflow-model.png")
