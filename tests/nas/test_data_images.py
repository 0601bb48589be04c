from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nas.data import ImageData
from search_spaces import construct, describe

CLASSES = ["a", "b", "c"]


def pictures(count: int, *, offset: int, shape: tuple[int, ...] = (6, 6)) -> list[np.ndarray]:
    """Noise whose first pixel is the class, ``position % 3``, and whose second tells the pictures apart."""
    generator = np.random.default_rng(offset)
    made = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
    made.reshape(count, -1)[:, 0] = np.arange(count) % 3
    made.reshape(count, -1)[:, 1] = np.arange(count) + offset
    return list(made)


def write(
    file: Path, images: list[np.ndarray], *, image: str = "image", label: str = "label", labels: list[Any] | None = None
) -> None:
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=CLASSES)}
    if labels is None:
        labels = [position % 3 for position in range(len(images))]
    else:
        features[label] = datasets.Value("int64")
    columns = {image: [Image.fromarray(pixels) for pixels in images], label: labels}
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "shapes"
    write(place / "train.parquet", pictures(60, offset=0))
    write(place / "test.parquet", pictures(15, offset=100))
    return place


def identifiers(images: Tensor) -> set[int]:
    return set(images[:, 0, 0, 1].tolist())


def test_a_folder_is_decoded_and_split(folder: Path) -> None:
    data = ImageData(str(folder), validation_fraction=0.2, batch_size=16)
    train, validation, test = data.splits.train, data.splits.validation, data.splits.test
    assert (data.num_classes, data.image_shape) == (3, (1, 6, 6))
    assert [len(train), len(validation), len(test)] == [48, 12, 15]
    assert identifiers(train.images) | identifiers(validation.images) == set(range(60))
    assert identifiers(test.images) == set(range(100, 115))
    for part in (train, validation, test):
        assert part.images.dtype == torch.uint8
        assert torch.equal(part.images[:, 0, 0, 0].long(), part.labels)
        assert len(torch.bincount(part.labels).unique()) == 1
    expected = torch.from_numpy(np.stack(pictures(15, offset=100)))[:, None]
    images, labels = next(iter(data.test_dataloader()))
    assert torch.equal(images, data.standardization(expected))
    assert torch.equal(labels, torch.arange(15) % 3)


def test_a_path_is_relative_to_the_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_DATA_DIR", str(folder.parent))
    assert len(ImageData("shapes").splits.test) == 15


def test_a_validation_file_leaves_the_training_images_whole(folder: Path) -> None:
    write(folder / "validation.parquet", pictures(9, offset=200))
    splits = ImageData(str(folder)).splits
    assert identifiers(splits.train.images) == set(range(60))
    assert identifiers(splits.validation.images) == set(range(200, 209))


def test_sharded_files_under_data_are_found(tmp_path: Path) -> None:
    for shard in range(2):
        write(tmp_path / "data" / f"train-{shard:05}-of-00002.parquet", pictures(30, offset=30 * shard))
    write(tmp_path / "data" / "test-00000-of-00001.parquet", pictures(6, offset=100))
    splits = ImageData(str(tmp_path), validation_fraction=0.5).splits
    assert identifiers(splits.train.images) | identifiers(splits.validation.images) == set(range(60))


def test_a_training_limit_keeps_the_classes_and_the_other_splits(folder: Path) -> None:
    whole, limited = ImageData(str(folder)).splits, ImageData(str(folder), train_limit=30).splits
    assert torch.bincount(limited.train.labels).tolist() == [10, 10, 10]
    assert identifiers(limited.train.images) < identifiers(whole.train.images)
    assert torch.equal(limited.validation.images, whole.validation.images)


def test_shrinking_by_a_whole_factor_is_mean_pooling(folder: Path) -> None:
    full, small = ImageData(str(folder)), ImageData(str(folder), size=3)
    pooled = torch.nn.functional.avg_pool2d(full.splits.test.images.float(), 2)
    assert small.image_shape == (1, 3, 3)
    assert (small.splits.test.images.float() - pooled).abs().max() <= 1


def test_colours_and_named_columns(tmp_path: Path) -> None:
    for split, offset in (("train", 0), ("test", 100)):
        write(
            tmp_path / f"{split}.parquet",
            pictures(12, offset=offset, shape=(4, 4, 3)),
            image="picture",
            label="kind",
            labels=[position % 2 for position in range(12)],
        )
    colour = ImageData(str(tmp_path), label_column="kind")
    expected = torch.from_numpy(np.stack(pictures(12, offset=100, shape=(4, 4, 3)))).permute(0, 3, 1, 2)
    assert torch.equal(colour.splits.test.images, expected)
    assert colour.num_classes == 2
    assert ImageData(str(tmp_path), label_column="kind", channels=1).image_shape == (1, 4, 4)


def test_decoded_images_come_from_the_cache_until_a_file_changes(
    folder: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ImageData(str(folder)).splits
    (cached,) = (clean_environment / "huggingface" / "weightloom" / "images").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("nas.data.images.folder_splits", lambda _: pytest.fail("decoded again"))
        assert torch.equal(ImageData(str(folder)).splits.train.images, first.train.images)
    write(folder / "test.parquet", pictures(9, offset=50))
    assert identifiers(ImageData(str(folder)).splits.test.images) == set(range(50, 59))
    assert sorted(cached.parent.iterdir()) != [cached]
    assert all(file.suffix == ".safetensors" for file in cached.parent.iterdir())


def test_a_damaged_cache_is_written_again(folder: Path, clean_environment: Path) -> None:
    first = ImageData(str(folder)).splits
    (cached,) = (clean_environment / "huggingface" / "weightloom" / "images").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[:100])
    with pytest.warns(UserWarning, match="cannot be read .* decoded and cached again"):
        again = ImageData(str(folder)).splits
    assert torch.equal(again.train.images, first.train.images)
    assert cached.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_a_warning(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("HF_HOME", str(blocked))
    with pytest.warns(UserWarning, match="cannot be cached .* HF_HOME names a writable folder"):
        assert len(ImageData(str(folder)).splits.test) == 15


def test_a_missing_folder_is_refused_when_the_data_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.path must be a folder .* got 'mnist'.*NAS_DATA_DIR is not set"):
        ImageData("mnist").prepare_data()
    monkeypatch.setenv("NAS_DATA_DIR", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path / 'mnist'} is no folder .*give an absolute path or set NAS"
    ):
        _ = ImageData("mnist").num_classes


def test_a_folder_without_a_test_file_is_refused(folder: Path) -> None:
    (folder / "test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"shapes has no test\*\.parquet"):
        ImageData(str(folder)).setup("fit")


def test_a_file_that_is_no_parquet_is_refused(folder: Path) -> None:
    (folder / "test.parquet").write_bytes(b"not a parquet file")
    with pytest.raises(ValueError, match=r"data\.path: .*test\.parquet.* cannot be read"):
        ImageData(str(folder)).setup("fit")


def test_an_image_that_cannot_be_decoded_is_refused(folder: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    columns = {"image": [{"bytes": b"no image", "path": None}], "label": [0]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "test.parquet")
    with pytest.raises(ValueError, match=r"data\.image_column='image' must hold encoded images.*repair the file"):
        ImageData(str(folder)).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_column": "img"}, r"data\.image_column must be one of the columns \['image', 'label'\], got 'img'"),
        ({"label_column": "digit"}, r"data\.label_column must be one of the columns .* got 'digit'"),
        (
            {"image_column": "label"},
            r"data\.image_column='label' must hold encoded images, one of the 256 from example 0",
        ),
        ({"train_limit": 55}, r"data\.train_limit must be at most 54.* got 55"),
    ],
)
def test_what_the_data_set_does_not_hold_is_refused(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(str(folder), **arguments).setup("fit")


def test_an_unmarked_label_column_must_be_named(folder: Path) -> None:
    write(folder / "train.parquet", pictures(6, offset=0), labels=[0, 1] * 3)
    write(folder / "test.parquet", pictures(6, offset=0), labels=[0, 1] * 3)
    with pytest.raises(ValueError, match=r"data\.label_column is required: 0 columns are marked as ClassLabel"):
        ImageData(str(folder)).setup("fit")


def test_labels_must_be_counted_from_zero(folder: Path) -> None:
    write(folder / "train.parquet", pictures(3, offset=0), labels=[0, -1, 1])
    with pytest.raises(ValueError, match=r"data\.label_column='label' must hold class indices .* got -1 for example 1"):
        ImageData(str(folder), label_column="label").setup("fit")


def test_images_of_several_sizes_need_a_size(folder: Path) -> None:
    mixed = [*pictures(15, offset=0), *pictures(15, offset=20, shape=(8, 8))]
    write(folder / "train.parquet", mixed)
    with pytest.raises(ValueError, match=r"data\.size is required: image 15 has \(height, width\) \(8, 8\)"):
        ImageData(str(folder)).setup("fit")
    assert ImageData(str(folder), size=4).image_shape == (1, 4, 4)


def test_splits_of_several_shapes_need_a_size(folder: Path) -> None:
    write(folder / "test.parquet", pictures(15, offset=20, shape=(8, 8)))
    with pytest.raises(ValueError, match=r"data\.size and data\.channels are required: the splits differ"):
        ImageData(str(folder)).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of data.path .* and data.name .* path=None and name=None"),
        ({"path": "a", "name": "b"}, "exactly one of data.path .* path='a' and name='b'"),
        ({"path": "a", "channels": 2}, "data.channels must be 1 .* got 2"),
        ({"path": "a", "size": 0}, "data.size must be at least 1 or null, got 0"),
        ({"path": "a", "train_limit": 0}, "data.train_limit must be at least 1 or null, got 0"),
        ({"path": "a", "batch_size": 0}, "data.batch_size must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**arguments)


def test_a_data_set_that_is_neither_on_the_hub_nor_cached_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.name must be a data set of the Hugging Face hub .*'no/such'"):
        ImageData(name="no/such").setup("fit")


def test_a_data_set_is_loaded_by_name(folder: Path) -> None:
    by_path, by_name = ImageData(str(folder)).splits, ImageData(name=str(folder)).splits
    for part, same in ((by_path.train, by_name.train), (by_path.test, by_name.test)):
        assert torch.equal(part.images, same.images)
        assert torch.equal(part.labels, same.labels)


def test_a_data_set_without_a_test_split_is_refused(folder: Path) -> None:
    (folder / "test.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"data\.name must be a data set with the splits .* has no 'test', only \['train'"
    ):
        ImageData(name=str(folder)).setup("fit")


def test_the_module_is_rebuilt_from_its_description(folder: Path) -> None:
    data = ImageData(str(folder), size=4, crop_padding=1, flip=True, train_limit=20)
    rebuilt = construct(describe(data))
    assert isinstance(rebuilt, ImageData)
    assert dict(rebuilt.hparams) == dict(data.hparams)
    assert torch.equal(rebuilt.splits.train.images, data.splits.train.images)
