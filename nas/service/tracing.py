"""Tracing in a process of its own.

While ``torch.export`` traces, it changes the forward pass of every module in its process: calls of other threads fail.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from nas.service.problems import RefusedError
from search_spaces import Architecture, Candidate, SearchSpace, construct, fill, skeleton
from supernets import trusted
from supernets.export import ExportError, export
from trials import ProcessExecutor

__all__ = ["Order", "Tracer", "refusal", "trace"]

_FILES = 50  # what tracing leaves in memory ends with its process


@dataclass(frozen=True)
class Order:
    """A file to be made.

    Attributes:
        space: description of the space.
        trust: packages that it may name.
        architecture: what is built.
        state: its calibrated tensors, as ``torch.save`` writes them.
        form: one of :data:`supernets.FORMATS`.
        folder: see :func:`supernets.export`.
        manifest: see :func:`supernets.export`.
    """

    space: Mapping[str, Any]
    trust: tuple[str, ...]
    architecture: Mapping[str, Candidate]
    state: bytes
    form: str
    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        architecture: Architecture,
        *,
        space: Mapping[str, Any],
        trust: tuple[str, ...],
        form: str,
        folder: Path,
        manifest: Mapping[str, Any],
    ) -> "Order":
        """Return the order of a module that was extracted and calibrated."""
        buffer = BytesIO()
        torch.save(module.state_dict(keep_vars=True), buffer)
        return cls(space, trust, dict(architecture), buffer.getvalue(), form, folder, manifest)


@dataclass(frozen=True)
class _Trouble:
    status: int
    error: str
    message: str
    headers: Mapping[str, str]


def refusal(error: Exception) -> RefusedError:
    """Return what a client is told when an export fails: not in this format (422), or not stored (503)."""
    if isinstance(error.__cause__, OSError):
        return RefusedError(503, "storage", str(error), headers={"Retry-After": "60"})
    return RefusedError(422, "not_exportable", str(error))


def trace(order: Order) -> _Trouble | None:
    """Write the file of an order; return why it could not be."""
    space = construct(dict(order.space), SearchSpace, trusted=trusted(order.trust))
    assert isinstance(space, SearchSpace)  # noqa: S101 - construct has checked
    architecture = space.architecture(order.architecture)
    state = torch.load(BytesIO(order.state), weights_only=True)
    module = fill(skeleton(space, architecture), state, copy=True).eval()
    inputs = space.inputs(architecture, batch_size=2)
    try:
        export(module, inputs, order.folder, formats=[order.form], manifest=order.manifest)
    except (ExportError, ModuleNotFoundError) as error:
        told = refusal(error)
        return _Trouble(told.status, told.error, told.message, told.headers)
    return None


@final
class Tracer:
    """Traces in one process, begun when it is first needed and replaced now and then. For one thread.

    Args:
        timeout: seconds that one file may take.
    """

    def __init__(self, timeout: float = 600.0) -> None:
        self.timeout = timeout
        self._executor: ProcessExecutor[Order, _Trouble | None] | None = None
        self._made = 0

    def __call__(self, order: Order) -> None:
        """Write the file of an order.

        Raises:
            RefusedError: it cannot be made (422), not be stored (503), or its process died (503).
        """
        if self._executor is None:
            self._executor = ProcessExecutor(trace, workers=1, timeout=self.timeout, threads=1)
        self._executor.submit(self._made, order)
        [completion] = self._executor.wait()
        self._made += 1
        if self._made % _FILES == 0:
            self.close()
        if completion.error is not None:
            raise RefusedError(503, "tracing", completion.error.strip().splitlines()[-1], headers={"Retry-After": "5"})
        if completion.result is not None:
            told = completion.result
            raise RefusedError(told.status, told.error, told.message, headers=told.headers)

    def close(self) -> None:
        """End the process."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None
