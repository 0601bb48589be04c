"""A headless Chromium, driven over its own protocol: just what the tests need to look at a page and use it."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "the browser tests need Chromium or Chrome, and there is none on the PATH; install one (Debian: apt install "
    "chromium), name it in CHROMIUM, or leave these tests out with: pytest -m 'not browser'"
)


def executable() -> str:
    """Return the browser of this machine.

    Raises:
        FileNotFoundError: there is none.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError(MISSING)
    return found


class Page:
    """One tab.

    Attributes:
        complaints: what its scripts have thrown.
        requests: addresses asked for since the last :meth:`open`.

    Args:
        socket: connection to the tab.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call one method of the protocol and return its result, noting what the page complains about meanwhile."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv(timeout=200))
            if said.get("id") == number:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]
            self._note(said)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(event["params"]["exceptionDetails"])[:400])
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])

    def open(self, address: str) -> None:
        """Go to an address and wait until its document is complete."""
        self.requests.clear()
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """Make the window that big, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, script: str) -> Any:
        """Return what an expression is worth in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, script: str, *, seconds: float = 200.0) -> Any:
        """Wait until an expression is truthy and return it."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):  # the page may be between two documents
                found = self.value(script)
                if found:
                    return found
            assert time.monotonic() < deadline, f"never true: {script}\n{self.value('document.body.innerText')[:1500]}"
            time.sleep(0.05)

    def inside(self, script: str) -> Any:
        """Return what an expression is worth in the first frame within the page, sandboxed or not."""
        (frame, *_) = self.call("Page.getFrameTree")["frameTree"].get("childFrames") or [None]
        assert frame is not None, "the page has no frame within that shares its process"
        world = self.call("Page.createIsolatedWorld", frameId=frame["frame"]["id"])["executionContextId"]
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, contextId=world)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def see(self, words: str) -> None:
        """Wait until the page shows ``words``."""
        self.wait(f"document.body.innerText.includes({json.dumps(words)})")

    def middle(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view and return its middle, in pixels of the window."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        return float(box[0]), float(box[1])

    def point(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one place and release at another; the same place twice is a click."""
        self.point(*start)
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click_words(self, words: str) -> None:
        """Click the innermost element that says just ``words``."""
        self.see(words)
        mark = "data-to-be-clicked"
        self.value(
            f"[...document.querySelectorAll('body *')].filter((e) => e.innerText?.trim() === {json.dumps(words)})"
            f".pop().setAttribute('{mark}', '')"
        )
        self.click(f"[{mark}]")
        self.value(f"document.querySelector('[{mark}]')?.removeAttribute('{mark}')")

    def click(self, selector: str) -> None:
        """Click the first element that a selector finds."""
        place = self.middle(selector)
        self.drag(place, place)

    def photograph(self, path: Path, *, selector: str | None = None, margin: float = 0.0) -> Path:
        """Write what is seen, or the whole of one element, as PNG."""
        clip = {}
        if selector is not None:
            box = self.value(
                f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                " return [r.x + scrollX, r.y + scrollY, r.width, r.height]; })()"
            )
            x, y, width, height = box
            clip = {
                "clip": {
                    "x": x - margin,
                    "y": y - margin,
                    "width": width + 2 * margin,
                    "height": height + 2 * margin,
                    "scale": 1,
                },
                "captureBeyondViewport": True,
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **clip)["data"]))
        return path


@contextlib.contextmanager
def chromium(folder: Path, *, width: int = 1360, height: int = 900) -> Iterator[Page]:
    """Yield a page of a fresh browser that keeps everything below ``folder``.

    Raises:
        FileNotFoundError: this machine has no browser.
    """
    folder.mkdir(parents=True, exist_ok=True)
    profile = Path(tempfile.mkdtemp(dir=folder, prefix="profile-"))  # a used one names the port of the last browser
    process = subprocess.Popen(
        [
            executable(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-features=IsolateSandboxedIframes",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = _tab(_port(profile / "DevToolsActivePort", process))
        with connect(address, max_size=None, proxy=None, open_timeout=200, ping_interval=None) as socket:
            page = Page(socket)
            page.resize(width, height)
            yield page
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the browser ended at once with exit code {process.returncode}"
        if file.exists() and "\n" in file.read_text():
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise TimeoutError("the browser did not open its debugging port within 200 s")


def _tab(port: int) -> str:
    """Return the address of the first page, once there is one."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=200) as answer:
            for tab in json.load(answer):
                if tab["type"] == "page":
                    return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise TimeoutError("the browser did not open a page within 200 s")


if __name__ == "__main__":
    try:
        print(f"browser: {executable()}")
    except FileNotFoundError as error:
        sys.exit(f"=== {error}")
