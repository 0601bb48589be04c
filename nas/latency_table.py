"""Latency by ONNX Runtime from a table of single operators and an affine fit on whole networks."""

import contextlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from nas.costs import Cost, materialise
from nas.latency import Timing, exclusively
from nas.making import replace_file
from nas.operators import Operator, operator_model, operators
from nas.runtime import fingerprint, prepare, time_runs
from search_spaces import Architecture, InputQuantizer, SearchSpace, derive_seed
from supernets.deployment import max_abs_layers
from supernets.format import Subject
from supernets.formats import OnnxFormat
from supernets.lowbit import LowBitOnnxFormat
from trials import Direction

__all__ = ["AffineFit", "LatencyTable", "affine_fit", "make_latency_table", "write_network"]

_VERSION = 1


@dataclass(frozen=True)
class AffineFit:
    """``latency = slope * (sum over operators) + intercept``, from whole networks that were measured.

    Attributes:
        slope: below 1 where operators side by side cost less than each with its own boundary.
        intercept: milliseconds.
        networks: how many were measured.
        error: median of the relative error over them.
    """

    slope: float
    intercept: float
    networks: int
    error: float

    def __call__(self, total: float) -> float:
        """Return the milliseconds of a network whose operators take ``total``; never less than nothing."""
        return max(0.0, self.slope * total + self.intercept)


def affine_fit(totals: Sequence[float], measured: Sequence[float]) -> AffineFit:
    """Fit measured latencies to sums of operators by least squares of the relative error.

    Args:
        totals: sum of the operators of each network.
        measured: milliseconds of each.

    Raises:
        ValueError: fewer than two different sums.
    """
    if len(set(totals)) < 2:
        raise ValueError(f"an affine fit needs networks of at least two different sums of operators, got {set(totals)}")
    x, y = np.asarray(totals), np.asarray(measured)
    slope, intercept = np.polyfit(x, y, 1, w=1 / y)
    error = float(np.median(np.abs(slope * x + intercept - y) / y))
    return AffineFit(float(slope), float(intercept), len(totals), error)


@final
class LatencyTable(Cost):
    """Milliseconds of one run of the exported network in ONNX Runtime, one example, predicted from a table.

    The table is made by ``nas profile --latency_table FILE`` on the machine that is to run the networks. An operator
    that it lacks is measured when it is first met and kept in it. Measure the final candidates whole: ``nas export
    --time``.

    Its limits and objectives are called ``onnx_latency``, because :class:`nas.Latency` times PyTorch itself. Layers
    other than linear and convolutional ones are in the fit alone, so compare architectures of one space.

    Args:
        space: the search space.
        path: of the table.
        lock: path of the lock file of measurements; ``None`` for the one that all latencies of this user share.

    Raises:
        ValueError: the file is no table, or was made on another machine or for another space.
    """

    name = "onnx_latency"
    unit = "ms"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace, path: str, *, lock: str | None = None) -> None:
        self.space = space
        self.path = path
        self.lock = lock
        table = _read(Path(path))
        machine = fingerprint(int(table["machine"]["threads"]))
        if table["machine"] != machine:
            differing = [key for key in machine if table["machine"].get(key) != machine[key]]
            told = "; ".join(f"{key} {table['machine'].get(key)} there, {machine[key]} here" for key in differing)
            raise ValueError(
                f"the latency table {path} was measured on another machine ({told}); make one here with "
                f"`nas profile -c FILE --latency_table {path}`"
            )
        if table["space"] != space.digest:
            raise ValueError(
                f"the latency table {path} was fitted for another search space; make one with "
                f"`nas profile -c FILE --latency_table {path}`"
            )
        self.fit = AffineFit(**table["fit"])
        self.threads = int(table["machine"]["threads"])
        self._times: dict[str, float] = {key: row["min"] for key, row in table["operators"].items()}

    def __call__(self, architecture: Architecture, model: Any) -> float:
        """Return the predicted milliseconds; ``model`` is not needed."""
        del model
        return self.fit(self.total(architecture))

    def total(self, architecture: Architecture) -> float:
        """Return the sum of the operators' milliseconds."""
        layers = operators(self.space, architecture)
        missing = {layer.key: layer for layer in layers if layer.key not in self._times}
        if missing:
            self._measure(missing)
        return sum(self._times[layer.key] for layer in layers)

    def _measure(self, missing: Mapping[str, Operator]) -> None:
        """Measure operators that the table lacks, unless another process has, and write them into the file."""
        with exclusively(self.lock):
            table = _read(Path(self.path))
            rows = table["operators"]
            rows |= _timed({key: o for key, o in missing.items() if key not in rows}, threads=self.threads)
            replace_file(Path(self.path), _spelt(table))
        self._times = {key: row["min"] for key, row in rows.items()}


def _spelt(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=1, sort_keys=True) + "\n").encode()


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a table.

    Raises:
        ValueError: it cannot be read.
    """
    reason = "it is of another version"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["version"] == _VERSION and {"machine", "space", "fit", "operators"} <= table.keys():
            return dict(table)
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "it is no latency table"
    raise ValueError(f"{path} cannot be used as a latency table: {reason}; make one with `nas profile --latency_table`")


def _timed(
    found: Mapping[str, Operator], *, threads: int, warmup: int = 10, repeats: int = 100
) -> dict[str, dict[str, float]]:
    """Time operators one after another; the caller holds the lock."""
    rows = {}
    for key, operator in found.items():
        prepared = prepare(operator_model(operator), [torch.ones(1, *operator.timed_shape)], threads=threads)
        (timing,) = time_runs([prepared], warmup=warmup, repeats=repeats)
        rows[key] = {"min": timing.minimum, "p25": timing.p25}
    return rows


def write_network(space: SearchSpace, architecture: Architecture, folder: Path) -> Path:
    """Write a network with random weights as it would be exported, and return the file.

    Quantised weights are packed; see :class:`supernets.lowbit.LowBitOnnxFormat`.
    """
    module = materialise(space, architecture).eval()
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, InputQuantizer):
                child.scale.fill_(4 / child.high)
    layers = max_abs_layers(module, space.bitwidths(architecture))
    form = LowBitOnnxFormat(layers) if layers else OnnxFormat()
    form.require()
    inputs = tuple(torch.rand_like(x) if x.is_floating_point() else x for x in space.inputs(architecture, 2))
    path = folder / f"{architecture.arch_id}.onnx"
    form.write(Subject(module, inputs), path, {})
    return path


def make_latency_table(
    space: SearchSpace,
    path: str | Path,
    *,
    networks: int = 20,
    samples: int = 100,
    threads: int = 1,
    seed: int = 0,
    lock: str | None = None,
    warmup: int = 10,
    repeats: int = 100,
) -> AffineFit:
    """Measure the operators of a space and whole networks with ONNX Runtime, and write the table.

    Args:
        space: the search space.
        path: of the table, replaced where it exists.
        networks: whole networks to fit to, 20 or more for a fit that can be relied upon.
        samples: random architectures whose operators are measured beside those of the networks.
        threads: intra-operator threads.
        seed: of the random architectures.
        lock: path of the lock file of measurements; ``None`` for the one that all latencies of this user share.
        warmup: runs before measuring.
        repeats: measured runs of each.

    Raises:
        ValueError: fewer than two networks.
        ModuleNotFoundError: ONNX Runtime is not installed.
    """
    if networks < 2:
        raise ValueError(f"a latency table needs at least 2 networks to fit to, got {networks}")
    OnnxFormat().require()
    generator = torch.Generator().manual_seed(derive_seed(seed, "latency table"))
    ends = [space.smallest(), space.largest()]
    fitted = list(dict.fromkeys([*ends, *(space.sample(generator) for _ in range(networks))]))[:networks]
    seen = [*fitted, *(space.sample(generator) for _ in range(samples))]
    found = {layer.key: layer for architecture in seen for layer in operators(space, architecture)}
    settings = {"threads": threads, "warmup": warmup, "repeats": repeats}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = [write_network(space, architecture, folder) for architecture in fitted]
        stack.enter_context(exclusively(lock))
        rows = _timed(found, **settings)
        whole: list[Timing] = []
        for architecture, file in zip(fitted, files, strict=True):
            prepared = prepare(file, space.inputs(architecture, 1), threads=threads)
            whole += time_runs([prepared], warmup=warmup, repeats=repeats)
    totals = [math.fsum(rows[layer.key]["min"] for layer in operators(space, a)) for a in fitted]
    fit = affine_fit(totals, [timing.minimum for timing in whole])
    table = {
        "version": _VERSION,
        "machine": fingerprint(threads),
        "space": space.digest,
        "fit": asdict(fit),
        "operators": rows,
        "networks": [
            {"architecture": dict(architecture), "operators": total, "min": timing.minimum, "p25": timing.p25}
            for architecture, total, timing in zip(fitted, totals, whole, strict=True)
        ],
    }
    replace_file(Path(path), _spelt(table))
    return fit
