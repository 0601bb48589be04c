"""Evaluations in spawned worker processes that may die without harm."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pickle import PicklingError
from typing import Generic

from trials.executors import Argument, Completion, PoolExecutor, Result, evaluated

__all__ = ["ProcessExecutor"]

_CLOSE_PATIENCE_S = 2.0
_PARENT_S = 1.0  # between two looks at the parent, whose sentinel may be held open by what it has forked


class ProcessExecutor(PoolExecutor[Argument, Result, "_Process[Argument, Result]"]):
    """Evaluates in worker processes that are spawned, never forked.

    The function is pickled once for each worker; tensors in it are shared, not copied. Workers ignore Ctrl-C, which the
    parent turns into a close, and end at once when the parent dies.

    Args:
        function: What evaluates an argument; picklable, as are arguments and results.
        workers: Number of processes.
        timeout: Seconds that one evaluation may take before its worker is killed.
        threads: Threads of each worker for tensor arithmetic; by default the cores are divided among the workers.
        record: Called in the worker with key and result right after an evaluation, to make the result durable.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        function: Callable[[Argument], Result],
        *,
        workers: int = 2,
        timeout: float | None = None,
        threads: int | None = None,
        record: Callable[[int, Result], None] | None = None,
    ) -> None:
        for name, value in (("workers", workers), ("timeout", timeout), ("threads", threads)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.function = function
        self.workers = workers
        self.timeout = timeout
        self.threads = threads
        self.record = record
        self.slots = workers
        self._pool: list[_Process[Argument, Result]] = []
        self._jobs: deque[tuple[int, Argument]] = deque()

    def submit(self, key: int, argument: Argument) -> None:
        """Queue a job and start it if a worker is free.

        Raises:
            TypeError: If the function cannot be sent to a worker.
        """
        self._jobs.append((key, argument))
        try:
            self._dispatch()
        except TypeError:
            self._jobs.pop()
            raise

    def close(self) -> None:
        """Ask idle workers to end, kill busy ones, and wait for all of them."""
        self._jobs.clear()
        for worker in self._pool:
            worker.dismiss()
        for worker in self._pool:
            worker.bury()
        self._pool = []

    def _listen(
        self, busy: Sequence[_Process[Argument, Result]], patience: float
    ) -> Sequence[_Process[Argument, Result]]:
        ready = wait([worker.connection for worker in busy], patience)
        return [worker for worker in busy if worker.connection in ready or worker.ended]

    def _take(self, worker: _Process[Argument, Result]) -> Completion[Result] | None:
        return worker.receive()

    def _expire(self, worker: _Process[Argument, Result]) -> Completion[Result] | None:
        return worker.expire()

    def _dispatch(self) -> None:
        while self._jobs:
            worker = next((worker for worker in self._pool if not worker.occupied), None)
            if worker is None and len(self._pool) >= self.workers:
                return
            if worker is None:
                threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)
                worker = _Process(self.function, self.record, threads, self.timeout)
                self._pool.append(worker)
            worker.assign(*self._jobs.popleft())


class _Process(Generic[Argument, Result]):
    """One worker process as its parent sees it."""

    def __init__(
        self,
        function: Callable[[Argument], Result],
        record: Callable[[int, Result], None] | None,
        threads: int,
        timeout: float | None,
    ) -> None:
        context = get_context("spawn")
        self.timeout = timeout
        self.deadline: float | None = None
        self.usable = True
        self._job: tuple[int, Argument] | None = None
        self._ready = False
        self.connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_serve, args=(theirs, function, record, threads), daemon=True
        )
        try:
            with _interrupts_held_back():
                self._process.start()
        except (TypeError, AttributeError, PicklingError) as error:
            raise TypeError(
                f"the evaluated function must be picklable to reach a worker process, got {function!r} ({error}); "
                "use a module-level function or an object of a module-level class"
            ) from error
        theirs.close()

    @property
    def occupied(self) -> bool:
        return self._job is not None

    @property
    def ended(self) -> bool:
        """Whether the process is gone; its connection may be held open by processes that it has forked."""
        return self._process.exitcode is not None

    def assign(self, key: int, argument: Argument) -> None:
        self._job = (key, argument)
        if self._ready:
            self._send()

    def receive(self) -> Completion[Result] | None:
        """Take the next message of the worker, or notice that it died."""
        if self.ended and not self.connection.poll():
            return self._died()
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return self._died()
        if message is None:
            self._ready = True
            self._send()
            return None
        return self._complete(*message)

    def expire(self) -> Completion[Result]:
        """Kill the worker, whose job has taken too long."""
        self._process.kill()
        self.bury()
        return self._complete(None, f"timed out after {self.timeout:g} s")

    def dismiss(self) -> None:
        if self.occupied or not self._ready:
            self._process.kill()
        else:
            with suppress(OSError):
                self.connection.send(None)

    def bury(self) -> None:
        self.usable = False
        self._process.join(_CLOSE_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.connection.close()

    def _send(self) -> None:
        if self._job is None:
            return
        self.deadline = None if self.timeout is None else time.monotonic() + self.timeout
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(self._job)

    def _died(self) -> Completion[Result]:
        self.bury()
        code = self._process.exitcode
        if not self._ready:
            raise RuntimeError(
                f"a worker process must be able to start, it ended with exit code {code}; its message is above. "
                "A script that uses worker processes needs `if __name__ == '__main__':` around its main part"
            )
        return self._complete(None, f"worker died (exit code {code})")

    def _complete(self, result: Result | None, error: str | None) -> Completion[Result]:
        if self._job is None:
            raise RuntimeError("a worker answered without a job")
        key, self._job, self.deadline = self._job[0], None, None
        return Completion(key, result, error)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start a process with Ctrl-C blocked: the child inherits that for life, the parent gets the signal afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    connection: Connection,
    function: Callable[[Argument], Result],
    record: Callable[[int, Result], None] | None,
    threads: int,
) -> None:
    """Evaluate what the parent sends, until it says goodbye or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    connection.send(None)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        answer = evaluated(function, record, *job)
        try:
            connection.send((answer.result, answer.error))
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception:
            connection.send((None, f"the result must be picklable to leave its worker:\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is None:
        return
    while os.getppid() == parent.pid and not wait([parent.sentinel], _PARENT_S):
        pass
    os._exit(1)
