"""Where evaluations run: in this process, or on workers that may die without harm.

Life cycle: ``submit`` as many jobs as there are ``slots`` (more are queued), ``wait`` for completions in whatever order
they come, ``close`` (or leave the ``with`` block) to end the workers. A job that raises, dies or takes too long is a
completion with an error; it never raises in the caller.
"""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

__all__ = ["Completion", "Executor", "PoolExecutor", "SerialExecutor", "evaluated"]

_PULSE_S = 0.5  # between two looks at the workers, whatever they say
_STOPPED_S = 1.0  # a look that comes later than this was held up: this process had been stopped

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Completion(Generic[Result]):
    """The end of one job.

    Args:
        key: The key it was submitted under.
        result: What the function returned; ``None`` when there is an error.
        error: Why there is no result: a traceback, ``worker died (exit code -9)`` or ``timed out after 60 s``.
    """

    key: int
    result: Result | None
    error: str | None


class Executor(ABC, Generic[Argument, Result]):
    """Runs one function on many arguments."""

    slots: int
    """How many jobs run at the same time."""

    @abstractmethod
    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job; it starts as soon as a slot is free.

        Args:
            key: Name of the job in its completion.
            argument: What the function is called with.
        """

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[Completion[Result]]:
        """Return the jobs that ended since the last call, waiting for at least one.

        Args:
            timeout: Seconds to wait at most; ``None`` waits until a job ends.

        Returns:
            Completions; empty when nothing ended in time or nothing is queued.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers and drop all jobs; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SerialExecutor(Executor[Argument, Result]):
    """Evaluates in the calling process, one job for each ``wait``; ``KeyboardInterrupt`` passes through.

    Args:
        function: What evaluates an argument.
        record: Called with key and result right after an evaluation, to make the result durable.
    """

    def __init__(
        self, function: Callable[[Argument], Result], *, record: Callable[[int, Result], None] | None = None
    ) -> None:
        self.function = function
        self.record = record
        self.slots = 1
        self._jobs: deque[tuple[int, Argument]] = deque()

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job."""
        self._jobs.append((key, argument))

    def wait(self, timeout: float | None = None) -> list[Completion[Result]]:
        """Evaluate the oldest job; the timeout has no effect, since nothing runs in the background."""
        if not self._jobs:
            return []
        key, argument = self._jobs.popleft()
        return [evaluated(self.function, self.record, key, argument)]

    def close(self) -> None:
        """Drop the queued jobs."""
        self._jobs.clear()


class PooledWorker(Protocol):
    """A worker of a :class:`PoolExecutor`."""

    deadline: float | None
    """When its job has taken too long, on the clock of ``time.monotonic``."""
    usable: bool
    """Whether it can be given another job."""

    @property
    def occupied(self) -> bool:
        """Whether it has a job."""


Worker = TypeVar("Worker", bound=PooledWorker)


class PoolExecutor(Executor[Argument, Result], Generic[Argument, Result, Worker]):
    """Runs jobs on workers that are listened to together.

    A subclass keeps ``_pool`` and ``_jobs`` and says how workers are given jobs, heard and ended. The time for which
    this process was stopped (Ctrl-Z, which stops its workers too) does not count against the time that a job may take.
    """

    _pool: list[Worker]

    @abstractmethod
    def _dispatch(self) -> None:
        """Give queued jobs to free workers, and begin workers while there may be more."""

    @abstractmethod
    def _listen(self, busy: Sequence[Worker], patience: float) -> Sequence[Worker]:
        """Return all that have something to say, waiting for the first so many seconds at most."""

    @abstractmethod
    def _take(self, worker: Worker) -> Completion[Result] | None:
        """Hear a worker: its answer, its death, or nothing that ends a job."""

    @abstractmethod
    def _expire(self, worker: Worker) -> Completion[Result] | None:
        """End a worker whose job has taken too long."""

    def wait(self, timeout: float | None = None) -> list[Completion[Result]]:
        """Return the jobs that ended since the last call.

        Raises:
            RuntimeError: If a worker cannot even start.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        completions: list[Completion[Result]] = []
        while not completions:
            self._dispatch()
            busy = [worker for worker in self._pool if worker.occupied]
            if not busy:
                break
            heard = self._hear(busy, deadline)
            try:
                for worker in busy:
                    completion = self._take(worker) if worker in heard else self._overdue(worker)
                    if completion is not None:
                        completions.append(completion)
            finally:
                self._pool = [worker for worker in self._pool if worker.usable]
            if deadline is not None and time.monotonic() >= deadline:
                break
        self._dispatch()
        return completions

    def _hear(self, busy: Sequence[Worker], deadline: float | None) -> Sequence[Worker]:
        """Listen until the next look is due, and put off the ends of all jobs where it comes much too late."""
        now = time.monotonic()
        ends = [end for end in (deadline, *(worker.deadline for worker in busy)) if end is not None]
        look = min(now + _PULSE_S, *ends) if ends else now + _PULSE_S
        heard = self._listen(busy, max(0.0, look - now))
        late = time.monotonic() - max(look, now)
        if late > _STOPPED_S:
            for worker in busy:
                if worker.deadline is not None:
                    worker.deadline += late
        return heard

    def _overdue(self, worker: Worker) -> Completion[Result] | None:
        late = worker.deadline is not None and time.monotonic() >= worker.deadline
        return self._expire(worker) if late else None


def evaluated(
    function: Callable[[Argument], Result],
    record: Callable[[int, Result], None] | None,
    key: int,
    argument: Argument,
) -> Completion[Result]:
    """Return the completion of one evaluation, whatever happens in it; the result is recorded first."""
    try:
        result = function(argument)
        if record is not None:
            record(key, result)
    except Exception:
        return Completion(key, None, traceback.format_exc())
    return Completion(key, result, None)
