"""Computation off the event loop: a bounded pool, a bounded queue, and one computation for equal requests."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar, final

from nas.service.problems import RefusedError

__all__ = ["SingleFlight", "Workers"]

T = TypeVar("T")


@final
class Workers:
    """Threads that compute, and the number of computations that may wait for them.

    Args:
        threads: computing at once.
        queue: waiting beside those that run.
        timeout: seconds that :meth:`run` waits.
    """

    def __init__(self, threads: int, queue: int, timeout: float) -> None:
        self.threads = threads
        self.queue = queue
        self.timeout = timeout
        self.pending = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="nas-compute")

    async def run(self, work: Callable[[], T]) -> T:
        """Compute in a thread.

        A computation cannot be interrupted: after a timeout it goes on, and what it leaves in a cache is found by the
        next request.

        Raises:
            RefusedError: too much is waiting already (429), or it took too long (503).
        """
        if self.pending >= self.threads + self.queue:
            raise RefusedError(
                429,
                "busy",
                f"{self.pending} computations are running or waiting, which is all this service takes; try again later",
                headers={"Retry-After": "1"},
            )
        self.pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(self._done)
        try:
            async with asyncio.timeout(self.timeout):
                return await asyncio.shield(future)
        except TimeoutError:
            if future.done():
                raise
            raise RefusedError(
                503,
                "timeout",
                f"the computation took more than {self.timeout:g} s; it goes on, so try again later",
                headers={"Retry-After": "5"},
            ) from None

    def _done(self, future: "asyncio.Future[Any]") -> None:
        self.pending -= 1
        if not future.cancelled():
            future.exception()  # it may be that nobody waits for it any more

    def close(self) -> None:
        """Let what runs end and drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@final
class SingleFlight(Generic[T]):
    """Equal requests at one time share one computation."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

    async def __call__(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of the computation of ``key`` that is under way, or begin it."""
        task = self._tasks.get(key)
        if task is None:

            async def begin() -> T:
                return await work()

            task = self._tasks[key] = asyncio.create_task(begin())
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)

    def _done(self, key: Hashable, task: "asyncio.Task[T]") -> None:
        del self._tasks[key]
        if not task.cancelled():
            task.exception()
