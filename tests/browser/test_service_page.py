"""The page under /docs of the service: everything can be read and tried, and nothing comes from elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SIZE = (1240, 1400)


@pytest.fixture(scope="module", autouse=True)
def loaded(site: Any) -> None:
    """Wait until the service can answer."""
    site.wait(f"{site.service}/readyz")


def unfold(page: Any, method: str, path: str) -> str:
    """Unfold a route and return what selects it."""
    mark = f"{method} {path}"
    page.value(
        "[...document.querySelectorAll('details')].find((d) => d.querySelector('summary b').className === "
        f"{json.dumps(method)} && d.querySelector('summary code').textContent === {json.dumps(path)})"
        f".setAttribute('data-mark', {json.dumps(mark)})"
    )
    chosen = f"details[data-mark='{mark}']"
    page.click(f"{chosen} summary")
    page.wait(f"document.querySelector({json.dumps(chosen + ' button')}) !== null")
    return chosen


def test_it_needs_nothing_but_the_service_and_names_every_route(page: Any, site: Any, photographs: Path) -> None:
    page.open(f"{site.service}/docs")
    page.wait("document.querySelectorAll('details').length > 0")
    assert {address.split("/", 3)[2] for address in page.requests if not address.startswith("data:")} == {
        site.service.removeprefix("http://")
    }
    assert page.complaints == []
    shown = page.value("[...document.querySelectorAll('details summary code')].map((e) => e.textContent)")
    described = page.value("fetch('/openapi.json').then((r) => r.json()).then((d) => Object.keys(d.paths))")
    assert set(shown) == set(described)
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.photograph(photographs / "service-docs.png")


def test_a_request_is_tried_and_shown_as_a_command(page: Any, site: Any, photographs: Path) -> None:
    page.open(f"{site.service}/docs")
    page.wait("document.querySelectorAll('details').length > 0")
    chosen = unfold(page, "post", "/v1/models/{model}/subnetworks")
    page.value(f"document.querySelector({json.dumps(chosen + ' input')}).value = 'small'")
    assert json.loads(page.value(f"document.querySelector({json.dumps(chosen + ' textarea')}).value")) == {
        "limits": {"max_params": 20000}
    }
    page.click(f"{chosen} button")
    page.wait(f"document.querySelector({json.dumps(chosen + ' .answer b')})?.textContent.startsWith('200')")
    answer = json.loads(page.value(f"document.querySelector({json.dumps(chosen + ' .answer pre')}).textContent"))
    assert answer["subnetworks"][0]["model"] == "small"
    command = page.value(f"document.querySelector({json.dumps(chosen + ' .answer code')}).textContent")
    assert command.startswith(
        f"curl -X POST '{site.service}/v1/models/small/subnetworks' -H 'Content-Type: application/json' -d '"
    )
    page.photograph(photographs / "service-request.png", selector=chosen, margin=16)


def test_a_refusal_and_a_file_are_shown_for_what_they_are(page: Any, site: Any) -> None:
    page.open(f"{site.service}/docs")
    page.wait("document.querySelectorAll('details').length > 0")
    chosen = unfold(page, "get", "/v1/jobs/{job}")
    page.value(f"document.querySelector({json.dumps(chosen + ' input')}).value = '<b>x'")
    page.click(f"{chosen} button")
    page.wait(f"document.querySelector({json.dumps(chosen + ' .answer .bad')})?.textContent.startsWith('422')")
    upload = unfold(page, "post", "/v1/generate/{model}")
    assert page.value(f"document.querySelector({json.dumps(upload + ' input[type=file]')}) !== null")
    assert page.complaints == []
