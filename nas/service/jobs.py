"""Searches and draws that take longer than a request should: kept on disk, so that they survive the process."""

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from nas.dataset_maker import DatasetMaker
from nas.service.catalogue import Catalogue
from nas.service.problems import RefusedError
from nas.service.schemas import Job, Progress, SampleRequest, SubnetworkRequest, Subnetworks
from nas.service.selection import by_search, wanted
from nas.service.served import Generator, Served
from nas.service.uploads import read_examples, sample
from trials import write_atomically

__all__ = ["JOB", "Jobs"]

JOB = r"^[0-9a-f]{32}$"
_FILE, _LOCK, _CANCEL = "job.json", "lock", "cancel"
_EXAMPLES, _WEIGHTS = "examples.safetensors", "weights.safetensors"
_KEPT = 24 * 3600.0
_MOST = 1000  # jobs that are kept after their end
_WRITE = 0.5
_ENDED = ("done", "failed", "cancelled")
_logger = logging.getLogger("nas.service")
Search = Callable[..., Subnetworks]
Report = Callable[[int, int], None]
Stop = Callable[[], bool]


@final
class Jobs:
    """One folder for each job; any number of processes may share them.

    A process that works on a job holds a lock that the operating system releases when it dies; whoever finds an
    unfinished job without a lock begins it again. Equal seeds try equal architectures, so nothing is lost but time.

    Args:
        folder: of the jobs.
        catalogue: the supernets.
        queue: jobs that may wait.
        search: does the work.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, *, queue: int, search: Search = by_search) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self.queue = queue
        self.search = search
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nas-job")
        self._mine: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)

    def create(self, served: Served, request: SubnetworkRequest) -> Job:
        """Queue a search.

        Raises:
            RefusedError: too many wait already (429).
        """
        return self._queue(served, request)

    def create_sampling(self, source: Generator, request: SampleRequest, examples: bytes) -> Job:
        """Queue a draw of networks for the examples of an upload that was read before.

        Raises:
            RefusedError: too many wait already (429).
        """
        return self._queue(source, request, examples)

    def _queue(
        self, source: Served | Generator, request: SubnetworkRequest | SampleRequest, examples: bytes = b""
    ) -> Job:
        waiting = sum(job.state not in _ENDED for job in self.all())
        if waiting > self.queue:
            raise RefusedError(
                429,
                "busy",
                f"{waiting} jobs are waiting, which is all this service takes",
                headers={"Retry-After": "30"},
            )
        job = Job(
            id=uuid.uuid4().hex,
            model=source.offer.name,
            revision=source.revision,
            state="queued",
            request=request,
            created=time.time(),
        )
        if examples:
            (self.folder / job.id).mkdir()
            (self.folder / job.id / _EXAMPLES).write_bytes(examples)
        self._write(job)
        self._submit(job.id)
        return job

    def weights(self, name: str) -> bytes:
        """Return the file that a draw has made.

        Raises:
            RefusedError: there is no such job, or it has made none (404).
        """
        job = self.get(name)
        try:
            return (self.folder / name / _WEIGHTS).read_bytes() if job.weights is not None else _no_weights(job)
        except FileNotFoundError:
            return _no_weights(job)

    def get(self, name: str) -> Job:
        """Return a job as it is now.

        Raises:
            RefusedError: there is none of this name (404).
        """
        job = self._read(name)
        if job is None:
            raise RefusedError(404, "unknown_job", f"there is no job {name}; jobs are kept for a day after their end")
        return job

    def all(self) -> list[Job]:
        """Return the jobs that are kept, the oldest first."""
        found = (self._read(place.name) for place in self._places())
        return sorted((job for job in found if job is not None), key=lambda job: (job.created, job.id))

    def cancel(self, name: str) -> Job:
        """Ask for the end of a job; one that has ended stays as it is.

        Raises:
            RefusedError: there is none of this name (404).
        """
        job = self.get(name)
        if job.state in _ENDED:
            return job
        (self.folder / name / _CANCEL).touch()
        try:
            with self._held(name):  # nobody works on it
                job = self.get(name)
                if job.state not in _ENDED:
                    job = self._end(job, "cancelled")
        except Timeout:
            pass
        return job

    def tend(self) -> None:
        """Take up jobs that nobody works on, and forget those that ended long ago."""
        known = self.all()
        ended = [job for job in known if job.state in _ENDED]
        excess = len(ended) - _MOST
        for number, job in enumerate(ended):
            if number < excess or time.time() - (job.finished or job.created) > _KEPT:
                shutil.rmtree(self.folder / job.id, ignore_errors=True)
        for job in known:
            if job.state not in _ENDED:
                self._submit(job.id)

    def close(self) -> None:
        """Give back what is being worked on; it is taken up by the next process."""
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _places(self) -> Iterator[Path]:
        return (place for place in self.folder.iterdir() if (place / _FILE).exists())

    def _held(self, name: str) -> FileLock:
        return FileLock(self.folder / name / _LOCK, timeout=0)

    def _read(self, name: str) -> Job | None:
        try:
            return Job.model_validate_json((self.folder / name / _FILE).read_bytes())
        except (OSError, ValueError):
            return None

    def _write(self, job: Job) -> None:
        write_atomically(self.folder / job.id / _FILE, job.model_dump_json())

    def _end(self, job: Job, state: str, **found: object) -> Job:
        ended = job.model_copy(update={"state": state, "finished": time.time(), **found})
        self._write(ended)
        (self.folder / job.id / _EXAMPLES).unlink(missing_ok=True)
        return ended

    def _submit(self, name: str) -> None:
        with self._lock:
            if name in self._mine or self._closing.is_set():
                return
            self._mine.add(name)
        self._pool.submit(self._work, name)

    def _work(self, name: str) -> None:
        try:
            with self._held(name):
                job = self._read(name)
                if job is not None and job.state not in _ENDED:
                    self._run(job)
        except Timeout:  # another process works on it
            pass
        except Exception:
            _logger.exception("job", extra={"fields": {"event": "job_error", "job": name}})
        finally:
            with self._lock:
                self._mine.discard(name)

    def _run(self, job: Job) -> None:
        cancel = self.folder / job.id / _CANCEL
        if cancel.exists():
            self._end(job, "cancelled")
            return
        work = self._computation(job)
        if work is None:
            if self.catalogue.ready:
                self._end(job, "failed", message=f"revision {job.revision} of {job.model} is not served any more")
            return
        started = written = time.monotonic()
        self._write(job := job.model_copy(update={"state": "running"}))

        def progress(tried: int, draws: int) -> None:
            nonlocal job, written
            del draws
            now = time.monotonic()
            job = job.model_copy(update={"progress": Progress(tried=tried, seconds=round(now - started, 3))})
            if now - written > _WRITE:
                written = now
                self._write(job)

        def stop() -> bool:
            return self._closing.is_set() or cancel.exists()

        try:
            found = work(progress, stop)
        except RefusedError as refusal:
            if not stop():
                self._end(job, "failed", message=refusal.message)
                return
        except Exception as error:
            self._end(job, "failed", message=f"the job broke down: {type(error).__name__}; see the log")
            raise
        if cancel.exists():
            self._end(job, "cancelled")
        elif self._closing.is_set():
            self._write(job.model_copy(update={"state": "queued"}))
        else:
            self._end(job, "done", **found)

    def _computation(self, job: Job) -> Callable[[Report, Stop], dict[str, object]] | None:
        """Return what a job computes, or ``None`` where its model is not served."""
        request = job.request
        if isinstance(request, SampleRequest):
            source = self.catalogue.generator(job.revision)
            return None if source is None else lambda progress, stop: self._sampled(job.id, source, request)
        served = self.catalogue.of_revision(job.revision)
        return None if served is None else lambda progress, stop: self._searched(served, request, progress, stop)

    def _searched(self, served: Served, request: SubnetworkRequest, progress: Report, stop: Stop) -> dict[str, object]:
        asked = wanted(served, request)
        return {
            "result": self.search(
                served, asked, seed=request.seed, seconds=request.seconds, progress=progress, stop=stop
            )
        }

    def _sampled(self, name: str, source: Generator, request: SampleRequest) -> dict[str, object]:
        """Draw networks; this cannot be interrupted, so a cancelled draw ends when it is done."""
        maker = source.maker
        assert isinstance(maker, DatasetMaker)  # noqa: S101 - the upload was read for it
        data = read_examples((self.folder / name / _EXAMPLES).read_bytes(), maker, request)
        sample(maker, data, request, self.folder / name / _WEIGHTS)
        return {"weights": f"/v1/jobs/{name}/weights"}


def _no_weights(job: Job) -> bytes:
    raise RefusedError(404, "no_weights", f"job {job.id} is {job.state} and has no weights; ask for the job itself")
