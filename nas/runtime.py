"""Timing ONNX models with ONNX Runtime, and which machine it was."""

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nas.latency import Timing, exclusively

__all__ = ["fingerprint", "prepare", "time_models", "time_runs"]

_TELLING = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")


def fingerprint(threads: int) -> dict[str, Any]:
    """Return what latencies depend on: processor, its vector instructions, runtime version and threads."""
    found: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip().lower(), value.strip())
    flags = set((found.get("flags") or found.get("features") or "").split())
    return {
        "processor": found.get("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in _TELLING if flag in flags],
        "onnxruntime": version("onnxruntime"),
        "threads": threads,
    }


def prepare(model: str | Path | bytes, inputs: Sequence[torch.Tensor], *, threads: int = 1) -> tuple[Any, Any]:
    """Open a model on the CPU, and return its session with its inputs by name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    return session, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}


def time_runs(prepared: Sequence[tuple[Any, Any]], *, warmup: int, repeats: int) -> list[Timing]:
    """Time several open models in turns, so that all see the same machine; hold the lock of latencies meanwhile.

    Args:
        prepared: sessions and inputs of :func:`prepare`.
        warmup: runs of each before measuring.
        repeats: measured runs of each.
    """
    times: list[list[float]] = [[] for _ in prepared]
    for turn in range(warmup + repeats):
        for own, (session, inputs) in zip(times, prepared, strict=True):
            start = time.perf_counter_ns()
            session.run(None, inputs)
            if turn >= warmup:
                own.append((time.perf_counter_ns() - start) / 1e6)
    made = []
    for own in times:
        quartiles = statistics.quantiles(own, n=4, method="inclusive") if len(own) > 1 else own * 3
        made.append(Timing(statistics.median(own), quartiles[0], quartiles[2], min(own), len(own)))
    return made


def time_models(
    models: Mapping[str, str | Path | bytes],
    inputs: Sequence[torch.Tensor],
    *,
    threads: int = 1,
    warmup: int = 10,
    repeats: int = 100,
    lock: str | None = None,
) -> dict[str, Timing]:
    """Return name -> times of one run of ONNX models that take the same inputs, measured in turns.

    Measurements exclude each other across all processes of the machine.

    Args:
        models: name -> file or bytes.
        inputs: of every model.
        threads: intra-operator threads.
        warmup: runs of each before measuring.
        repeats: measured runs of each.
        lock: path of the lock file; ``None`` for the one that all latencies of this user share.

    Warns:
        RuntimeWarning: the machine has other work than this process, so times are doubtful.
    """
    prepared = [prepare(model, inputs, threads=threads) for model in models.values()]
    with exclusively(lock):
        timings = time_runs(prepared, warmup=warmup, repeats=repeats)
    return dict(zip(models, timings, strict=True))
