"""Data modules: image classification from memory, with fixed splits and a seeded order."""

from nas.data.digits import DigitsData
from nas.data.images import ImageData
from nas.data.module import ImageDataModule, Splits
from nas.data.tensors import Augmentation, EpochOrder, ImageSplit, Standardization, TensorLoader

__all__ = [
    "Augmentation",
    "DigitsData",
    "EpochOrder",
    "ImageData",
    "ImageDataModule",
    "ImageSplit",
    "Splits",
    "Standardization",
    "TensorLoader",
]
