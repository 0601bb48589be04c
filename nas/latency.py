"""Measured latency: wall-clock time of one forward pass on this machine's CPU."""

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from filelock import FileLock
from torch import nn

from nas.costs import Cost, materialise
from search_spaces import Architecture, SearchSpace
from trials import Direction

__all__ = ["Latency", "Timing", "exclusively"]


@dataclass(frozen=True)
class Timing:
    """Wall-clock times of one forward pass, in milliseconds.

    Args:
        median: middle of the repeats.
        p25: first quartile.
        p75: third quartile.
        minimum: fastest repeat.
        repeats: how many were measured.
    """

    median: float
    p25: float
    p75: float
    minimum: float
    repeats: int


@final
class Latency(Cost):
    """Median wall-clock time of a forward pass over ``space.inputs``, in evaluation mode without gradients.

    Measurements exclude each other across all processes of the machine through a file lock, so workers of one search
    never time each other's load. The number of threads is fixed while measuring and restored after. A model on meta is
    built with random weights: its time is the same, as long as no value decides what is computed.

    Args:
        space: the search space.
        batch_size: examples in a forward pass.
        threads: intra-operator threads.
        warmup: passes before measuring.
        repeats: measured passes.
        lock: path of the lock file; ``None`` for one in the temporary folder that all of this user's processes share.

    Raises:
        ValueError: a number is out of range.
    """

    name = "latency"
    unit = "ms"
    direction: Direction = "minimize"

    def __init__(
        self,
        space: SearchSpace,
        *,
        batch_size: int = 1,
        threads: int = 1,
        warmup: int = 10,
        repeats: int = 50,
        lock: str | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("threads", threads, 1),
            ("warmup", warmup, 0),
            ("repeats", repeats, 1),
        ):
            if value < least:
                raise ValueError(f"{name} of the latency must be {least} or more, got {value}")
        self.space = space
        self.batch_size = batch_size
        self.threads = threads
        self.warmup = warmup
        self.repeats = repeats
        self.lock = lock

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the median time of one forward pass in milliseconds."""
        return self.timing(architecture, model).median

    def timing(self, architecture: Architecture, model: nn.Module) -> Timing:
        """Measure and return the median with its spread.

        Warns:
            RuntimeWarning: the machine has other work than this process, so times are doubtful.
        """
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            model = materialise(self.space, architecture)
        with torch.device("cpu"):
            inputs = self.space.inputs(architecture, self.batch_size)
        with exclusively(self.lock), _fixed_threads(self.threads), _evaluating(model), torch.no_grad():
            for _ in range(self.warmup):
                model(*inputs)
            times = [_milliseconds(model, inputs) for _ in range(self.repeats)]
        quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        return Timing(statistics.median(times), quartiles[0], quartiles[2], min(times), len(times))


@contextmanager
def exclusively(lock: str | None) -> Iterator[None]:
    """Hold the lock that keeps latencies of one machine from being measured at the same time.

    Args:
        lock: path of the lock file; ``None`` for one in the temporary folder that all of this user's processes share.

    Warns:
        RuntimeWarning: the machine has other work than this process, so times are doubtful.
    """
    path = Path(tempfile.gettempdir()) / f"weightloom-latency-{os.getuid()}.lock" if lock is None else Path(lock)
    with FileLock(path):
        _warn_if_busy()
        yield


def _milliseconds(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    start = time.perf_counter_ns()
    model(*inputs)
    return (time.perf_counter_ns() - start) / 1e6


@contextmanager
def _fixed_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _warn_if_busy() -> None:
    """Warn when, besides this process, more than half a process waits for each core."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if (load - 1.0) / cores > 0.5:
        warnings.warn(
            f"latency is measured on a busy machine (load average {load:.1f} on {cores} cores); "
            "stop other work, or treat the times as upper bounds",
            RuntimeWarning,
            stacklevel=4,
        )
