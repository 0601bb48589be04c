"""Model zoos on disk: one safetensors file for the networks of each task, and a JSON index."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["ModelZoo", "ZooFileError", "load_zoo", "save_index", "save_task", "tasks_in"]

FORMAT_VERSION = 1
_INDEX, _KEY = "zoo.json", "zoo"


class ZooFileError(ValueError):
    """A folder is no model zoo, is incomplete or damaged, or is another zoo than the one asked for."""


@final
@dataclass(frozen=True)
class ModelZoo:
    """Trained networks of one shape.

    Attributes:
        tensors: name -> ``(N, *shape)``.
        tasks: ``(N,)`` integers: what each was trained on.
        scores: ``(N,)``: accuracy on the validation examples of its own task.
        descriptions: of each task, by its number.
        about: what made the zoo.
    """

    tensors: Mapping[str, Tensor]
    tasks: Tensor
    scores: Tensor
    descriptions: tuple[Mapping[str, Any], ...]
    about: Mapping[str, Any]


def save_task(
    folder: str | Path, task: int, tensors: Mapping[str, Tensor], scores: Tensor, *, description: Any, request: str
) -> Path:
    """Write the networks of one task, all or nothing.

    Args:
        folder: of the zoo, made when missing.
        task: from 0.
        tensors: name -> ``(R, *shape)``.
        scores: ``(R,)``.
        description: of the task, JSON.
        request: digest of all that decides what the zoo is; a file is only taken for a part of a zoo with the same.

    Returns:
        The file.
    """
    path = Path(folder) / f"task-{task:05d}.safetensors"
    about = {
        "format_version": FORMAT_VERSION,
        "request": request,
        "task": task,
        "description": description,
        "scores": [round(score, 6) for score in scores.tolist()],
    }
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    _replace(path, save(kept, metadata={_KEY: json.dumps(about, sort_keys=True)}))
    return path


def save_index(folder: str | Path, about: Mapping[str, Any], *, count: int, request: str) -> None:
    """Write the index, all or nothing.

    Args:
        folder: of the zoo.
        about: what makes it, JSON.
        count: number of tasks when it is complete.
        request: see :func:`save_task`.
    """
    index = {"format_version": FORMAT_VERSION, "request": request, "count": count, "about": dict(about)}
    _replace(Path(folder) / _INDEX, json.dumps(index, indent=2, sort_keys=True).encode())


def tasks_in(folder: str | Path, *, request: str) -> dict[int, dict[str, Any]]:
    """Return what is known of the tasks that are finished: task -> description and scores.

    Raises:
        ZooFileError: the folder holds another zoo.
    """
    if (Path(folder) / _INDEX).exists() and _index(Path(folder))["request"] != request:
        raise ZooFileError(f"{folder} must be new, empty or the same zoo; it holds one that was made otherwise")
    found = {}
    for path in sorted(Path(folder).glob("task-*.safetensors")):
        about = _about(path)
        if about is not None and about["request"] == request:
            found[int(about["task"])] = about
    return found


def load_zoo(folder: str | Path) -> ModelZoo:
    """Return a complete zoo.

    Raises:
        ZooFileError: it is missing, incomplete or damaged.
    """
    index = _index(Path(folder))
    known = tasks_in(folder, request=index["request"])
    missing = sorted(set(range(index["count"])) - known.keys())
    if missing:
        raise ZooFileError(f"{folder} lacks {len(missing)} of {index['count']} tasks; repeat the command that made it")
    parts: list[dict[str, Tensor]] = []
    for task in range(index["count"]):
        with safe_open(Path(folder) / f"task-{task:05d}.safetensors", "pt") as file:
            parts.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
    counts = [len(known[task]["scores"]) for task in range(index["count"])]
    return ModelZoo(
        tensors={name: torch.cat([part[name] for part in parts]) for name in parts[0]},
        tasks=torch.arange(len(parts)).repeat_interleave(torch.tensor(counts)),
        scores=torch.tensor([score for task in range(len(parts)) for score in known[task]["scores"]]),
        descriptions=tuple(known[task]["description"] for task in range(len(parts))),
        about=index["about"],
    )


def _index(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ZooFileError(f"{folder} must be a model zoo, its {_INDEX} cannot be read ({error})") from error
    if found.get("format_version") != FORMAT_VERSION:
        raise ZooFileError(
            f"{folder} has format version {found.get('format_version')}, this package reads {FORMAT_VERSION}"
        )
    return found


def _about(path: Path) -> dict[str, Any] | None:
    """What a file says of itself; ``None`` where it cannot be read, so that it is made again."""
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (OSError, SafetensorError):
        return None
    found: dict[str, Any] | None = None if text is None else json.loads(text)
    return found if found and found.get("format_version") == FORMAT_VERSION else None


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
