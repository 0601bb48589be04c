"""Computation off the event loop: a bounded pool, a bounded queue, and one computation for equal requests."""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, final

from nas.service.problems import RefusedError

__all__ = ["SharedWork", "Workers"]

T = TypeVar("T")


@final
class Workers:
    """Threads that compute, and the number of computations that may wait for them.

    Args:
        threads: computing at once.
        queue: waiting beside those that run.
        timeout: seconds that a request waits for a computation.
        meter: told how many run or wait.
    """

    def __init__(
        self, threads: int, queue: int, timeout: float, *, meter: Callable[[int], object] = lambda _: None
    ) -> None:
        self.threads = threads
        self.queue = queue
        self.timeout = timeout
        self.meter = meter
        self.pending = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nas-compute")

    def begin(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        """Let a thread compute, as soon as one is free.

        Raises:
            RefusedError: too much is waiting already (429).
        """
        if self.pending >= self.threads + self.queue:
            raise RefusedError(
                429,
                "busy",
                f"{self.pending} computations are running or waiting, which is all this service takes; try again later",
                headers={"Retry-After": "1"},
            )
        self.pending += 1
        self.meter(self.pending)
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(self._done)
        return future

    async def result(self, future: "asyncio.Future[T]") -> T:
        """Wait for a computation, for as long as a request may.

        A computation cannot be interrupted: after a timeout it goes on, and the next request may wait for it again.

        Raises:
            RefusedError: it took too long (503).
        """
        await asyncio.wait([future], timeout=self.timeout)
        if future.done():
            return future.result()
        raise RefusedError(
            503,
            "timeout",
            f"the computation took more than {self.timeout:g} s; it goes on, so try again later",
            headers={"Retry-After": "5"},
        )

    async def run(self, work: Callable[[], T]) -> T:
        """Compute in a thread and return the result; see :meth:`begin` and :meth:`result`."""
        return await self.result(self.begin(work))

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self.pending -= 1
        self.meter(self.pending)
        if not future.cancelled():
            future.exception()  # it may be that nobody waits for it any more

    def close(self) -> None:
        """Let what runs end and drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@final
class SharedWork:
    """Equal requests share one computation for as long as it runs.

    Args:
        workers: compute.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._running: dict[Hashable, asyncio.Future[Any]] = {}

    async def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """Return the result of the computation of ``key`` that is under way, or begin it; see :meth:`Workers.run`."""
        future = self._running.get(key)
        if future is None:
            future = self._running[key] = self.workers.begin(work)
            future.add_done_callback(lambda _: self._running.pop(key))
        found: T = await self.workers.result(future)
        return found
