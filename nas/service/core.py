"""The service without HTTP: what each request comes to."""

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, final

import torch

from nas.dataset_maker import DatasetMaker
from nas.making import GenerationError, Request
from nas.service.cache import Opened, WeightCache
from nas.service.catalogue import Catalogue
from nas.service.identity import architecture_of, split
from nas.service.jobs import Jobs
from nas.service.observe import Meters
from nas.service.predict import Batcher, read_inputs
from nas.service.problems import RefusedError
from nas.service.schemas import (
    ChoiceInfo,
    CostInfo,
    Front,
    GenerateRequest,
    Job,
    MetricInfo,
    ModelInfo,
    ModelSummary,
    Prediction,
    PredictRequest,
    SampleRequest,
    SpaceInfo,
    SubnetworkRequest,
    Subnetworks,
)
from nas.service.selection import (
    by_architecture,
    by_search,
    by_study,
    pareto,
    read_architecture,
    wanted,
)
from nas.service.served import Generator, Served
from nas.service.settings import ServiceSettings
from nas.service.uploads import read_examples, sample
from nas.service.work import SharedWork, Workers
from search_spaces import Architecture, import_path

__all__ = ["AT_ONCE", "Service", "summary"]

_logger = logging.getLogger("nas.service")
_MANY = 500  # trials up to which choosing among them takes a millisecond
T = TypeVar("T")
AT_ONCE = 1.0  # seconds of search up to which a request is answered at once


@final
class Service:
    """Everything that serves requests in one process.

    Args:
        settings: what is offered, and the limits.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        folder = Path(settings.folder)
        self.settings = settings
        self.meters = Meters()
        self.catalogue = Catalogue(settings)
        self.cache = WeightCache(folder / "weights", settings.cache_bytes, trust=settings.trust)
        self.jobs = Jobs(folder / "jobs", self.catalogue, queue=settings.queue)
        self.workers = Workers(settings.threads, settings.queue, settings.timeout, meter=self.meters.pending.set)
        self.batcher = Batcher(self.workers)
        self.shared = SharedWork(self.workers)
        self.tracers = Workers(1, settings.queue, settings.timeout)  # tracing takes seconds, one file at a time
        self.traced = SharedWork(self.tracers)
        self._tending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load, to look for newer versions, and to work on jobs."""
        torch.set_num_threads(1)
        self._tending = asyncio.create_task(self._tend())

    async def stop(self) -> None:
        """End what runs in order; jobs are given back."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        await asyncio.to_thread(self.jobs.close)
        await asyncio.to_thread(self.workers.close)
        await asyncio.to_thread(self.tracers.close)
        await asyncio.to_thread(self.cache.close)

    async def _tend(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.catalogue.refresh)
                if self.catalogue.ready:
                    await asyncio.to_thread(self.jobs.tend)
            except Exception:  # a full disk, say: it is looked after again
                _logger.exception("tending", extra={"fields": {"event": "tending_failed"}})
            await asyncio.sleep(self.settings.reload)

    def info(self, name: str) -> ModelInfo:
        """Describe a supernet."""
        served = self.catalogue.get(name)
        space, tree = served.space, served.supernet.tree()
        choices = [
            ChoiceInfo(
                name=choice.name,
                candidates=list(choice.candidates),
                kind=choice.kind,
                requires=None if choice.requires is None else list(choice.requires),
            )
            for choice in space.choices
        ]
        with torch.device("meta"):
            shapes = [tuple(tensor.shape) for tensor in served.objective.examples(space.largest())]
        return ModelInfo(
            **summary(served).model_dump(),
            space=SpaceInfo(
                class_path=import_path(type(space)), digest=space.digest, size=space.size(), choices=choices
            ),
            source=tree["source"],
            task=tree["task"],
            costs={
                key: CostInfo(
                    unit=served.screen.metrics[key].unit,
                    direction=served.screen.metrics[key].direction,
                    smallest=low,
                    largest=high,
                )
                for key, (low, high) in served.reach.items()
            },
            metrics={
                metric.name: MetricInfo(unit=metric.unit, direction=metric.direction)
                for metric in served.objective.metrics
            },
            headline=served.supernet.task.headline,
            inputs=[["batch", *shape[1:]] for shape in shapes],
            studied=len(served.known.trials),
            formats=list(served.formats()),
        )

    def front(self, name: str, objectives: Sequence[str]) -> Front:
        """Return the Pareto front of a supernet's studies."""
        return pareto(self.catalogue.get(name), objectives)

    async def subnetworks(self, name: str, request: SubnetworkRequest) -> Subnetworks | Job:
        """Answer a request for subnetworks; a long search becomes a job."""
        served = self.catalogue.get(name)
        if request.architecture is not None:
            architecture = read_architecture(served, request.architecture)
            key = (served.revision, architecture)
            return await self.shared.run(key, lambda: by_architecture(served, architecture))
        asked = wanted(served, request)
        known = await _off_loop(len(served.known.trials) > _MANY, lambda: by_study(served, asked))
        if known is not None:
            return known
        if request.seconds > AT_ONCE:
            return await asyncio.to_thread(self.jobs.create, served, request)

        def search() -> Subnetworks:
            return by_search(served, asked, seed=request.seed, seconds=request.seconds)

        return await self.shared.run((served.revision, request.model_dump_json()), search)

    async def weights(self, name: str, form: str) -> tuple[Opened, bool]:
        """Return the file of a subnetwork, and whether it had to be made.

        Raises:
            RefusedError: there is no such subnetwork (404), the format packs low bits that it does not have (422), or
                it cannot be made.
        """
        opened = await asyncio.to_thread(self.cache.open, name, form)
        if opened is not None:
            self.meters.cache.labels("hit").inc()
            return opened, False
        served, architecture = self._named(name)
        if form not in served.formats(architecture):
            raise RefusedError(
                422,
                "not_quantized",
                f"{form} packs layers of fewer than 32 bits, and this subnetwork of {served.offer.name} has none; ask "
                f"for one of {', '.join(served.formats(architecture))}",
            )
        self.meters.cache.labels("miss").inc()
        shared = self.shared if form == "safetensors" else self.traced
        await shared.run((name, form), lambda: self.cache.make(served, architecture, form))
        opened = await asyncio.to_thread(self.cache.open, name, form)
        if opened is None:
            raise RefusedError(
                503, "evicted", "the cache is too small for its files; ask again", headers={"Retry-After": "1"}
            )
        return opened, True

    def _named(self, name: str) -> tuple[Served, Architecture]:
        parts = split(name)
        served = None if parts is None else self.catalogue.of_revision(parts[0])
        if parts is None or served is None:
            if not self.catalogue.ready:
                raise RefusedError(503, "loading", "the supernets are being loaded", headers={"Retry-After": "5"})
            raise RefusedError(
                404, "unknown_subnetwork", f"{name} is of no supernet that is served now; ask for a subnetwork again"
            )
        architecture = architecture_of(served.space, parts[1])
        if architecture is None:
            raise RefusedError(404, "unknown_subnetwork", f"{served.offer.name} has no subnetwork {name}")
        return served, architecture

    async def generate(self, request: GenerateRequest) -> bytes:
        """Return generated weights, as safetensors with their provenance inside.

        Raises:
            RefusedError: the model generates none (404), or a field does not fit (422).
        """
        found = self.catalogue.find(request.model)
        maker = found.maker
        if maker is None:
            raise RefusedError(404, "not_generated", f"{request.model} stores its weights; ask for its subnetworks")
        if isinstance(maker, DatasetMaker):
            raise RefusedError(
                422,
                "needs_examples",
                f"{request.model} samples for a data set, {maker.fields['data']}; POST its examples to "
                f"/v1/generate/{request.model}",
            )
        if bool(request.condition) == bool(request.size):
            raise RefusedError(422, "invalid_request", "give either condition or size")
        asked = Request(request.condition, request.size, request.seed)

        def write() -> bytes:
            with tempfile.TemporaryDirectory(prefix="nas-generated-") as folder:
                return maker.write(asked, Path(folder) / "weights", evaluate=request.evaluate).path.read_bytes()

        try:
            return await self.workers.run(write)
        except GenerationError as error:
            raise RefusedError(422, "invalid_fields", str(error)[:4000]) from error

    async def sample(self, request: SampleRequest, examples: bytes) -> bytes | Job:
        """Sample a network for the examples of a client; of several the best is kept, which is a job.

        Raises:
            RefusedError: the model samples none (404), or the examples do not suit it (422).
        """
        found = self.catalogue.find(request.model)
        if not isinstance(found, Generator) or not isinstance(maker := found.maker, DatasetMaker):
            raise RefusedError(404, "not_sampled", f"{request.model} does not sample for data sets; POST /v1/generate")
        data = await asyncio.to_thread(read_examples, examples, maker, request)
        if request.count > 1:
            return await asyncio.to_thread(self.jobs.create_sampling, found, request, examples)

        def draw() -> bytes:
            with tempfile.TemporaryDirectory(prefix="nas-generated-") as folder:
                return sample(maker, data, request, Path(folder) / "weights")

        key = (found.revision, request.model_dump_json(), hashlib.sha256(examples).hexdigest())
        return await self.shared.run(key, draw)

    async def predict(self, name: str, request: PredictRequest) -> Prediction:
        """Run a subnetwork on the inputs of a client."""
        served = self.catalogue.get(name)
        if (request.subnetwork is None) == (request.architecture is None):
            raise RefusedError(422, "invalid_request", "give either subnetwork, an id, or architecture")
        if request.architecture is not None:
            architecture = read_architecture(served, request.architecture)
        else:
            served, architecture = self._named(str(request.subnetwork))
            if served.offer.name != name:
                raise RefusedError(
                    404, "unknown_subnetwork", f"{request.subnetwork} belongs to {served.offer.name}, not to {name}"
                )
        inputs = read_inputs(served, architecture, request.inputs)
        outputs = await self.batcher(served, architecture, inputs)
        return Prediction(subnetwork=served.name_of(architecture), outputs=outputs)


async def _off_loop(long: bool, work: Callable[[], T]) -> T:
    """Compute here, or in a thread where that takes long."""
    return await asyncio.to_thread(work) if long else work()


def summary(served: Served | Generator) -> ModelSummary:
    """Describe a model in a line."""
    return ModelSummary(
        name=served.offer.name,
        kind="supernet" if isinstance(served, Served) else "hypernetwork",
        fields={} if served.maker is None else dict(served.maker.fields),
        address=served.offer.address,
        version=served.located.version,
        revision=served.revision,
    )
