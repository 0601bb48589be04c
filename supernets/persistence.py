"""Supernets on disk: self-describing, never unpickled."""

import json
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from search_spaces import SearchSpace, construct
from supernets.card import FORMAT_VERSION, card
from supernets.rules import SamplingRule
from supernets.supernet import Supernet
from supernets.tasks import Task
from supernets.weights import WeightSource

__all__ = ["CheckpointError", "CheckpointMismatchError", "load", "load_weights", "read_card", "save", "trusted"]

_WEIGHTS, _CARD = "weights.safetensors", "supernet.json"


class CheckpointError(ValueError):
    """A file is not a checkpoint of a supernet, or is damaged."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint belongs to another space or was written by an incompatible version."""


def save(supernet: Supernet, folder: str | Path, *, data: Any = None) -> Path:
    """Write ``weights.safetensors`` and ``supernet.json`` into a new ``folder``, all or nothing.

    Args:
        supernet: what is saved.
        folder: replaced if it holds a saved supernet already.
        data: see :func:`card`.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: ``folder`` exists and holds something else.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / _CARD).exists():
        raise FileExistsError(f"{folder} exists and holds no supernet; give an empty or new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        tensors = {name: value.detach().cpu().contiguous() for name, value in _unique(supernet.source).items()}
        save_file(tensors, staging / _WEIGHTS)
        (staging / _CARD).write_text(
            json.dumps(
                card(supernet.tree(), supernet.space, supernet.source, rule=supernet.rule, data=data),
                indent=2,
                sort_keys=True,
            )
            + "\n"
        )
        retired = staging.with_name(f"{staging.name}-old")
        if folder.exists():
            folder.replace(retired)
        try:
            staging.replace(folder)
        except BaseException:
            if retired.exists():
                retired.replace(folder)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _unique(source: WeightSource) -> dict[str, Tensor]:
    """The ``state_dict`` without second names of tied tensors, none sharing memory with another."""
    first: dict[int, str] = {}
    state = source.state_dict(keep_vars=True)
    for name, value in state.items():
        first.setdefault(id(value), name)
    return {name: state[name].detach().clone() for name in first.values()}


def _read(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Card and weights of a folder written by :func:`save` or of a Lightning checkpoint."""
    if path.is_dir():
        try:
            return json.loads((path / _CARD).read_text()), load_file(path / _WEIGHTS)
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise CheckpointError(f"{path} is not a complete saved supernet ({error})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on the pickle protocol of what is no checkpoint at all
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"checkpoint {path} does not exist; give the path that `nas fit` printed, or a models:/ address"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read, it is damaged or truncated ({error})") from error
    if not isinstance(checkpoint, dict) or "weightloom" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of a supernet; train one with `nas fit`")
    prefix = "source."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return checkpoint["weightloom"], weights


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a saved supernet or checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _read(Path(path))[0]


def trusted(extra: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the packages from which a file may name classes and functions: ours, ``torch.nn`` and ``extra``."""
    return ("search_spaces", "hypernets", "supernets", "trials", "nas", "torch.nn", "torch._C._nn", *extra)


def _read_checked(path: Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Card and weights, of a format that this version knows."""
    description, weights = _read(path)
    if description["format_version"] != FORMAT_VERSION:
        raise CheckpointMismatchError(
            f"{path} has format version {description['format_version']}, this version reads {FORMAT_VERSION}; "
            "use the version that wrote it"
        )
    return description, weights


def load_weights(supernet: Supernet, path: str | Path) -> None:
    """Fill ``supernet`` with the weights of a saved one of the same space and weight source, all or none.

    Raises:
        CheckpointError: unreadable or damaged.
        CheckpointMismatchError: of another space, of a newer format, or the weights do not fit.
    """
    path = Path(path)
    description, weights = _read_checked(path)
    if description["space_digest"] != supernet.space.digest:
        raise CheckpointMismatchError(
            f"{path} was trained on space {description['space_digest']}, but the configuration gives "
            f"{supernet.space.digest}; use the YAML it was trained with, or `nas grow --into` for a wider one"
        )
    saved = description["model"]["source"]["class_path"].rpartition(".")[2]
    _fill(supernet.source, weights, path, f"{type(supernet.source).__name__}; they were saved by {saved}")


def load(path: str | Path, *, space: SearchSpace | None = None, trust: Sequence[str] = ()) -> Supernet:
    """Build the supernet described in a folder written by :func:`save` or in a Lightning checkpoint.

    Args:
        path: folder or ``.ckpt`` file.
        space: what the caller expects, and used where the checkpoint is of the same space; ``None`` accepts any.
        trust: packages of the user's own whose classes and functions the file may name, e.g. a model builder's.

    Raises:
        CheckpointError: unreadable, damaged, or naming code that is not trusted.
        CheckpointMismatchError: of another space than ``space``, of a newer format, or the weights do not fit.
    """
    path = Path(path)
    description, weights = _read_checked(path)
    if space is not None and description["space_digest"] != space.digest:
        raise CheckpointMismatchError(
            f"{path} was trained on space {description['space_digest']}, but the configuration gives "
            f"{space.digest}; use the YAML it was trained with, or leave `model` out to take the checkpoint's"
        )
    tree, names = description["model"], trusted(trust)

    def part(key: str, kind: type, **extra: Any) -> Any:
        try:
            return construct(tree[key], kind, trusted=names, **extra)
        except ValueError as error:
            raise CheckpointError(f"{key} of {path}: {error}") from error

    supernet = Supernet(
        part("space", SearchSpace) if space is None else space,
        part("task", Task),
        source=lambda given: part("source", WeightSource, space=given),
        rule=part("rule", SamplingRule),
        calibration=tree["calibration"],
        seed=tree["seed"],
    )
    _fill(supernet.source, weights, path, "the supernet that its card describes")
    try:
        supernet.rule.restore(description.get("learned", {}))
    except ValueError as error:
        raise CheckpointMismatchError(f"{path}: {error}") from error
    return supernet.eval()


def _fill(source: WeightSource, weights: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load ``weights`` where all of them fit; tied tensors are stored once, and buffers may be left out."""
    own = source.state_dict()
    problems = [f"{name}: missing" for name, _ in source.named_parameters() if name not in weights]
    for name, tensor in weights.items():
        if name not in own:
            problems.append(f"{name}: unexpected")
        elif tensor.shape != own[name].shape:
            problems.append(f"{name}: {tuple(tensor.shape)} instead of {tuple(own[name].shape)}")
    if problems:
        raise CheckpointMismatchError(f"weights in {path} do not fit {what}: {'; '.join(problems)}")
    source.load_state_dict(dict(weights), strict=False)
