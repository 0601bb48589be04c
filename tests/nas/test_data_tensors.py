import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nas.data import Augmentation, EpochOrder, ImageSplit, Standardization, TensorLoader
from nas.data.splits import stratified_split


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**62),
)
def test_a_stratified_split_partitions_in_proportion(labels: Tensor, fraction: float, seed: int) -> None:
    count = round(fraction * len(labels))
    rest, taken = stratified_split(labels, count, seed=seed)
    assert len(taken) == count
    assert sorted([*rest.tolist(), *taken.tolist()]) == list(range(len(labels)))
    sizes = torch.bincount(labels)
    shares = torch.bincount(labels[taken], minlength=len(sizes))
    assert ((shares - sizes.double() * count / len(labels)).abs() < 1).all()


def test_a_split_is_a_function_of_its_seed() -> None:
    labels = torch.arange(100) % 4
    first, again, other = (stratified_split(labels, 20, seed=seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_split_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 3 examples, all there are, got 4"):
        stratified_split(torch.tensor([0, 1, 1]), 4, seed=0)


def test_standardization_equals_the_float_statistics() -> None:
    images = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8)
    images[:, 2] = 7
    floats = images.double().transpose(0, 1).flatten(1)
    found = Standardization.of(images)
    assert found.mean == pytest.approx(floats.mean(1).tolist())
    assert found.std == pytest.approx([*floats[:2].std(1, correction=0).tolist(), 1.0])
    mapped = found(images)
    assert mapped.dtype == torch.float32
    torch.testing.assert_close(mapped.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def is_crop(image: Tensor, original: Tensor, padding: int) -> bool:
    padded = torch.nn.functional.pad(original, (padding,) * 4)
    height, width = original.shape[1:]
    return any(
        torch.equal(image, padded[:, top : top + height, left : left + width])
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    )


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (1, False), (2, True)])
def test_augmented_images_are_shifted_or_mirrored_originals(padding: int, flip: bool) -> None:
    images = torch.randint(1, 256, (40, 2, 5, 4), dtype=torch.uint8)
    augmented = Augmentation(crop_padding=padding, flip=flip)(images, torch.Generator().manual_seed(3))
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    plain = [is_crop(new, old, padding) for new, old in zip(augmented, images, strict=True)]
    mirrored = [is_crop(new, old.flip(2), padding) for new, old in zip(augmented, images, strict=True)]
    assert all(a or b for a, b in zip(plain, mirrored, strict=True))
    assert any(plain)
    assert any(mirrored) == flip
    assert not torch.equal(augmented, images)


@given(
    size=st.integers(0, 40),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_see_disjoint_shares(size: int, world_size: int, shuffle: bool, epoch: int) -> None:
    shares = []
    for rank in range(world_size):
        order = EpochOrder(size, shuffle=shuffle, seed=5, rank=rank, world_size=world_size)
        order.set_epoch(epoch)
        shares.append(order.indices().tolist())
        assert len(shares[-1]) == len(order)
    seen = [index for share in shares for index in share]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(size))
    if shuffle:
        assert {len(share) for share in shares} == {size // world_size}
    else:
        assert sorted(seen) == list(range(size))


def loader(*, seed: int = 0, batch_size: int = 4, drop_last: bool = True, augment: bool = True) -> TensorLoader:
    split = ImageSplit(images=torch.arange(22 * 9, dtype=torch.uint8).view(22, 1, 3, 3), labels=torch.arange(22))
    return TensorLoader(
        split,
        order=EpochOrder(22, shuffle=True, seed=seed),
        batch_size=batch_size,
        standardization=Standardization(mean=(0.0,), std=(1.0,)),
        augmentation=Augmentation(crop_padding=1) if augment else None,
        drop_last=drop_last,
    )


def batches(source: TensorLoader, epoch: int) -> list[tuple[Tensor, Tensor]]:
    source.sampler.set_epoch(epoch)
    return list(source)


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for left, right in zip(first, second, strict=True) for a, b in zip(left, right, strict=True)
    )


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    third = batches(loader(), 3)
    torch.manual_seed(2)
    used = loader()
    batches(used, 0)
    assert equal(batches(used, 3), third)
    assert not equal(batches(used, 4), third)
    assert not equal(batches(loader(seed=1), 3), third)


def test_the_augmentation_of_an_image_changes_with_the_epoch_and_the_rank() -> None:
    images = torch.randint(1, 256, (1, 1, 9, 9), dtype=torch.uint8).expand(64, -1, -1, -1)
    split = ImageSplit(images=images, labels=torch.zeros(64, dtype=torch.int64))

    def first(*, epoch: int, rank: int) -> Tensor:
        order = EpochOrder(64, shuffle=True, rank=rank, world_size=2)
        plain = Standardization(mean=(0.0,), std=(1.0,))
        augmentation = Augmentation(crop_padding=4)
        source = TensorLoader(split, order=order, batch_size=32, standardization=plain, augmentation=augmentation)
        return batches(source, epoch)[0][0]

    assert torch.equal(first(epoch=1, rank=0), first(epoch=1, rank=0))
    assert not torch.equal(first(epoch=1, rank=0), first(epoch=2, rank=0))
    assert not torch.equal(first(epoch=1, rank=0), first(epoch=1, rank=1))


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4] * 5), (False, [4] * 5 + [2])])
def test_a_pass_holds_each_example_at_most_once(drop_last: bool, sizes: list[int]) -> None:
    source = loader(drop_last=drop_last, augment=False)
    seen = batches(source, 0)
    assert [len(labels) for _, labels in seen] == sizes
    assert len(source) == len(sizes)
    labels = torch.cat([labels for _, labels in seen])
    assert len(labels.unique()) == sum(sizes)
    assert torch.equal(torch.cat([images for images, _ in seen]), source.split.images[labels].float())


def test_the_epoch_may_be_set_after_the_iterator_is_made() -> None:
    source = loader()
    iterator = iter(source)
    source.sampler.set_epoch(2)
    assert equal(list(iterator), batches(loader(), 2))


def test_a_loader_resumes_inside_an_epoch() -> None:
    source = loader()
    source.sampler.set_epoch(2)
    iterator = iter(source)
    for _ in range(2):
        next(iterator)
    resumed = loader()
    resumed.load_state_dict(source.state_dict())
    assert equal(batches(resumed, 2), batches(loader(), 2)[2:])
    assert equal(batches(resumed, 3), batches(loader(), 3))


def test_a_state_of_a_finished_epoch_leaves_the_next_one_whole() -> None:
    source = loader()
    batches(source, 2)
    resumed = loader()
    resumed.load_state_dict(source.state_dict())
    assert equal(batches(resumed, 3), batches(loader(), 3))
