"""A typed client of the service."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, final

import requests
from pydantic import BaseModel, TypeAdapter

from nas.service.schemas import (
    Form,
    Front,
    GenerateRequest,
    Job,
    ModelInfo,
    Models,
    ModelSummary,
    Prediction,
    Subnetwork,
    SubnetworkRequest,
    Subnetworks,
)

__all__ = ["Client", "ServiceError"]

_AGAIN = (429, 503)
_PIECE = 1 << 18
Kind = TypeVar("Kind", bound=BaseModel)
Value = bool | int | float | str


class ServiceError(RuntimeError):
    """The service refused a request.

    Attributes:
        status: HTTP status.
        error: a word for programs, e.g. ``unsatisfiable``.
        request_id: of the request, as in the log of the service.
    """

    def __init__(self, status: int, error: str, message: str, request_id: str = "") -> None:
        super().__init__(f"{message} ({status} {error})")
        self.status = status
        self.error = error
        self.request_id = request_id


@final
class Client:
    """Asks a running ``nas serve`` for subnetworks.

    One client is for one thread; it keeps its connection. Where the service is loading or busy it is asked again.

    Args:
        url: of the service.
        token: where the service asks for one.
        timeout: seconds that one answer may take.
        patience: seconds during which a loading or busy service is asked again.

    Example:
        >>> client = Client("http://127.0.0.1:8008")  # doctest: +SKIP
        >>> best = client.subnetworks("digits-supernet", limits={"max_params": 20000})[0]  # doctest: +SKIP
        >>> client.download(best, "tiny.safetensors")  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8008",
        *,
        token: str | None = None,
        timeout: float = 60.0,
        patience: float = 30.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.patience = patience
        self._session = requests.Session()
        self._session.trust_env = False
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> bool:
        """Return whether the service has loaded its supernets."""
        return self._session.get(f"{self.url}/readyz", timeout=self.timeout).status_code == 200

    def models(self) -> list[ModelSummary]:
        """Return the supernets that are served."""
        return self._read(Models, "GET", "/v1/models").models

    def model(self, name: str) -> ModelInfo:
        """Return all about one supernet."""
        return self._read(ModelInfo, "GET", f"/v1/models/{name}")

    def pareto(self, name: str, *objectives: str) -> Front:
        """Return the Pareto front of a supernet's studies."""
        return self._read(Front, "GET", f"/v1/models/{name}/pareto", params={"objective": list(objectives)})

    def subnetworks(
        self,
        name: str,
        *,
        limits: Mapping[str, float] | None = None,
        objective: str | None = None,
        count: int = 1,
        seed: int = 0,
        seconds: float = 1.0,
    ) -> list[Subnetwork]:
        """Return the best subnetworks within limits; waits where that takes a long search.

        Args:
            name: of the supernet.
            limits: ``max_NAME`` or ``min_NAME`` of any cost or metric -> bound.
            objective: cost or metric to be best in; the supernet's headline by default.
            count: how many at most.
            seed: of the search.
            seconds: that a search may take where no study answers.

        Raises:
            ServiceError: nothing keeps the limits (``unsatisfiable``), or another refusal.
        """
        found = self.begin(name, limits=limits, objective=objective, count=count, seed=seed, seconds=seconds)
        return (self.wait(found) if isinstance(found, Job) else found).subnetworks

    def begin(
        self,
        name: str,
        *,
        limits: Mapping[str, float] | None = None,
        objective: str | None = None,
        count: int = 1,
        seed: int = 0,
        seconds: float = 1.0,
    ) -> Subnetworks | Job:
        """Ask as :meth:`subnetworks` does; where it takes a long search, return the job without waiting for it."""
        asked = SubnetworkRequest(
            limits=dict(limits or {}), objective=objective, count=count, seed=seed, seconds=seconds
        )
        answer = self._send("POST", f"/v1/models/{name}/subnetworks", json=asked.model_dump())
        kind: type[Subnetworks] | type[Job] = Job if answer.status_code == 202 else Subnetworks
        return kind.model_validate_json(answer.content)

    def subnetwork(self, name: str, architecture: Mapping[str, Value]) -> Subnetwork:
        """Return the subnetwork of one architecture."""
        body = {"architecture": dict(architecture)}
        return self._read(Subnetworks, "POST", f"/v1/models/{name}/subnetworks", json=body).subnetworks[0]

    def jobs(self) -> list[Job]:
        """Return the jobs that the service keeps."""
        return TypeAdapter(list[Job]).validate_json(self._send("GET", "/v1/jobs").content)

    def job(self, name: str) -> Job:
        """Return how far a job is."""
        return self._read(Job, "GET", f"/v1/jobs/{name}")

    def cancel(self, name: str) -> Job:
        """Cancel a job."""
        return self._read(Job, "DELETE", f"/v1/jobs/{name}")

    def wait(self, job: Job, *, pause: float = 0.2) -> Subnetworks:
        """Return the result of a job once it is done.

        Raises:
            ServiceError: it failed or was cancelled.
        """
        found = self._ended(job, pause=pause).result
        if found is None:
            raise ServiceError(422, "no_search", f"job {job.id} is no search; its weights are at {job.weights}")
        return found

    def _ended(self, job: Job, *, pause: float = 0.2) -> Job:
        while job.state in ("queued", "running"):
            time.sleep(pause)
            job = self.job(job.id)
        if job.state != "done":
            raise ServiceError(422, job.state, job.message or f"the job was {job.state}")
        return job

    def manifest(self, subnetwork: Subnetwork | str, *, format: Form = "safetensors") -> dict[str, Any]:
        """Return the manifest of a file: architecture, digest, parity, how to load it, and what became of low bits."""
        found: dict[str, Any] = self._send(
            "GET", f"/v1/subnetworks/{_name(subnetwork)}/manifest", params={"format": format}
        ).json()
        return found

    def download(
        self,
        subnetwork: Subnetwork | str,
        path: str | Path,
        *,
        format: Form = "safetensors",
    ) -> Path:
        """Write the weights of a subnetwork to a file, which appears complete or not at all.

        Raises:
            ServiceError: the service refuses, or the content is not what its digest says.
        """
        answer = self._send(
            "GET", f"/v1/subnetworks/{_name(subnetwork)}/weights", params={"format": format}, stream=True
        )
        return _write(answer, Path(path))

    def generate(
        self,
        model: str,
        path: str | Path,
        *,
        condition: Mapping[str, float | list[float]] | None = None,
        size: Mapping[str, Value] | None = None,
        seed: int = 0,
        evaluate: bool = False,
    ) -> Path:
        """Write generated weights to a file; ``hypernets.read_provenance`` says where they come from.

        Args:
            model: a hypernetwork, or a supernet whose weights are generated.
            path: of the safetensors file.
            condition: of a hypernetwork.
            size: choices of a supernet.
            seed: of generators that draw.
            evaluate: score the weights on the held-out splits first.
        """
        asked = GenerateRequest(
            model=model, condition=dict(condition or {}), size=dict(size or {}), seed=seed, evaluate=evaluate
        )
        return _write(self._send("POST", "/v1/generate", json=asked.model_dump(), stream=True), Path(path))

    def sample(
        self,
        model: str,
        examples: str | Path,
        path: str | Path,
        *,
        per_class: int | None = None,
        count: int = 1,
        seed: int = 0,
    ) -> Path:
        """Write weights that a hypernetwork samples for labelled examples to a file; waits where that is a job.

        Args:
            model: a hypernetwork that samples for data sets.
            examples: safetensors file with ``inputs`` (N, C, H, W) uint8 and ``labels`` (N,) int64.
            path: of the safetensors file to write.
            per_class: examples of each class that the hypernetwork sees; five when left out.
            count: networks to draw; of several, a fifth of the examples chooses the best.
            seed: of the draws.

        Raises:
            ServiceError: the examples do not suit the hypernetwork (``invalid_upload``), or another refusal.
        """
        given = {"count": count, "seed": seed, **({} if per_class is None else {"examples": per_class})}
        answer = self._send(
            "POST",
            f"/v1/generate/{model}",
            params=given,
            data=Path(examples).read_bytes(),
            headers={"Content-Type": "application/octet-stream"},
        )
        if answer.status_code == 202:
            job = self._ended(Job.model_validate_json(answer.content))
            answer = self._send("GET", str(job.weights), stream=True)
        return _write(answer, Path(path))

    def predict(self, name: str, subnetwork: Subnetwork | str | Mapping[str, Value], inputs: Sequence[Any]) -> Any:
        """Return the outputs of a subnetwork.

        Args:
            name: of the supernet.
            subnetwork: a subnetwork, its id, or an architecture.
            inputs: a nested list for each input of the network, the batch first.
        """
        key, value = (
            ("architecture", dict(subnetwork)) if isinstance(subnetwork, Mapping) else ("subnetwork", _name(subnetwork))
        )
        body = {key: value, "inputs": list(inputs)}
        return self._read(Prediction, "POST", f"/v1/models/{name}/predict", json=body).outputs

    def _read(self, kind: type[Kind], method: str, path: str, **given: Any) -> Kind:
        return kind.model_validate_json(self._send(method, path, **given).content)

    def _send(self, method: str, path: str, **given: Any) -> requests.Response:
        deadline = time.monotonic() + self.patience
        while True:
            answer = self._session.request(method, self.url + path, timeout=self.timeout, **given)
            if answer.ok:
                return answer
            wait = float(answer.headers.get("Retry-After", "1"))
            if answer.status_code not in _AGAIN or time.monotonic() + wait > deadline:
                raise _refused(answer)
            time.sleep(wait)


def _name(subnetwork: Subnetwork | str) -> str:
    return subnetwork if isinstance(subnetwork, str) else subnetwork.id


def _write(answer: requests.Response, target: Path) -> Path:
    """Write an answer to a file, complete or not at all.

    Raises:
        ServiceError: the content is not what its digest says.
    """
    descriptor, draft = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
    try:
        digest = hashlib.sha256()
        with os.fdopen(descriptor, "wb") as file:
            for piece in _pieces(answer):
                digest.update(piece)
                file.write(piece)
        if answer.headers["ETag"] != f'"{digest.hexdigest()}"':
            raise ServiceError(502, "damaged", f"the content of {target} is not what its digest says; ask again")
        os.replace(draft, target)
    finally:
        Path(draft).unlink(missing_ok=True)
    return target


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    with answer:
        yield from answer.iter_content(_PIECE)


def _refused(answer: requests.Response) -> ServiceError:
    try:
        told = answer.json()
        return ServiceError(answer.status_code, told["error"], told["message"], told.get("request_id", ""))
    except (ValueError, KeyError, TypeError):
        return ServiceError(answer.status_code, "unknown", answer.text[:200] or answer.reason)
