"""Hypernetworks and generated weights on disk: safetensors with a JSON card inside, never pickled."""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hypernets.base import Condition, HyperNetwork
from hypernets.best_response import BestResponseHyperNetwork
from hypernets.chunked import ChunkedHyperNetwork
from hypernets.conditions import field_from_json
from hypernets.dense import DenseHyperNetwork
from hypernets.diffusion.generator import DiffusionHyperNetwork
from hypernets.implicit import ImplicitHyperNetwork
from hypernets.parametrization import Parametrization
from hypernets.recurrent import RecurrentHyperNetwork
from hypernets.target import Target

__all__ = [
    "FORMAT_VERSION",
    "HyperNetworkFileError",
    "digest",
    "load",
    "read_card",
    "read_provenance",
    "save_hypernetwork",
    "save_weights",
    "written",
]

FORMAT_VERSION = 1
_BUILT_IN: tuple[type[HyperNetwork], ...] = (
    DenseHyperNetwork,
    ChunkedHyperNetwork,
    RecurrentHyperNetwork,
    BestResponseHyperNetwork,
    DiffusionHyperNetwork,
    ImplicitHyperNetwork,
)
_CARD, _PROVENANCE = "hypernetwork", "generated"
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class HyperNetworkFileError(ValueError):
    """A file is no hypernetwork or no generated weights, is damaged, or belongs to another version or class."""


def _description(hypernet: HyperNetwork) -> dict[str, Any]:
    """What it takes to construct the same hypernetwork, with other weights."""
    return {
        "class": f"{type(hypernet).__module__.partition('.')[0]}.{type(hypernet).__qualname__}",
        "target": hypernet.target.to_json(),
        "conditions": {name: field.to_json() for name, field in hypernet.conditions.items()},
        "parametrization": hypernet.parametrization.to_json(),
        "settings": hypernet.settings(),
    }


def digest(hypernet: HyperNetwork) -> str:
    """Return a digest of what a hypernetwork is and of its weights; equal in every process."""
    found = hashlib.sha256(json.dumps(_description(hypernet), sort_keys=True).encode())
    for name, value in sorted(hypernet.state_dict().items()):
        found.update(name.encode())
        found.update(_bytes(value))
    return found.hexdigest()[:32]


def save_hypernetwork(hypernet: HyperNetwork, path: str | Path) -> Path:
    """Write one safetensors file with the weights and, as metadata, a JSON card; all or nothing.

    Returns:
        ``path``.

    Raises:
        TypeError: a constructor argument of a class of your own cannot be written as JSON.
    """
    card = {
        "format_version": FORMAT_VERSION,
        **_description(hypernet),
        "card": hypernet.card.to_json(),
        "fingerprint": hypernet.target.fingerprint,
        "digest": digest(hypernet),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in hypernet.state_dict().items()}
    with _replacing(Path(path)) as file:
        file.write(save(tensors, metadata={_CARD: json.dumps(card, sort_keys=True)}))
    return Path(path)


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a saved hypernetwork without reading its weights.

    Raises:
        HyperNetworkFileError: it cannot be read.
    """
    return _metadata(Path(path), _CARD, "a saved hypernetwork; write one with save_hypernetwork")


def load(path: str | Path, *, classes: Sequence[type] = ()) -> HyperNetwork:
    """Return a saved hypernetwork, on the CPU and in evaluation mode.

    Nothing is unpickled or imported: the file can only name a generator of this package or one of ``classes``.

    Args:
        path: written by :func:`save_hypernetwork`.
        classes: generators of your own, and codecs and priors of your own.

    Raises:
        HyperNetworkFileError: the file is damaged, from another version, or of a class not given.
    """
    card = read_card(path)
    generators = (*_BUILT_IN, *(cls for cls in classes if issubclass(cls, HyperNetwork)))
    known = {f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}": cls for cls in generators}
    if card.get("class") not in known:
        raise HyperNetworkFileError(
            f"{path} holds a {card.get('class')}, known are {list(known)}; pass its class to load(..., classes=[...])"
        )
    try:
        target = Target.from_json(card["target"])
        with torch.random.fork_rng(devices=[]):
            hypernet = known[card["class"]].build(
                target,
                {name: field_from_json(field) for name, field in card["conditions"].items()},
                Parametrization(**card["parametrization"]),
                card["settings"],
                parts=classes,
            )
        hypernet.load_state_dict(load_file(path))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise HyperNetworkFileError(f"{path} does not describe a {card['class']} of this version ({error})") from error
    if (target.fingerprint, digest(hypernet)) != (card["fingerprint"], card["digest"]):
        raise HyperNetworkFileError(f"{path} is damaged or was edited: its digest is not that of its contents")
    return hypernet.eval()


def save_weights(
    hypernet: HyperNetwork,
    condition: Condition,
    path: str | Path,
    *,
    seed: int = 0,
    evaluation: Mapping[str, float] | None = None,
    max_bytes: int = 1 << 24,
) -> dict[str, Any]:
    """Generate one weight set straight into a safetensors file, tensor by tensor, with where it comes from.

    The file holds the names and shapes of the module (no K), and takes memory for ``max_bytes`` and the largest tensor
    only. Equal requests give equal bytes.

    Args:
        hypernet: the generator.
        condition: one condition.
        path: written all or nothing.
        seed: of stochastic generators.
        evaluation: measurements to keep beside the weights.
        max_bytes: see ``HyperNetwork.stream``.

    Returns:
        The provenance: ``hypernetwork`` digest, ``target`` fingerprint, ``condition``, ``seed``, ``evaluation``.

    Raises:
        ValueError: K is not 1, or the condition is wrong.
    """
    values = hypernet.encoder.read(condition, like=next(hypernet.parameters()))
    if any(len(value) != 1 for value in values.values()):
        raise ValueError(f"one file holds one weight set, got K = {max(len(value) for value in values.values())}")
    provenance: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "hypernetwork": digest(hypernet),
        "target": hypernet.target.fingerprint,
        "condition": {name: written(value.detach()[0]) for name, value in values.items()},
        "seed": seed,
        "evaluation": dict(evaluation or {}),
    }
    header: dict[str, Any] = {"__metadata__": {_PROVENANCE: json.dumps(provenance, sort_keys=True)}}
    offset = 0
    for spec in hypernet.target:
        size = spec.numel * spec.torch_dtype.itemsize
        header[spec.name] = {
            "dtype": _DTYPES[spec.torch_dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with _replacing(Path(path)) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in hypernet.stream(values, max_bytes=max_bytes, generator=generator):
            file.write(_bytes(tensor[0]))
    return provenance


def written(value: Tensor) -> Any:
    """Return a value of a condition, without K, as JSON; a data set by its shape and digest."""
    if value.dim() < 2:
        return value.tolist()
    return {"shape": list(value.shape), "sha256": hashlib.sha256(_bytes(value)).hexdigest()}


def read_provenance(path: str | Path) -> dict[str, Any]:
    """Return where generated weights come from.

    Raises:
        HyperNetworkFileError: it cannot be read.
    """
    return _metadata(Path(path), _PROVENANCE, "generated weights; write them with save_weights")


def _metadata(path: Path, key: str, what: str) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(key)
    except (OSError, SafetensorError) as error:
        raise HyperNetworkFileError(f"{path} cannot be read ({error})") from error
    if text is None:
        raise HyperNetworkFileError(f"{path} is not {what}")
    found: dict[str, Any] = json.loads(text)
    if found.get("format_version") != FORMAT_VERSION:
        raise HyperNetworkFileError(
            f"{path} has format version {found.get('format_version')}, this package reads {FORMAT_VERSION}"
        )
    return found


def _bytes(tensor: Tensor) -> memoryview:
    values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(values)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when all is written, and vanishes if something fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
