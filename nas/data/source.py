"""Where the splits of a data set come from: a parquet folder or the Hugging Face hub, decoded once, cached."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nas.data.tensors import ImageSplit

__all__ = ["cached_splits", "cached_tensors", "folder_splits", "hub_splits", "parquet_files"]

DATA_DIR_VARIABLE = "NAS_DATA_DIR"


def parquet_files(path: str) -> dict[str, list[str]]:
    """Find ``train*.parquet``, ``test*.parquet`` and, if any, ``validation*.parquet`` in a folder or its ``data/``.

    Args:
        path: of the folder, absolute or relative to the environment variable ``NAS_DATA_DIR`` or, without it, to the
            working directory.

    Returns:
        Split name to sorted absolute file names.

    Raises:
        FileNotFoundError: there is no such folder, or it has no training or no test file.
    """
    root = os.environ.get(DATA_DIR_VARIABLE, "")
    folder = (Path(root) / Path(path).expanduser()).absolute()
    if not folder.is_dir():
        where = f"{DATA_DIR_VARIABLE} is {root!r}" if root else f"{DATA_DIR_VARIABLE} is not set"
        raise FileNotFoundError(
            f"data.path must be a folder with train*.parquet and test*.parquet, got {path!r}, and {folder} is no "
            f"folder ({where}); give an absolute path or set {DATA_DIR_VARIABLE} to the folder that holds it"
        )
    found: dict[str, list[str]] = {}
    for split in ("train", "validation", "test"):
        names = sorted(str(file) for place in (folder, folder / "data") for file in place.glob(f"{split}*.parquet"))
        if names:
            found[split] = names
    if missing := [f"{split}*.parquet" for split in ("train", "test") if split not in found]:
        raise FileNotFoundError(
            f"data.path must be a folder with train*.parquet and test*.parquet, {folder} has no "
            f"{' and no '.join(missing)}; name the files of its splits so"
        )
    return found


def folder_splits(files: Mapping[str, list[str]]) -> Mapping[str, Any]:
    """Open parquet files as streams, which leaves no second copy in the Hugging Face cache.

    Raises:
        ValueError: a file is not a whole parquet file.
    """
    import pyarrow
    from datasets import load_dataset
    from pyarrow import parquet

    for name in (name for names in files.values() for name in names):
        try:
            parquet.read_metadata(name)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"data.path: {name} cannot be read as parquet ({error}); download it again") from error
    streams: Mapping[str, Any] = load_dataset("parquet", data_files=dict(files), streaming=True)
    return streams


def hub_splits(name: str) -> Mapping[str, Any]:
    """Load a data set of the Hugging Face hub, from its cache when it is there.

    Raises:
        FileNotFoundError: it can be neither found nor downloaded.
        ValueError: it has no training or no test split.
    """
    from datasets import load_dataset

    try:
        splits: Mapping[str, Any] = load_dataset(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"data.name must be a data set of the Hugging Face hub with one configuration, {name!r} could not be "
            f"loaded: {error}; check the name and the connection, or download it and set data.path"
        ) from error
    if missing := [split for split in ("train", "test") if split not in splits]:
        raise ValueError(
            f"data.name must be a data set with the splits 'train' and 'test', {name!r} has no "
            f"{' and no '.join(map(repr, missing))}, only {sorted(splits)}"
        )
    return splits


def cached_splits(identity: Mapping[str, Any], decode: Callable[[], dict[str, ImageSplit]]) -> dict[str, ImageSplit]:
    """Return decoded images from the cache, or decode and cache them; see :func:`cached_tensors`."""

    def make() -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, split in decode().items():
            tensors |= {f"{name}.images": split.images, f"{name}.labels": split.labels}
        return tensors

    tensors = cached_tensors("images", identity, make)
    names = sorted({name.partition(".")[0] for name in tensors})
    return {name: ImageSplit(images=tensors[f"{name}.images"], labels=tensors[f"{name}.labels"]) for name in names}


def cached_tensors(kind: str, identity: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return named tensors from the cache, or make and cache them.

    The cache is a safetensors file beside the Hugging Face cache, replaced atomically; one that cannot be read is
    written again, and a cache that cannot be written costs a warning, not the run.

    Args:
        kind: what is decoded, in the plural; names the folder.
        identity: everything the tensors depend on, as JSON types.
        make: decodes.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    file = _cache_folder() / kind / f"{key}.safetensors"
    if file.is_file():
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            rank_zero_warn(f"{file} cannot be read ({error}); the {kind} are decoded and cached again")
    tensors = make()
    try:
        _write(file, tensors)
    except OSError as error:
        rank_zero_warn(
            f"decoded {kind} cannot be cached in {file.parent} ({error}); every start decodes them again unless "
            "HF_HOME names a writable folder"
        )
    return tensors


def _cache_folder() -> Path:
    home = os.environ.get("HF_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return base.expanduser() / "weightloom"


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        partial = Path(folder) / file.name
        save_file(dict(tensors), partial)
        os.replace(partial, file)
