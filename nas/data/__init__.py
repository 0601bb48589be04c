"""Data modules: images and text in memory, with fixed splits and a seeded order."""

from nas.data.digits import DigitsData
from nas.data.images import ImageData
from nas.data.loader import EpochLoader
from nas.data.module import ImageDataModule, Splits
from nas.data.tensors import Augmentation, EpochOrder, ImageSplit, Standardization, TensorLoader
from nas.data.text import TextData, TextSplits

__all__ = [
    "Augmentation",
    "DigitsData",
    "EpochLoader",
    "EpochOrder",
    "ImageData",
    "ImageDataModule",
    "ImageSplit",
    "Splits",
    "Standardization",
    "TensorLoader",
    "TextData",
    "TextSplits",
]
