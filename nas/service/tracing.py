"""Tracing in a process of its own.

While ``torch.export`` traces, it changes the forward pass of every module in its process: calls of other threads fail.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from nas.service.problems import RefusedError
from search_spaces import Architecture, Candidate, SearchSpace, construct, fill, skeleton
from supernets import trusted
from supernets.deployment import QuantizedLayer
from supernets.export import ExportError, answers, export
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
        tensors: as ``torch.save`` writes them: calibrated, with the integers of quantised weights, and what the
            supernet answers to the probes of the export.
        form: a format of :func:`supernets.export`.
        folder: see :func:`supernets.export`.
        manifest: see :func:`supernets.export`.
    """

    space: Mapping[str, Any]
    trust: tuple[str, ...]
    architecture: Mapping[str, Candidate]
    tensors: bytes
    form: str
    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        architecture: Architecture,
        inputs: tuple[Tensor, ...],
        *,
        reference: Callable[..., Any],
        quantized: Mapping[str, QuantizedLayer],
        space: Mapping[str, Any],
        trust: tuple[str, ...],
        form: str,
        folder: Path,
        manifest: Mapping[str, Any],
    ) -> "Order":
        """Return the order of a module that was extracted and calibrated.

        Args:
            module: owns its tensors.
            architecture: of it.
            inputs: example inputs.
            reference: what the file must compute: the binding to the supernet. It stays here: its answers travel.
            quantized: module name -> integers of its weight.
            space: see :class:`Order`, as are the others.
            trust: packages.
            form: of the file.
            folder: of the export.
            manifest: of the export.
        """
        buffer = BytesIO()
        parts = {
            "state": module.state_dict(keep_vars=True),
            "inputs": inputs,
            "answers": answers(reference, module, inputs),
            "quantized": {name: vars(layer) for name, layer in quantized.items()},
        }
        torch.save(parts, buffer)
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


@final
class _Answers:
    """What another process has computed, given again for the same inputs, and for no others.

    Args:
        known: (inputs, outputs) of each.
    """

    def __init__(self, known: Sequence[tuple[tuple[Tensor, ...], Any]]) -> None:
        self._known = known

    def __call__(self, *inputs: Tensor) -> Any:
        for probe, outputs in self._known:
            if len(probe) == len(inputs) and all(map(torch.equal, probe, inputs)):
                return outputs
        raise LookupError("the supernet was not asked about the inputs that the export compares on")


def trace(order: Order) -> _Trouble | None:
    """Write the file of an order; return why it could not be."""
    space = construct(dict(order.space), SearchSpace, trusted=trusted(order.trust))
    assert isinstance(space, SearchSpace)  # noqa: S101 - construct has checked
    architecture = space.architecture(order.architecture)
    given = torch.load(BytesIO(order.tensors), weights_only=True)
    module = fill(skeleton(space, architecture), given["state"], copy=True).eval()
    try:
        export(
            module,
            given["inputs"],
            order.folder,
            formats=[order.form],
            manifest=order.manifest,
            reference=_Answers(given["answers"]),
            quantized={name: QuantizedLayer(**layer) for name, layer in given["quantized"].items()},
        )
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
        try:
            [completion] = self._executor.wait()
        except RuntimeError as error:  # its process could not even start; the next order gets another
            self.close()
            raise RefusedError(503, "tracing", str(error), headers={"Retry-After": "5"}) from error
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
