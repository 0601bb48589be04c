"""The service over HTTP."""

import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from nas.service.core import Service, summary
from nas.service.files import file_answer
from nas.service.guard import Guard, problem_body
from nas.service.jobs import JOB
from nas.service.observe import CONTENT_TYPE_LATEST, log_to_stderr
from nas.service.page import description_page
from nas.service.problems import RefusedError, refusals
from nas.service.schemas import (
    SUBNETWORK,
    Form,
    Front,
    GenerateRequest,
    Health,
    Job,
    ModelInfo,
    Models,
    Prediction,
    PredictRequest,
    SampleRequest,
    SubnetworkRequest,
    Subnetworks,
)
from nas.service.settings import TOKEN, ServiceSettings

__all__ = ["SETTINGS", "create_app", "from_environment"]

SETTINGS = "NAS_SERVICE_SETTINGS"
Name = Annotated[str, Path(max_length=200, description="name of a supernet")]
Subnet = Annotated[str, Path(pattern=SUBNETWORK, description="id of a subnetwork")]
JobName = Annotated[str, Path(pattern=JOB, description="id of a job")]
_SUMMARY = "Subnetworks of trained supernets, on demand."


async def service_of(request: Request) -> Service:
    """Return the service that an application runs; a coroutine, or each request would wait for a thread."""
    service: Service = request.app.state.service
    return service


Given = Annotated[Service, Depends(service_of)]
_SCHEME = Depends(HTTPBearer(auto_error=False, description="where the service was started with a token"))
_BINARY: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_UPLOAD = "safetensors with the tensors `inputs` (N, C, H, W) uint8 and `labels` (N,) int64"
_GENERATED = 'attachment; filename="generated.safetensors"'
health = APIRouter(tags=["health"])
models = APIRouter(prefix="/v1", tags=["models"], dependencies=[_SCHEME], responses=refusals(401, 404, 422, 429, 503))
files = APIRouter(prefix="/v1", tags=["weights"], dependencies=[_SCHEME], responses=refusals(401, 404, 422, 429, 503))
jobs = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[_SCHEME], responses=refusals(401, 404, 422, 429))


@health.get("/livez", responses=refusals())
async def livez() -> Health:
    """Say that the process is up."""
    return Health(status="alive")


@health.get("/readyz", responses={503: {"model": Health, "description": "not yet"}, **refusals()})
async def readyz(service: Given, response: Response) -> Health:
    """Say whether every supernet is loaded."""
    states = service.catalogue.states()
    if service.catalogue.ready:
        return Health(status="ready", models=states)
    response.status_code = 503
    response.headers["Retry-After"] = "5"
    loading = all(state == "loading" or state.startswith("revision ") for state in states.values())
    return Health(status="loading" if loading else "failed", models=states)


@health.get("/metrics", dependencies=[_SCHEME], response_class=Response, responses=refusals(401, 429))
async def metrics(service: Given) -> Response:
    """Return counters in the text format of Prometheus."""
    return Response(service.meters.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@models.get("/models")
async def list_models(service: Given) -> Models:
    """List the supernets that are loaded."""
    return Models(models=[summary(served) for served in service.catalogue.all()])


@models.get("/models/{model}")
def describe_model(model: Name, service: Given) -> ModelInfo:
    """Describe a supernet: its space, the reach of its costs, its weight source."""
    return service.info(model)


@models.get("/models/{model}/pareto")
def pareto_front(
    model: Name,
    service: Given,
    objective: Annotated[list[str], Query(max_length=8)] = [],  # noqa: B006 - only read
) -> Front:
    """Return what no other evaluated subnetwork beats in every objective."""
    return service.front(model, objective)


@models.post("/models/{model}/subnetworks", responses={202: {"model": Job, "description": "a long search has begun"}})
async def request_subnetworks(
    model: Name, asked: SubnetworkRequest, service: Given, response: Response
) -> Subnetworks | Job:
    """Return the best known subnetworks within limits, or one by its architecture."""
    found = await service.subnetworks(model, asked)
    if isinstance(found, Job):
        response.status_code = 202
        response.headers["Location"] = f"/v1/jobs/{found.id}"
        response.headers["Retry-After"] = "1"
    return found


@models.post("/models/{model}/predict")
async def predict(model: Name, asked: PredictRequest, service: Given) -> Prediction:
    """Run a subnetwork."""
    return await service.predict(model, asked)


@models.post(
    "/generate",
    response_class=Response,
    responses={200: {"description": "safetensors, with the provenance inside", **_BINARY}},
)
async def generate(asked: GenerateRequest, service: Given) -> Response:
    """Generate weights with a hypernetwork, or with a supernet whose weights are generated."""
    return _generated(await service.generate(asked))


@models.post(
    "/generate/{model}",
    response_class=Response,
    responses={
        200: {"description": "safetensors, with the provenance inside", **_BINARY},
        202: {"model": Job, "description": "several networks are being drawn"},
    },
)
async def sample_weights(
    model: Name,
    body: Annotated[bytes, Body(media_type="application/octet-stream", description=_UPLOAD)],
    service: Given,
    examples: Annotated[int | None, Query(ge=1, le=1000, description="of each class that the model sees")] = None,
    count: Annotated[int, Query(ge=1, le=64, description="networks to draw, of which the best is kept")] = 1,
    seed: Annotated[int, Query(ge=0, lt=1 << 31, description="of the draws")] = 0,
) -> Response:
    """Sample weights for the labelled examples in the body, with a hypernetwork that samples for data sets."""
    found = await service.sample(SampleRequest(model=model, examples=examples, count=count, seed=seed), body)
    return _begun(found) if isinstance(found, Job) else _generated(found)


def _generated(content: bytes) -> Response:
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Content-Disposition": _GENERATED}
    return Response(content, headers=headers, media_type="application/octet-stream")


def _begun(job: Job) -> Response:
    headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1"}
    return Response(job.model_dump_json(), status_code=202, headers=headers, media_type="application/json")


async def _file(request: Request, service: Service, subnetwork: str, form: str) -> Response:
    opened, made = await service.weights(subnetwork, form)
    answer = file_answer(
        opened,
        request.headers,
        name=subnetwork,
        public=service.settings.token is None,
        head=request.method == "HEAD",
    )
    answer.headers["X-Cache"] = "miss" if made else "hit"
    return answer


@files.get(
    "/subnetworks/{subnetwork}/weights",
    response_class=Response,
    responses={
        200: {"description": "the file", **_BINARY},
        206: {"description": "a part of the file", **_BINARY},
        304: {"description": "the client has the file already"},
        **refusals(416),
    },
)
async def weights(request: Request, subnetwork: Subnet, service: Given, format: Form = "safetensors") -> Response:
    """Return the weights of a subnetwork, calibrated and checked against the supernet."""
    return await _file(request, service, subnetwork, format)


@files.head("/subnetworks/{subnetwork}/weights", include_in_schema=False)
async def weights_head(request: Request, subnetwork: Subnet, service: Given, format: Form = "safetensors") -> Response:
    """Return what `GET` would, without the content."""
    return await _file(request, service, subnetwork, format)


@files.get("/subnetworks/{subnetwork}/manifest")
async def manifest(subnetwork: Subnet, service: Given, format: Form = "safetensors") -> dict[str, Any]:
    """Return the manifest of a file: architecture, digest, parity, and how to load it."""
    opened, _ = await service.weights(subnetwork, format)
    opened.file.close()
    content: dict[str, Any] = json.loads(opened.manifest)
    return content


@jobs.get("")
def list_jobs(service: Given) -> list[Job]:
    """List the jobs that are kept, the oldest first."""
    return service.jobs.all()


@jobs.get("/{job}")
def job_state(job: JobName, service: Given) -> Job:
    """Return how far a job is, and its result."""
    return service.jobs.get(job)


@jobs.get(
    "/{job}/weights",
    response_class=Response,
    responses={200: {"description": "safetensors, with the provenance inside", **_BINARY}},
)
def job_weights(job: JobName, service: Given) -> Response:
    """Return the weights that a draw has made."""
    return _generated(service.jobs.weights(job))


@jobs.delete("/{job}")
def cancel_job(job: JobName, service: Given) -> Job:
    """Cancel a job; one that has ended stays as it is."""
    return service.jobs.cancel(job)


def _refused(request: Request, status: int, error: str, message: str, headers: dict[str, str]) -> Response:
    body = problem_body(error, message, request.state.request_id)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)  # noqa: S101 - registered for it
    return _refused(request, error.status, error.error, error.message, error.headers)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    word = {404: "unknown_path", 405: "method"}.get(error.status_code, "invalid_request")
    return _refused(request, error.status_code, word, str(error.detail), dict(error.headers or {}))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    parts = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:8]]
    return _refused(request, 422, "invalid_request", "; ".join(parts)[:4000], {})


def _version() -> str:
    try:
        return version("weightloom")
    except PackageNotFoundError:
        return "0"


def create_app(settings: ServiceSettings) -> FastAPI:
    """Return the application; it loads its supernets once it is started."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="weightloom", summary=_SUMMARY, version=_version(), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.add_api_route("/docs", description_page, include_in_schema=False)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(RefusedError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_middleware(Guard, settings=settings, meters=service.meters)
    return app


_ROUTERS: Sequence[APIRouter] = (health, models, files, jobs)


def from_environment() -> FastAPI:
    """Return the application of one of several processes, which find its settings in the environment."""
    log_to_stderr()
    token = os.environ.get(TOKEN)
    return create_app(ServiceSettings.from_json(os.environ[SETTINGS], token=token))
