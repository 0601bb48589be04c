"""Tokens, sizes, rates and slow clients: refused with the documented code, and the service stays up."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from nas.__main__ import main
from nas.commands.boundary import UsageError
from nas.commands.serve import serve
from nas.service.server import is_loopback
from nas.service.settings import ServiceSettings

pytestmark = pytest.mark.filterwarnings("default")
TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def strict(trained: Any, serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service with a token and tight limits."""
    settings = ServiceSettings(
        (f"tiny={trained.folder}",),
        storage=str(trained.storage),
        folder=str(tmp_path_factory.mktemp("strict")),
        max_body=2000,
        token=TOKEN,
    )
    with serving(settings) as found:
        yield found


def exchange(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send pieces as they are, and return all that comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=100) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(pause)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass
        return answer


def alive(running: Any) -> bool:
    return requests.get(f"{running.url}/livez", timeout=100).json()["status"] == "alive"


@pytest.mark.parametrize(
    "header",
    [None, "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"],
    ids=["none", "scheme", "wrong", "basic", "longer"],
)
def test_without_the_token_nothing_but_health_answers(strict: Any, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/models/tiny/subnetworks"),
        ("GET", "/v1/subnetworks/0-0/weights"),
        ("GET", "/metrics"),
        ("GET", "/nowhere"),
    ):
        answer = requests.request(method, strict.url + path, headers=headers, timeout=100)
        assert (answer.status_code, answer.json()["error"]) == (401, "token_needed")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert requests.get(strict.url + path, headers=headers, timeout=100).status_code == 200


def test_with_the_token_all_answers_and_shared_caches_keep_nothing(strict: Any) -> None:
    with strict.client(token=TOKEN) as client:
        found = client.subnetworks("tiny")[0]
        assert client.manifest(found)["arch_id"] == found.arch_id
    answer = requests.get(
        strict.url + found.weights["safetensors"], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=100
    )
    assert answer.headers["Cache-Control"].startswith("private")
    assert TOKEN not in repr(strict.settings)
    assert TOKEN not in strict.settings.to_json()
    assert ServiceSettings.from_json(strict.settings.to_json(), token=TOKEN) == strict.settings


HEAD = (
    b"POST /v1/models/tiny/subnetworks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
)


def test_a_body_that_says_it_is_too_large_is_refused_unread(strict: Any) -> None:
    answer = exchange(strict.port, HEAD + b"Content-Length: 1000000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer
    assert alive(strict)


def test_a_chunked_body_is_counted(strict: Any) -> None:
    chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
    answer = exchange(strict.port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 50)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer
    small = exchange(
        strict.port,
        HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"2\r\n{}\r\n0\r\n\r\n",
    )
    assert small.startswith(b"HTTP/1.1 200")
    assert alive(strict)


def test_a_slow_body_is_given_up(launch: Callable[..., Any]) -> None:
    running = launch(stall=0.6)
    answer = exchange(running.port, HEAD + b"Content-Length: 1000\r\n\r\n", b"{", b" ", b" ", pause=0.15)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in answer
    assert alive(running)


def test_a_head_that_does_not_end_is_given_up(strict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as hasty:
        hasty.setattr("nas.service.server._HEAD_SECONDS", 0.3)
        for start in (b"", b"GET /livez HTTP/1.1\r\nHost: x\r\n"):
            assert exchange(strict.port, start) == b""
    with monkeypatch.context() as hasty:
        hasty.setattr("nas.service.server._HEAD_SECONDS", 1.0)
        complete = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        assert exchange(strict.port, complete, b"GET /li", pause=0.2).count(b"HTTP/1.1 200") == 1
    assert alive(strict)


@pytest.mark.parametrize(
    "request_line",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["tls", "nul"],
)
def test_what_is_no_http_is_refused(strict: Any, request_line: bytes) -> None:
    assert exchange(strict.port, request_line + b"\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert alive(strict)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/subnetworks/../../../../etc/passwd/weights",
        "/v1/subnetworks/..%2f..%2f..%2fetc%2fpasswd/weights",
        "/v1/subnetworks/%2e%2e/weights",
        "/v1/subnetworks/0123456789abcdef-1%00/weights",
        "/v1/subnetworks/0123456789abcdef-1/../../weights",
        "/v1/jobs/..%2f..%2fsecret",
        "/v1/jobs/../weights",
        "/v1/models/..%2f..%2f/pareto",
        "//etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_service(strict: Any, path: str) -> None:
    answer = exchange(
        strict.port,
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode(),
    )
    status = int(answer.split(b" ", 2)[1])
    assert status in (404, 405, 422)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    "body", [b"", b"[", b"\xff\xfe", b'{"count": 1e999}', b'{"limits": {"max_params": NaN}}', b"[" * 900]
)
def test_what_is_no_valid_json_is_refused(strict: Any, body: bytes) -> None:
    answer = requests.post(
        f"{strict.url}/v1/models/tiny/subnetworks",
        data=body,
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        timeout=100,
    )
    assert answer.status_code == 422
    assert alive(strict)


def test_a_client_that_asks_too_often_is_told_when_to_come_back(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    standing = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=lambda: 0.0)
    monkeypatch.setattr("nas.service.guard.time", standing)
    running = launch(rate=5.0)
    codes: list[int] = []
    while 429 not in codes and len(codes) < 100:
        refused = requests.get(f"{running.url}/v1/models", timeout=100)
        codes.append(refused.status_code)
    assert codes[:5] == [200] * 5
    assert codes[-1] == 429
    assert (refused.json()["error"], refused.headers["Retry-After"]) == ("rate", "1")
    assert requests.get(f"{running.url}/livez", timeout=100).status_code == 200


def test_computations_beyond_the_queue_are_refused_and_the_others_answered(launch: Callable[..., Any]) -> None:
    running = launch(threads=1, queue=1)
    gate = threading.Event()
    running.service.cache.make = lambda *_: gate.wait(200)
    served = running.service.catalogue.get("tiny")
    names = [served.name_of(architecture) for architecture in list(served.space.architectures())[:4]]
    codes: list[int] = []

    def ask(name: str) -> None:
        codes.append(requests.get(f"{running.url}/v1/subnetworks/{name}/weights", timeout=200).status_code)

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 150
    while len(codes) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert codes == [429, 429]
    assert "nas_pending 2.0" in requests.get(f"{running.url}/metrics", timeout=100).text
    gate.set()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [429, 429, 503, 503]  # nothing was made, which the others are told


def test_a_computation_that_takes_too_long_is_given_up_but_not_lost(launch: Callable[..., Any]) -> None:
    running = launch(timeout=0.2)
    make, gate = running.service.cache.make, threading.Event()

    def slow(*given: Any) -> None:
        gate.wait(200)
        make(*given)

    running.service.cache.make = slow
    with running.client() as client:
        found = client.subnetwork("tiny", {"depth": 1, "layer1.width": 8})
    url = running.url + found.weights["safetensors"]
    answer = requests.get(url, timeout=100)
    assert (answer.status_code, answer.json()["error"]) == (503, "timeout")
    assert int(answer.headers["Retry-After"]) > 0
    gate.set()
    with running.client() as client:
        assert client.manifest(found)["arch_id"] == found.arch_id


def logged(caplog: pytest.LogCaptureFixture, request_id: str) -> list[dict[str, Any]]:
    lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
    return [line for line in lines if line.get("request_id") == request_id]


def test_requests_are_logged_with_their_id_and_counted(strict: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nas.service"):
        answer = requests.get(
            f"{strict.url}/v1/models/tiny",
            headers={"Authorization": f"Bearer {TOKEN}", "X-Request-Id": "mine-1"},
            timeout=100,
        )
        other = requests.get(f"{strict.url}/livez", headers={"X-Request-Id": "bad id!"}, timeout=100)
        deadline = time.monotonic() + 200
        while not (found := logged(caplog, "mine-1")):  # a request is logged when its answer is on the way
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert answer.headers["X-Request-Id"] == "mine-1"
    assert len(other.headers["X-Request-Id"]) == 32
    [line] = found
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/models/tiny", 200)
    assert TOKEN not in caplog.text
    counted = requests.get(f"{strict.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=100).text
    assert 'nas_requests_total{code="200",route="/v1/models/{model}"}' in counted


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("nas", False)],
)
def test_which_hosts_are_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_another_host_needs_a_token(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[ServiceSettings] = []
    monkeypatch.setattr("nas.service.server.serve_forever", lambda settings, **_: started.append(settings))
    address = str(trained.folder)
    with pytest.raises(UsageError, match="needs a token: give --token_file or NAS_SERVICE_TOKEN, or say --insecure"):
        serve(address, host="0.0.0.0")
    serve(address)
    serve(address, host="0.0.0.0", insecure=True)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    serve(address, host="0.0.0.0", token_file=str(tmp_path / "token"))
    monkeypatch.setenv("NAS_SERVICE_TOKEN", "from the environment")
    serve(address, host="0.0.0.0")
    assert [settings.token for settings in started] == [None, None, TOKEN, "from the environment"]
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="must hold the token in its first line"):
        serve(address, token_file=str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        serve(str(tmp_path / "nothing"))
    started.clear()
    assert main(["serve", f"a={address}", f"b={address}", "--threads", "1"]) == 0
    assert ([offer.name for offer in started[0].offers], started[0].threads) == (["a", "b"], 1)
    assert main(["serve"]) == 2
    with pytest.raises(ValueError, match="distinct names, got \\['supernet', 'supernet'\\]"):
        serve(address, address)
    with pytest.raises(ValueError, match="at least 8 characters"):
        ServiceSettings((address,), token="short")
