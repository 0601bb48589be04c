"""Exporting one subnetwork as files that need nothing of this project."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernets.calibration import uncalibrated
from supernets.deployment import QuantizedLayer
from supernets.format import Subject
from supernets.formats import Format, file_format
from supernets.open_dims import described, open_dims, resized

__all__ = ["MANIFEST", "ExportError", "Exported", "answers", "export"]

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


class ExportError(ValueError):
    """A module cannot be exported as asked; nothing has been written."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folder: holds the files and the manifest.
        files: format -> path.
        parity: format -> largest absolute difference between outputs of the file and of the reference.
        parameters: trainable values, tied ones once; equal in every file.
        manifest: content of ``manifest.json``.
    """

    folder: Path
    files: Mapping[str, Path]
    parity: Mapping[str, float]
    parameters: int
    manifest: Mapping[str, Any]


def export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    folder: str | Path,
    *,
    formats: Sequence[str] = ("safetensors", "pt2"),
    manifest: Mapping[str, Any],
    reference: Callable[..., Any] | None = None,
    quantized: Mapping[str, QuantizedLayer] | None = None,
    real_only: bool = False,
    allow_uncalibrated: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write ``module`` to ``folder`` in every format asked, each read back from disk and compared.

    Each file is run on ``inputs`` and on random inputs of another batch size; the largest absolute difference to
    ``reference`` is kept in the manifest, and one above 1e-5 of the largest output (or of 1) is an error. In
    ``onnx-lowbit``, whose products round their inputs to 8 bits, 0.1 is (0.5 with inputs of fewer bits), and the graph
    is checked without that rounding too. The folder appears complete or not at all. Equal modules and manifests give
    equal bytes in ``model.safetensors``.

    Args:
        module: an extracted subnetwork: in evaluation mode, on the CPU, owning its tensors, calibrated.
        inputs: example inputs; dimension 0 of each is the batch.
        folder: to be created, or empty, or an earlier export with ``overwrite``.
        formats: of ``"safetensors"``, ``"pt2"``, ``"onnx"`` and ``"onnx-lowbit"``.
        manifest: JSON values to record, e.g. architecture and versions; the same for equal requests.
        reference: what the outputs must equal, e.g. the functional call of the supernet; ``module`` by default.
        quantized: module name -> integers of its weight, which ``onnx-lowbit`` packs
            (:func:`supernets.deployment.quantized_layers`).
        real_only: refuse ``onnx-lowbit`` where some bits are stored only or simulated.
        allow_uncalibrated: export although batch-norm statistics were never computed.
        overwrite: replace an earlier export in ``folder``.

    Returns:
        The files, their parity and the manifest.

    Raises:
        ExportError: the module is not fit for export, a format cannot hold it or differs from the reference, or the
            folder is taken or cannot be written.
        ModuleNotFoundError: an optional library is missing.
    """
    target = Path(folder)
    chosen = _formats(formats, quantized, real_only=real_only)
    _check_module(module, allow_uncalibrated=allow_uncalibrated)
    probes = _probes(module, inputs)
    expected = [_run(reference or module, probe) for probe in probes]
    if not all(bool(tensor.isfinite().all()) for outputs in expected for tensor in outputs):
        raise ExportError("the module must give finite outputs on its example inputs, got nan or inf; has it trained?")
    record = _record(module, inputs, manifest)
    _check_folder(target, overwrite=overwrite)
    draft = target.absolute().parent / f".{target.absolute().name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        draft.mkdir(parents=True)
        files, parity = {}, {}
        subject = Subject(module, probes[-1])
        for form in chosen:
            path = draft / form.filename
            parity[form.name], facts = _write(form, subject, path, record=record, probes=probes, expected=expected)
            files[form.filename] = {
                "format": form.name,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "bytes": path.stat().st_size,
                "parity": parity[form.name],
                "load": list(form.usage),
                **facts,
            }
        record |= {"files": files, "versions": {"torch": torch.__version__}}
        (draft / MANIFEST).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _publish(draft, target)
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror or error}; choose a writable folder") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    paths = {form.name: target / form.filename for form in chosen}
    return Exported(target, paths, parity, record["parameters"], record)


def answers(
    reference: Callable[..., Any], module: nn.Module, inputs: tuple[Tensor, ...]
) -> list[tuple[tuple[Tensor, ...], list[Tensor]]]:
    """Return all (inputs, outputs) of ``reference`` that an export of ``module`` compares with; equal in every process.

    For an export in a process that does not have the reference.

    Raises:
        ExportError: the inputs have no common batch dimension.
    """
    return [(probe, _run(reference, probe)) for probe in _probes(module, inputs)]


def _formats(names: Sequence[str], quantized: Mapping[str, QuantizedLayer] | None, *, real_only: bool) -> list[Format]:
    if isinstance(names, str) or not names:
        raise ExportError(f"formats must be a list of at least one format, got {names!r}")
    try:
        chosen = [file_format(name, quantized, real_only=real_only) for name in dict.fromkeys(names)]
    except ValueError as error:
        raise ExportError(str(error)) from error
    for form in chosen:
        form.require()
    return chosen


def _check_module(module: nn.Module, *, allow_uncalibrated: bool) -> None:
    if any(child.training for child in module.modules()):
        raise ExportError("the module must be in evaluation mode; call module.eval() first")
    foreign: list[str] = []
    views: list[str] = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.device.type != "cpu":
            foreign.append(f"{name} ({tensor.device})")
        elif tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
            views.append(name)
    if foreign:
        raise ExportError(f"the module must be on the CPU, but these tensors are not: {foreign}; call module.cpu()")
    if views:
        raise ExportError(
            f"the module must own its tensors, but these are views of larger ones: {views}; "
            "use extract instead of bind, which shares storage with the supernet"
        )
    unknown = uncalibrated(module)
    if unknown and not allow_uncalibrated:
        raise ExportError(
            f"batch norm must be calibrated before export, but the statistics of {unknown} were never computed; "
            "calibrate with training data, or say allow_uncalibrated=True"
        )


def _probes(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the inputs as given, and others of a larger batch: random numbers, or rows again where integers."""
    sizes: dict[str, set[int]] = {}
    for tensor, dims in zip(inputs, open_dims(module, inputs), strict=True):
        for dim, name in dims.items():
            sizes.setdefault(name, set()).add(tensor.shape[dim] if tensor.ndim > dim else 0)
    if not sizes or any(len(found) != 1 or 0 in found for found in sizes.values()):
        raise ExportError(
            "inputs must be at least one tensor, all with the same non-empty batch dimension first, got shapes "
            f"{[tuple(tensor.shape) for tensor in inputs]}"
        )
    return inputs, resized(module, inputs)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)


def _run(call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.detach() for tensor in _tensors(call(*(tensor.clone() for tensor in inputs)))]


def _record(module: nn.Module, inputs: tuple[Tensor, ...], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the manifest that is the same for equal requests."""
    kind = type(module)
    own = {
        "format_version": FORMAT_VERSION,
        "module": f"{kind.__module__}.{kind.__qualname__}",
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "inputs": [
            {"shape": shape, "dtype": str(tensor.dtype).removeprefix("torch.")}
            for tensor, shape in zip(inputs, described(module, inputs), strict=True)
        ],
    }
    clash = sorted((own.keys() | {"files", "versions"}) & manifest.keys())
    if clash:
        raise ExportError(f"manifest must not use the keys {clash}, which the export writes itself; rename them")
    try:
        merged: dict[str, Any] = json.loads(json.dumps({**manifest, **own}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ExportError(f"manifest must hold finite JSON values only: {error}") from error
    return merged


def _check_folder(target: Path, *, overwrite: bool) -> None:
    try:
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error.strerror}; choose a writable folder") from error
    if not target.is_dir():
        raise ExportError(f"the output must be a folder, but {target} is a file; choose another name")
    if not overwrite:
        raise ExportError(f"{target} is not empty; choose another folder, or say overwrite=True to replace an export")
    if not (target / MANIFEST).is_file():
        raise ExportError(
            f"{target} holds no earlier export ({MANIFEST} is missing) and is kept; choose another folder"
        )


def _write(
    form: Format,
    subject: Subject,
    path: Path,
    *,
    record: Mapping[str, Any],
    probes: Sequence[tuple[Tensor, ...]],
    expected: Sequence[Sequence[Tensor]],
) -> tuple[float, Mapping[str, Any]]:
    """Write one file, read it back, and return how far its outputs are from ``expected``, and what was said of it."""
    try:
        facts = form.write(subject, path, record)
        loaded = form.read(subject.module, path)
        outputs = [_run(loaded.call, probe) for probe in probes]
    except OSError:
        raise
    except Exception as error:  # tracers raise whatever the user's forward makes them raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"{record['module']} cannot be exported as {form.name}: {reason}; leave {form.name!r} out of formats, or "
            "make forward traceable for any batch size"
        ) from error
    if loaded.parameters not in (None, record["parameters"]):
        raise ExportError(
            f"{form.filename} must hold the module's {record['parameters']} parameters, but holds {loaded.parameters}; "
            "are some created or frozen inside forward?"
        )
    worst = 0.0
    for wanted, given in zip(expected, outputs, strict=True):
        if [t.shape for t in wanted] != [t.shape for t in given]:
            raise ExportError(
                f"{form.filename} must give outputs of shapes {[tuple(t.shape) for t in wanted]}, got "
                f"{[tuple(t.shape) for t in given]}"
            )
        for left, right in zip(wanted, given, strict=True):
            difference = (left.double() - right.double()).abs().max().item() if left.numel() else 0.0
            bound = form.tolerance * max(1.0, left.abs().max().item() if left.numel() else 0.0)
            if not difference <= bound:
                raise ExportError(
                    f"{form.filename} must give the outputs of the reference within {bound:.1e}, but differs by "
                    f"{difference:.1e}"
                )
            worst = max(worst, difference)
    return worst, facts


def _publish(draft: Path, target: Path) -> None:
    """Put the finished folder in place of ``target``; an earlier export stays until the new one is there."""
    if not target.exists() or not any(target.iterdir()):
        os.replace(draft, target)
        return
    old = draft.with_suffix(".old")
    os.replace(target, old)
    try:
        os.replace(draft, target)
    except OSError:
        os.replace(old, target)
        raise
    shutil.rmtree(old)
