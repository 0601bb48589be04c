"""Image classification from Hugging Face parquet files or the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

from nas.data.module import ImageDataModule, Splits
from nas.data.source import cached_splits, folder_splits, hub_splits, parquet_files
from nas.data.splits import stratified_split
from nas.data.tensors import ImageSplit
from search_spaces import derive_seed

__all__ = ["ImageData"]


@final
class ImageData(ImageDataModule):
    """Labelled images of one size, decoded once to 8-bit tensors that are cached beside the Hugging Face cache.

    The data set needs a training and a test split. Its validation split is used if there is one; otherwise
    ``validation_fraction`` of the training images is set aside, in proportion to the classes.

    Args:
        path: folder with ``train*.parquet`` and ``test*.parquet`` as on the Hugging Face hub, absolute or relative to
            the environment variable ``NAS_DATA_DIR``. Give this or ``name``.
        name: data set on the Hugging Face hub, e.g. ``ylecun/mnist``.
        image_column: ``None`` for the only image column.
        label_column: integers counted from 0; ``None`` for the only class label column.
        size: height and width to resize to, by area averaging when shrinking; ``None`` keeps the stored size.
        channels: 1 (grey) or 3 (RGB); ``None`` takes those of the first image.
        batch_size: training examples per batch and rank; an incomplete last batch is left out.
        eval_batch_size: validation and test examples per batch.
        validation_fraction: of the training images, where the data set has no validation split.
        train_limit: train on this many images only, in proportion to the classes; ``None`` for all.
        crop_padding: pixels of padding for random crops in training, 0 for none.
        flip: random left-right flips in training.
        split_seed: of the splits.
        seed: of the training order and the augmentation.

    Raises:
        ValueError: an argument is out of range, or not exactly one of ``path`` and ``name`` is given.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        name: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        size: int | None = None,
        channels: Literal[1, 3] | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        validation_fraction: float = 0.1,
        train_limit: int | None = None,
        crop_padding: int = 0,
        flip: bool = False,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        if (path is None) == (name is None):
            raise ValueError(
                f"exactly one of data.path (a parquet folder) and data.name (a data set on the Hugging Face hub) is "
                f"required, got path={path!r} and name={name!r}"
            )
        if channels not in (None, 1, 3):
            raise ValueError(f"data.channels must be 1 (grey), 3 (RGB) or null, got {channels!r}")
        for field, value in (("size", size), ("train_limit", train_limit)):
            if value is not None and value < 1:
                raise ValueError(f"data.{field} must be at least 1 or null, got {value}")
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            validation_fraction=validation_fraction,
            crop_padding=crop_padding,
            flip=flip,
            split_seed=split_seed,
            seed=seed,
        )
        self.path = path
        self.name = name
        self.image_column = image_column
        self.label_column = label_column
        self.size = size
        self.channels = channels
        self.train_limit = train_limit
        self.save_hyperparameters(logger=False)  # a run logs its whole configuration; the supernet has a seed too

    def load(self) -> Splits:
        """Read the cached tensors, or decode the data set and cache them, then split.

        Raises:
            FileNotFoundError: the folder, its files or the data set do not exist.
            ValueError: its columns, images or labels cannot be used, or ``train_limit`` exceeds the training images.
        """
        parts = self._decoded()
        train, test = parts["train"], parts["test"]
        validation = parts.get("validation")
        if validation is None:
            count = round(self.validation_fraction * len(train))
            rest, taken = stratified_split(train.labels, count, seed=derive_seed(self.split_seed, "validation"))
            train, validation = train.take(rest), train.take(taken)
        if self.train_limit is not None:
            if self.train_limit > len(train):
                raise ValueError(
                    f"data.train_limit must be at most {len(train)}, the training images left beside the validation "
                    f"split, got {self.train_limit}"
                )
            seed = derive_seed(self.split_seed, "train_limit")
            train = train.take(stratified_split(train.labels, self.train_limit, seed=seed)[1])
        num_classes = 1 + max(int(part.labels.max()) for part in parts.values())
        return Splits(train=train, validation=validation, test=test, num_classes=num_classes)

    def _decoded(self) -> dict[str, ImageSplit]:
        options = {
            "image_column": self.image_column,
            "label_column": self.label_column,
            "size": self.size,
            "channels": self.channels,
        }
        if self.path is not None:
            files = parquet_files(self.path)
            stats = [(name, Path(name).stat()) for names in files.values() for name in names]
            identity: Any = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
            return cached_splits({"files": identity, **options}, lambda: _decode(folder_splits(files), options))
        splits = hub_splits(str(self.name))
        identity = {split: [file["filename"] for file in data.cache_files] for split, data in splits.items()}
        return cached_splits({"hub": identity, **options}, lambda: _decode(splits, options))


def _decode(splits: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, ImageSplit]:
    from nas.data.decoding import decode

    wanted = [split for split in ("train", "validation", "test") if split in splits]
    decoded = {split: decode(splits[split], **options) for split in wanted}
    shapes = {split: tuple(part.images.shape[1:]) for split, part in decoded.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"data.size and data.channels are required: the splits differ in (channels, height, width), {shapes}; "
            "set them to bring all images to one shape"
        )
    return decoded
