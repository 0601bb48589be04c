"""Generated requests for every route of the OpenAPI description: does every answer keep to it, and no token no entry?

schemathesis draws valid and invalid requests from the description. Each is sent with the token, without one and with a
wrong one, and with the token once more for a supernet, subnetwork and job that exist. An answer counts against the
service when it is a 5xx, when its status or body is not described, or when a route that needs a token answers without.
Hand-made mischief follows: paths that climb, oversized and chunked bodies, broken JSON.
"""

import collections
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks import Result
from benchmarks._service import MODEL, prepare, serving
from nas import Client
from nas.service.schemas import Job

TOKEN = "a token for the benchmark"
CHECKS = (
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)
OPEN = ("/livez", "/readyz")


class Found:
    """What was sent and what came back."""

    def __init__(self) -> None:
        self.sent: collections.Counter[str] = collections.Counter()
        self.statuses: collections.Counter[int] = collections.Counter()
        self.broken: list[str] = []
        self.undocumented: list[str] = []
        self.entered: list[str] = []

    def note(self, route: str, answer: Any) -> None:
        self.sent[route] += 1
        self.statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            self.broken.append(f"{route}: {answer.status_code} {answer.text[:200]}")


def fuzz(operation: Any, url: str, mode: GenerationMode, examples: int, found: Found, real: dict[str, str]) -> None:
    """Send generated requests for one route; ``real`` names things that exist."""
    route = f"{operation.method.upper()} {operation.path}"
    strategy = operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Any) -> None:
        if isinstance(case.body, dict) and "seconds" in case.body:
            case.body["seconds"] = min(case.body["seconds"], 0.05) if _number(case.body["seconds"]) else 0.05
        for token, known in ((TOKEN, False), (None, False), ("wrong", False), (TOKEN, True)):
            if known:
                if not case.path_parameters:
                    continue
                case.path_parameters = {key: real.get(key, value) for key, value in case.path_parameters.items()}
            for key in [key for key in case.headers or {} if key.lower() == "authorization"]:
                del case.headers[key]
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            answer = case.call(base_url=url, headers=headers, timeout=60)
            found.note(route, answer)
            if token == TOKEN or operation.path in OPEN:
                try:
                    case.validate_response(answer, checks=CHECKS, headers=headers)
                except (AssertionError, schemathesis.errors.SchemathesisError, BaseExceptionGroup) as error:
                    found.undocumented.append(f"{route}: {answer.status_code} {' '.join(str(error).split())[:400]}")
            elif answer.status_code != 401:
                found.entered.append(f"{route}: {answer.status_code} with {token}")

    try:
        send()
    except (Unsatisfiable, schemathesis.errors.SchemathesisError) as error:
        if mode is not GenerationMode.NEGATIVE:  # nothing invalid can be drawn for a route without parameters
            raise RuntimeError(route) from error


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def mischief(port: int, found: Found) -> None:
    """Send what no client library would; each must be refused with a 4xx, or the connection closed."""
    head = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    post = f"POST /v1/models/{MODEL}/subnetworks HTTP/1.1\r\n{head}"
    pieces = {
        "climbing path": f"GET /v1/subnetworks/../../../etc/passwd/weights HTTP/1.1\r\n{head}\r\n",
        "encoded path": f"GET /v1/subnetworks/..%2f..%2fetc%2fpasswd/weights HTTP/1.1\r\n{head}\r\n",
        "declared size": f"{post}Content-Length: 99999999999\r\n\r\n",
        "chunked size": f"{post}Transfer-Encoding: chunked\r\n\r\n" + ("10000\r\n" + " " * 65536 + "\r\n") * 40,
        "negative size": f"{post}Content-Length: -1\r\n\r\n",
        "deep JSON": f"{post}Content-Length: 100000\r\n\r\n" + "[" * 100000,
        "two sizes": f"{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}",
        "no HTTP": "\x16\x03\x01\r\n\r\n",
    }
    for name, text in pieces.items():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            answer = b""
            try:
                connection.sendall(text.encode("latin-1"))
                answer = connection.recv(65536)
            except OSError:  # closed while we were still sending
                pass
        status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        found.sent[f"mischief: {name}"] += 1
        found.statuses[status] += 1
        if status >= 500 or 200 <= status < 400:
            found.broken.append(f"mischief, {name}: {status}")


def run(quick: bool) -> Result:
    load_all_checks()
    examples, epochs = (5, 1) if quick else (150, 2)
    found = Found()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, epochs=epochs, trials=6)
        with serving(folder, "--stall", "5", token=TOKEN) as server:
            with Client(server.url, token=TOKEN) as client:
                job = client.begin(MODEL, limits={"min_loss": 1e9}, seconds=2)
                assert isinstance(job, Job)
                real = {"model": MODEL, "subnetwork": client.subnetworks(MODEL)[0].id, "job": job.id}
            schema: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
            for result in schema.get_all_operations():
                for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                    fuzz(result.ok(), server.url, mode, examples, found, real)
            mischief(server.port, found)
            up = requests.get(f"{server.url}/livez", timeout=30).status_code == 200
    rows = tuple({"route": route, "requests": number} for route, number in found.sent.items())
    problems = (*found.broken, *found.undocumented, *found.entered)
    statuses = json.dumps({str(key): value for key, value in sorted(found.statuses.items())})
    verdict = (
        f"{len(found.broken)} answers of 5xx, {len(found.undocumented)} undocumented, {len(found.entered)} accepted "
        f"without a token (asked 0, 0, 0) in {sum(found.sent.values())} requests; statuses {statuses}"
    )
    if problems:
        verdict += f"; first: {problems[0]}"
    return Result(rows, verdict, up and not problems)
