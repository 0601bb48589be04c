"""File formats of an exported module: how each is written and read back."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces import InputQuantizer
from supernets.deployment import QuantizedLayer
from supernets.format import Format, Loaded, Subject, quiet, require_onnx, tidy
from supernets.lowbit import LowBitOnnxFormat

__all__ = [
    "FORMATS",
    "QUANTIZED_FORMATS",
    "Format",
    "Loaded",
    "OnnxFormat",
    "Pt2Format",
    "SafetensorsFormat",
    "file_format",
    "filename_of",
]

FORMATS = ("safetensors", "pt2", "onnx")
QUANTIZED_FORMATS = ("onnx-lowbit",)


class SafetensorsFormat(Format):
    """The ``state_dict``, for a module that the reader builds.

    The metadata are one key holding canonical JSON: with two keys or more the library writes them in an order that
    differs between processes, and equal modules would give unequal files. Tied tensors are stored once, under their
    first name. Where inputs of layers are rounded, the manifest has the range of integers of each and says how a
    plain build rounds them.
    """

    name = "safetensors"
    filename = "model.safetensors"
    usage = (
        "from safetensors.torch import load_model",
        "load_model(model, 'model.safetensors')  # model: the class named by 'module', built for this architecture",
    )
    usage_of_rounded = (
        "from safetensors.torch import load_file, load_model",
        "load_model(model, 'model.safetensors', strict=False)  # model: as 'module' says; it does not round inputs yet",
        "steps = load_file('model.safetensors')",
        "def rounds(name, low, high):",
        "    s = steps[name + '.input_quantizer.scale']",
        "    return lambda layer, x: ((x[0] / s).round().clip(low, high) * s,)",
        "for name, (low, high) in rounded_inputs.items():  # of this file, in the manifest",
        "    model.get_submodule(name).register_forward_pre_hook(rounds(name, low, high))",
    )

    def require(self) -> None:
        """Do nothing: the library is always there."""

    def write(self, subject: Subject, path: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the tensors of the module; see :class:`Format`."""
        from safetensors.torch import save

        first = {id(tensor): name for name, tensor in reversed(subject.module.state_dict(keep_vars=True).items())}
        state = subject.module.state_dict()
        tensors = {name: state[name].detach().contiguous() for name in first.values()}
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        path.write_bytes(save(tensors, metadata={"weightloom": text}))
        rounded = {
            name.removesuffix(".input_quantizer"): [child.low, child.high]
            for name, child in subject.module.named_modules()
            if isinstance(child, InputQuantizer)
        }
        return {"rounded_inputs": rounded, "load": list(self.usage_of_rounded)} if rounded else {}

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

    def write(self, subject: Subject, path: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Trace the module with any batch size; see :class:`Format`."""
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
        with quiet():
            torch.export.save(subject.program, path, extra_files={"weightloom.json": text})
        return {}

    def read(self, module: nn.Module, path: Path) -> Loaded:
        """Load the program; see :class:`Format`."""
        del module
        with quiet():
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
        require_onnx(self.name)

    def write(self, subject: Subject, path: Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translate the traced module; see :class:`Format`."""
        with quiet():
            program = torch.onnx.export(subject.program, subject.inputs, dynamo=True, optimize=False, verbose=False)
            assert program is not None  # noqa: S101 - only the legacy exporter returns nothing
            tidy(program.model.graph)
            program.model.metadata_props["weightloom"] = json.dumps(metadata, sort_keys=True, separators=(",", ":"))
            program.save(str(path))
        return {}

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


def filename_of(name: str) -> str:
    """Return what the file of the format called ``name`` is called in an export.

    >>> filename_of("onnx-lowbit")
    'model.lowbit.onnx'
    """
    kinds: tuple[type[Format], ...] = (SafetensorsFormat, Pt2Format, OnnxFormat, LowBitOnnxFormat)
    return {kind.name: kind.filename for kind in kinds}[name]


def file_format(name: str, quantized: Mapping[str, QuantizedLayer] | None = None, *, real_only: bool = False) -> Format:
    """Return the format called ``name``.

    Args:
        name: one of ``FORMATS``, or of ``QUANTIZED_FORMATS``.
        quantized: module name -> integers of the quantised weights, which the latter pack.
        real_only: whether they refuse a network in which some bits are not real.

    Raises:
        ValueError: there is none, or nothing is quantised that it could pack.
    """
    match name:
        case "safetensors":
            return SafetensorsFormat()
        case "pt2":
            return Pt2Format()
        case "onnx":
            return OnnxFormat()
        case "onnx-lowbit":
            return LowBitOnnxFormat(quantized or {}, real_only=real_only)
        case _:
            raise ValueError(f"format must be one of {(*FORMATS, *QUANTIZED_FORMATS)}, got {name!r}")
