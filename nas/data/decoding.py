"""Labelled images of a Hugging Face data set, decoded to tensors."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Image, IterableDataset
from PIL.Image import Image as Picture
from PIL.Image import Resampling
from torch import Tensor

from nas.data.tensors import ImageSplit

__all__ = ["decode", "pick_column"]

_MODES = {1: "L", 3: "RGB"}


def pick_column(given: str | None, *, field: str, kind: type, data: Dataset | IterableDataset) -> str:
    """Return the column named by the user or, without a name, the only column of a feature type.

    Args:
        given: the value of ``field``.
        field: constructor argument the user sets, for messages.
        kind: feature type that marks a column, e.g. ``datasets.Image``.
        data: data set with known features.

    Raises:
        ValueError: no such column, or not exactly one of the type.
    """
    features: dict[str, Any] = data.features or {}
    if given is not None:
        if given not in features:
            raise ValueError(f"data.{field} must be one of the columns {sorted(features)}, got {given!r}")
        return given
    found: list[str] = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise ValueError(
            f"data.{field} is required: {len(found)} columns are marked as {kind.__name__}, not one; "
            f"the columns are {sorted(features)}"
        )
    return found[0]


def decode(
    data: Dataset | IterableDataset,
    *,
    image_column: str | None,
    label_column: str | None,
    size: int | None,
    channels: int | None,
) -> ImageSplit:
    """Decode every image once.

    Args:
        data: one split.
        image_column: ``None`` for the only image column.
        label_column: ``None`` for the only class label column.
        size: height and width to resize to, by area averaging when shrinking (mean pooling for whole factors, to one
            grey level) and bilinearly otherwise; ``None`` keeps the stored size.
        channels: 1 or 3; ``None`` takes those of the first image.

    Returns:
        Images (N, channels, H, W) uint8 and labels (N,).

    Raises:
        ValueError: a column is missing, there are no images, one cannot be decoded, they differ in size, or labels are
            not counted from 0.
    """
    images = pick_column(image_column, field="image_column", kind=Image, data=data)
    labels = pick_column(label_column, field="label_column", kind=ClassLabel, data=data)
    pixels: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    classes: list[Any] = []
    for batch in _batches(data, images):
        for picture in batch[images]:
            channels = channels or (1 if picture.mode in ("1", "L", "LA", "I", "I;16") else 3)
            pixels.append(_pixels(picture, size=size, channels=channels))
            if pixels[-1].shape != pixels[0].shape:
                raise ValueError(
                    f"data.size is required: image {len(pixels) - 1} has (height, width) {pixels[-1].shape[:2]}, "
                    f"the first one {pixels[0].shape[:2]}; set it to resize them all"
                )
        classes.extend(batch[labels])
    if not pixels:
        raise ValueError("data: a split holds no images; give one that does")
    stacked = torch.from_numpy(np.stack(pixels))
    return ImageSplit(images=stacked.permute(0, 3, 1, 2).contiguous(), labels=_class_indices(classes, column=labels))


def _batches(data: Dataset | IterableDataset, column: str) -> Iterator[dict[str, Any]]:
    done = 0
    try:
        for batch in data.cast_column(column, Image()).iter(batch_size=256):
            yield batch
            done += len(batch[column])
    except (NotImplementedError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"data.image_column={column!r} must hold encoded images, one of the 256 from example {done} on cannot be "
            f"decoded ({error}); choose another column or repair the file"
        ) from error


def _pixels(picture: Picture, *, size: int | None, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    picture = picture.convert(_MODES[channels])
    if size is not None and picture.size != (size, size):
        shrinks = size <= min(picture.size)
        picture = picture.resize((size, size), Resampling.BOX if shrinks else Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, channels)


def _class_indices(classes: Sequence[Any], *, column: str) -> Tensor:
    for position, label in enumerate(classes):
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise ValueError(
                f"data.label_column={column!r} must hold class indices counted from 0, got {label!r} for example "
                f"{position}; a missing label reads None or -1, drop such rows or choose another column"
            )
    return torch.tensor(classes, dtype=torch.int64)
