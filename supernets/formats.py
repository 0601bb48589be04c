"""File formats of an exported module: how each is written and read back."""

import contextlib
import copy
import importlib.util
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["FORMATS", "Format", "Loaded", "OnnxFormat", "Pt2Format", "SafetensorsFormat", "file_format"]

FORMATS = ("safetensors", "pt2", "onnx")


@dataclass(frozen=True)
class Loaded:
    """What was read back from a file.

    Attributes:
        call: runs the model that the file holds, positional tensors in, its outputs as they come.
        parameters: number of trainable values in the file, tied ones once.
    """

    call: Callable[..., Any]
    parameters: int


class Format(ABC):
    """Writes one module to one file and reads it back.

    Attributes:
        name: as users spell it.
        filename: of the file in the export folder.
        usage: lines of Python that load the file without this project.
    """

    name: ClassVar[str]
    filename: ClassVar[str]
    usage: ClassVar[tuple[str, ...]]

    @abstractmethod
    def require(self) -> None:
        """Check that the libraries the format needs are installed.

        Raises:
            ModuleNotFoundError: one is missing; the message says how to get it.
        """

    @abstractmethod
    def write(self, module: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any]) -> None:
        """Write ``module``.

        Args:
            module: in evaluation mode, on the CPU.
            inputs: example inputs with at least two examples; dimension 0 of each is the batch.
            path: file to write.
            metadata: JSON values to keep in the file where the format has a place for them.
        """

    @abstractmethod
    def read(self, module: nn.Module, path: Path) -> Loaded:
        """Read the file at ``path``; ``module`` gives names only, never values."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _trace(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Return the traced module, its batch size left open and without the source paths of this machine."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


class SafetensorsFormat(Format):
    """The ``state_dict``, for a module that the reader builds.

    The metadata are one key holding canonical JSON: with two keys or more the library writes them in an order that
    differs between processes, and equal modules would give unequal files. Tied tensors are stored once, under their
    first name.
    """

    name = "safetensors"
    filename = "model.safetensors"
    usage = (
        "from safetensors.torch import load_model",
        "load_model(model, 'model.safetensors')  # model: the class named by 'module', built for this architecture",
    )

    def require(self) -> None:
        """Do nothing: the library is always there."""

    def write(self, module: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the tensors of ``module``; see :class:`Format`."""
        from safetensors.torch import save

        del inputs
        first = {id(tensor): name for name, tensor in reversed(module.state_dict(keep_vars=True).items())}
        state = module.state_dict()
        tensors = {name: state[name].detach().contiguous() for name in first.values()}
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        path.write_bytes(save(tensors, metadata={"weightloom": text}))

    def read(self, module: nn.Module, path: Path) -> Loaded:
        """Return a copy of ``module`` that holds the values of the file; see :class:`Format`."""
        from safetensors.torch import load_file, load_model

        twin = copy.deepcopy(module)
        with torch.no_grad():
            for tensor in twin.state_dict(keep_vars=True).values():
                tensor.zero_()
        load_model(twin, path)
        stored = load_file(path)
        names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        return Loaded(twin, sum(tensor.numel() for name, tensor in stored.items() if name in names))


class Pt2Format(Format):
    """The traced program of ``torch.export``: runs wherever PyTorch does, without the class it came from."""

    name = "pt2"
    filename = "model.pt2"
    usage = (
        "import torch",
        "model = torch.export.load('model.pt2').module()",
        "outputs = model(inputs)",
    )

    def require(self) -> None:
        """Do nothing: the exporter is part of PyTorch."""

    def write(self, module: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any]) -> None:
        """Trace ``module`` with any batch size; see :class:`Format`."""
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        with _quiet():
            torch.export.save(_trace(module, inputs), path, extra_files={"weightloom.json": text})

    def read(self, module: nn.Module, path: Path) -> Loaded:
        """Load the program; see :class:`Format`."""
        del module
        with _quiet():
            program = torch.export.load(path)
            distinct = {parameter.data_ptr(): parameter for parameter in program.parameters()}  # tied: one storage
            return Loaded(program.module(), sum(parameter.numel() for parameter in distinct.values()))


class OnnxFormat(Format):
    """ONNX from PyTorch's own exporter, one file, any batch size.

    The graph is left unoptimised, so that every parameter keeps its name and count; runtimes fold batch norm into
    convolutions themselves when they load it.
    """

    name = "onnx"
    filename = "model.onnx"
    usage = (
        "import onnxruntime",
        "session = onnxruntime.InferenceSession('model.onnx')",
        "outputs = session.run(None, {session.get_inputs()[0].name: inputs})  # NumPy arrays",
    )

    def require(self) -> None:
        """Check for onnx, onnxscript and onnxruntime; see :class:`Format`."""
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ModuleNotFoundError(
                f"the onnx format needs {', '.join(missing)}, which is not installed; "
                "run `pip install 'weightloom[onnx]'`"
            )

    def write(self, module: nn.Module, inputs: tuple[Tensor, ...], path: Path, metadata: Mapping[str, Any]) -> None:
        """Translate the traced module; see :class:`Format`."""
        with _quiet():
            program = torch.onnx.export(_trace(module, inputs), inputs, dynamo=True, optimize=False, verbose=False)
            assert program is not None  # noqa: S101 - only the legacy exporter returns nothing
            program.model.metadata_props["weightloom"] = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
            program.save(str(path))

    def read(self, module: nn.Module, path: Path) -> Loaded:
        """Open the file in onnxruntime; see :class:`Format`."""
        import onnx
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        arguments = [argument.name for argument in session.get_inputs()]

        def call(*inputs: Tensor) -> list[Tensor]:
            arrays = (tensor.numpy() for tensor in inputs)
            return [torch.from_numpy(a) for a in session.run(None, dict(zip(arguments, arrays, strict=True)))]

        shapes = {t.name: tuple(t.dims) for t in onnx.load(str(path)).graph.initializer}
        names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        return Loaded(call, sum(torch.Size(shape).numel() for name, shape in shapes.items() if name in names))


def file_format(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        ValueError: there is none.
    """
    match name:
        case "safetensors":
            return SafetensorsFormat()
        case "pt2":
            return Pt2Format()
        case "onnx":
            return OnnxFormat()
        case _:
            raise ValueError(f"format must be one of {FORMATS}, got {name!r}")
