"""The embedded default: scikit-learn's handwritten digits."""

from typing import final

import torch

from nas.data.module import ImageDataModule, Splits
from nas.data.splits import check_fraction, stratified_split
from nas.data.tensors import ImageSplit
from search_spaces import derive_seed

__all__ = ["DigitsData"]


@final
class DigitsData(ImageDataModule):
    """The 1,797 digits of 8x8 grey pixels that scikit-learn carries, split once into training, validation and test.

    Args:
        batch_size: training examples per batch and rank; an incomplete last batch is left out.
        eval_batch_size: validation and test examples per batch.
        validation_fraction: of the images that are not test images.
        test_fraction: of all images.
        crop_padding: pixels of padding for random crops in training, 0 for none.
        split_seed: of the splits.
        seed: of the training order and the augmentation.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        batch_size: int = 64,
        *,
        eval_batch_size: int = 512,
        validation_fraction: float = 0.2,
        test_fraction: float = 0.2,
        crop_padding: int = 0,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            validation_fraction=validation_fraction,
            crop_padding=crop_padding,
            flip=False,
            split_seed=split_seed,
            seed=seed,
        )
        check_fraction("test_fraction", test_fraction)
        self.test_fraction = test_fraction
        self.save_hyperparameters(logger=False)  # a run logs its whole configuration; the supernet has a seed too

    def load(self) -> Splits:
        """Read the digits from the installed scikit-learn: images (N, 1, 8, 8) of 17 grey levels, 10 classes."""
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        labels = torch.from_numpy(digits).long()
        whole = ImageSplit(images=torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8), labels=labels)
        rest, test = stratified_split(
            labels, round(self.test_fraction * len(whole)), seed=derive_seed(self.split_seed, "test")
        )
        train, validation = stratified_split(
            labels[rest], round(self.validation_fraction * len(rest)), seed=derive_seed(self.split_seed, "validation")
        )
        return Splits(
            train=whole.take(rest[train]),
            validation=whole.take(rest[validation]),
            test=whole.take(test),
            num_classes=10,
        )
