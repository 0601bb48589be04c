"""What a file format of an exported module does, and the trace that several of them begin with."""

import contextlib
import functools
import importlib.util
import inspect
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from supernets.open_dims import open_dims

__all__ = ["Format", "Loaded", "Subject", "quiet", "require_onnx", "tidy", "traced"]


@dataclass(frozen=True)
class Loaded:
    """What was read back from a file.

    Attributes:
        call: runs the model that the file holds, positional tensors in, its outputs as they come.
        parameters: number of trainable values in the file, tied ones once; ``None`` where the file merges them.
    """

    call: Callable[..., Any]
    parameters: int | None


@final
class Subject:
    """What is exported: a module with example inputs, and its trace, which all formats that need one share.

    Args:
        module: in evaluation mode, on the CPU.
        inputs: example inputs with at least two examples; dimension 0 of each is the batch.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module = module
        self.inputs = inputs

    @functools.cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The trace, made when it is first asked for; not to be changed."""
        return traced(self.module, self.inputs)


class Format(ABC):
    """Writes one module to one file and reads it back.

    Attributes:
        name: as users spell it.
        filename: of the file in the export folder.
        usage: lines of Python that load the file without this project.
        tolerance: largest difference from the module's outputs, as a part of the largest output (or of 1).
    """

    name: ClassVar[str]
    filename: ClassVar[str]
    usage: ClassVar[tuple[str, ...]]
    tolerance: float = 1e-5

    @abstractmethod
    def require(self) -> None:
        """Check that the libraries the format needs are installed.

        Raises:
            ModuleNotFoundError: one is missing; the message says how to get it.
        """

    @abstractmethod
    def write(self, subject: Subject, path: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the module and return what the manifest should say of the file beside the usual.

        Args:
            subject: what to write.
            path: file to write.
            metadata: JSON values to keep in the file where the format has a place for them.
        """

    @abstractmethod
    def read(self, module: nn.Module, path: Path) -> Loaded:
        """Read the file at ``path``; ``module`` gives names only, never values."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what tracing says about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def traced(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Return the traced module, its batch size left open and without the source paths of this machine."""
    dims = open_dims(module, inputs)
    named = {name: torch.export.Dim(name) for each in dims for name in each.values()}
    shapes: tuple[Any, ...] = tuple({dim: named[name] for dim, name in each.items()} for each in dims)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    plain = kinds.index(Parameter.VAR_POSITIONAL) if Parameter.VAR_POSITIONAL in kinds else len(shapes)
    if plain < len(shapes):  # what ``*inputs`` takes is one argument to the tracer
        shapes = (*shapes[:plain], shapes[plain:])
    program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def require_onnx(format: str) -> None:
    """Check for onnx, onnxscript and onnxruntime.

    Raises:
        ModuleNotFoundError: one is missing; the message says how to get it.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the {format} format needs {', '.join(missing)}, which is not installed; "
            "run `pip install 'weightloom[onnx]'`"
        )


def tidy(graph: Any) -> None:
    """Remove, in place, the exporter's notes and the biases of nothing that it computes for layers without one.

    The notes are most of a small file, and runtimes fold batch norm only into convolutions whose bias is stored.
    """
    for node in list(graph):
        node.metadata_props.clear()
        if node.op_type == "Conv" and len(node.inputs) == 3 and _is_zero(node.inputs[2]):
            node.resize_inputs(2)
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)


def _is_zero(value: Any) -> bool:
    """Return whether a value is a constant zero, cast and expanded."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Expand", "CastLike", "Cast"):
        value = node.inputs[0]
        node = None if value is None else value.producer()
    constant = None if node is None or node.op_type != "Constant" else node.attributes.get("value")
    return constant is not None and not constant.as_tensor().numpy().any()
