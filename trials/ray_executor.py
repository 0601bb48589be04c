"""Evaluations on a Ray cluster. The only file that imports Ray."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, final

from trials.executors import Argument, Completion, PoolExecutor, Result, evaluated

__all__ = ["RayExecutor"]

_logger = logging.getLogger(__name__)
_LONGEST_TMPDIR = 38  # Ray's sockets lie 69 characters below it, and the path of a socket has 107 at most


@final
class RayExecutor(PoolExecutor[Argument, Result, "_Actor[Argument, Result]"]):
    """Evaluates in actors of a Ray cluster, on whatever machines it has.

    The function is put into the object store once and loaded by each actor once, so a supernet crosses the network once
    a machine. An actor is given the next job when it has ended one; where the cluster has room for fewer actors than
    ``workers``, those that run do all jobs. When an actor or its machine dies, its job is begun again in a new actor,
    ``retries`` times at most.

    Args:
        function: What evaluates an argument. Its classes must be importable on every machine.
        workers: How many evaluations run at the same time.
        timeout: Seconds that one evaluation may take before its actor is killed.
        address: Address of the cluster, ``"auto"`` for the one this machine belongs to; ``None`` starts one of this
            machine alone, which ends with the executor. A cluster that this process has joined already is used.
        cpus: CPUs that Ray reserves for one evaluation.
        gpus: GPUs that Ray reserves for one evaluation; a fraction shares one.
        retries: How often a job whose actor died is begun again.
        record: Called in the actor with key and result right after an evaluation. What it writes is of use only where
            all machines share a file system.

    Raises:
        ValueError: If a number is negative, or Ray is not installed.
        ConnectionError: If the cluster cannot be reached.
    """

    def __init__(
        self,
        function: Callable[[Argument], Result],
        *,
        workers: int = 2,
        timeout: float | None = None,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        retries: int = 1,
        record: Callable[[int, Result], None] | None = None,
    ) -> None:
        for name, value in (("workers", workers), ("timeout", timeout)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name, value in (("cpus", cpus), ("gpus", gpus), ("retries", retries)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if find_spec("ray") is None:
            raise ValueError("evaluations on a Ray cluster need `pip install 'weightloom[ray]'`")
        self.function = function
        self.workers = workers
        self.timeout = timeout
        self.address = address
        self.cpus = cpus
        self.gpus = gpus
        self.retries = retries
        self.record = record
        self.slots = workers
        self._jobs: deque[_Job[Argument]] = deque()
        self._pool: list[_Actor[Argument, Result]] = []
        self._joined = _join(address)
        _warn_without_room(cpus, gpus)
        self._shipped: Any = None

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job and start it if an actor is free.

        Raises:
            TypeError: If the function cannot be sent to the cluster.
        """
        import ray

        if self._shipped is None:
            try:
                self._shipped = ray.put((self.function, self.record))
            except Exception as error:
                raise TypeError(
                    f"the evaluated function must be picklable to reach a worker process, got {self.function!r} "
                    f"({error}); use a module-level function or an object of a module-level class"
                ) from error
        self._jobs.append(_Job(key, argument))
        self._dispatch()

    def close(self) -> None:
        """Kill the actors; leave the cluster, or end it where it was started here."""
        import ray

        self._jobs.clear()
        for actor in self._pool:
            actor.kill()
        self._pool = []
        self._shipped = None
        if self._joined:
            self._joined = False
            ray.shutdown()

    def _dispatch(self) -> None:
        while self._jobs:
            actor = next((actor for actor in self._pool if not actor.occupied), None)
            if actor is None and len(self._pool) >= self.workers:
                break
            if actor is None:
                actor = _Actor(self._shipped, self.cpus, self.gpus, self.timeout)
                self._pool.append(actor)
            actor.assign(self._jobs.popleft())
        self._take_over()

    def _take_over(self) -> None:
        """Give free actors the jobs of those that still load: the cluster may never have room for these."""
        loading = [actor for actor in self._pool if actor.occupied and not actor.loaded]
        free = [actor for actor in self._pool if actor.loaded and not actor.occupied]
        for waiting, actor in zip(loading, free, strict=False):
            actor.assign(waiting.hand_over())

    def _listen(self, busy: Sequence[_Actor[Argument, Result]], patience: float) -> Sequence[_Actor[Argument, Result]]:
        import ray

        futures = [actor.future for actor in busy]
        ray.wait(futures, num_returns=1, timeout=patience)
        ready, _ = ray.wait(futures, num_returns=len(futures), timeout=0)
        return [actor for actor in busy if actor.future in ready]

    def _take(self, actor: _Actor[Argument, Result]) -> Completion[Result] | None:
        """Take the answer of an actor, or notice that it died, ran out of memory, or lost its machine or the answer."""
        import ray

        try:
            return actor.receive()
        except ray.exceptions.RayTaskError as error:
            job = actor.give_up()
            if actor.loaded:
                return Completion(job.key, None, f"the result must be picklable to leave its worker:\n{error}")
            raise RuntimeError(
                "a worker must be able to start; every machine of the cluster needs the same packages and modules:\n"
                f"{error}"
            ) from error
        except ray.exceptions.RayError as error:
            job = actor.give_up()
            job.deaths += 1
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if job.deaths > self.retries:
                return Completion(job.key, None, f"worker died {job.deaths} time(s), lately: {reason}")
            _logger.warning("the worker of job %d died and is replaced: %s", job.key, reason)
            self._jobs.appendleft(job)
            return None

    def _expire(self, actor: _Actor[Argument, Result]) -> Completion[Result]:
        return Completion(actor.give_up().key, None, f"timed out after {self.timeout:g} s")


@dataclass
class _Job(Generic[Argument]):
    key: int
    argument: Argument
    deaths: int = 0


class _Actor(Generic[Argument, Result]):
    """One actor as the executor sees it: loading first, then one job at a time."""

    def __init__(self, shipped: Any, cpus: float, gpus: float, timeout: float | None) -> None:
        import ray

        self.timeout = timeout
        self.deadline: float | None = None
        self.usable = True
        self.job: _Job[Argument] | None = None
        self.loaded = False
        evaluator: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Evaluator)
        self._handle: Any = evaluator.remote([shipped])
        self.future: Any = self._handle.load.remote()

    @property
    def occupied(self) -> bool:
        return self.job is not None

    def assign(self, job: _Job[Argument]) -> None:
        self.job = job
        if self.loaded:
            self._send()

    def hand_over(self) -> _Job[Argument]:
        """Return the job of an actor that has not begun it."""
        job, self.job = self.job, None
        if job is None:
            raise RuntimeError("a worker without a job has none to hand over")
        return job

    def receive(self) -> Completion[Result] | None:
        import ray

        answer = ray.get(self.future)
        if not self.loaded:
            self.loaded = True
            self._send()
            return None
        self.job = self.deadline = None
        completion: Completion[Result] = answer
        return completion

    def give_up(self) -> _Job[Argument]:
        """Return the job of an actor that will not be used again."""
        self.kill()
        return self.hand_over()

    def kill(self) -> None:
        import ray

        self.usable = False
        ray.kill(self._handle)

    def _send(self) -> None:
        if self.job is not None:
            self.deadline = None if self.timeout is None else time.monotonic() + self.timeout
            self.future = self._handle.evaluate.remote(self.job.key, self.job.argument)


class _Evaluator:
    """What runs on the cluster."""

    def __init__(self, shipped: list[Any]) -> None:
        self._shipped = shipped

    def load(self) -> None:
        """Fetch and build the function; an error here means that the machine cannot evaluate at all."""
        import ray

        self._function, self._record = ray.get(self._shipped[0])

    def evaluate(self, key: int, argument: Any) -> Completion[Any]:
        return evaluated(self._function, self._record, key, argument)


def _join(address: str | None) -> bool:
    """Join the cluster or start one; whether that was necessary."""
    for variable in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(variable, "0")
    import ray

    if ray.is_initialized():
        return False
    if address is None and len(os.environ.get("TMPDIR", "")) > _LONGEST_TMPDIR:
        os.environ.setdefault("RAY_TMPDIR", "/tmp")
    options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **options)
    except Exception as error:
        raise ConnectionError(
            f"search.ray.address must be a reachable Ray cluster, got {address!r} ({error}); start it with "
            "`ray start --head`, or leave the address out for a cluster of this machine alone"
        ) from error
    return True


def _warn_without_room(cpus: float, gpus: float) -> None:
    """Say that no machine is large enough; a cluster that grows on demand may get one."""
    import ray

    nodes: Any = ray.nodes
    resources = [node["Resources"] for node in nodes() if node["Alive"]]
    if any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in resources):
        return
    machines = ", ".join(f"{machine.get('CPU', 0):g} CPUs and {machine.get('GPU', 0):g} GPUs" for machine in resources)
    _logger.warning(
        "search.ray.cpus and gpus must fit one machine, or evaluations wait until the cluster has such a machine: "
        "got %g CPUs and %g GPUs for machines of %s",
        cpus,
        gpus,
        machines,
    )
