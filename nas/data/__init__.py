"""Data modules: images, speech and text in memory, with fixed splits and a seeded order."""

from nas.data.digits import DigitsData
from nas.data.images import ImageData
from nas.data.loader import EpochLoader
from nas.data.module import ImageDataModule, Splits
from nas.data.planetoid import GraphSplits, PlanetoidData
from nas.data.speech import SpeechData
from nas.data.tensors import Augmentation, EpochOrder, ImageSplit, Standardization, TensorLoader
from nas.data.text import TextData, TextSplits
from nas.data.translation import Pairs, TranslationData

__all__ = [
    "Augmentation",
    "DigitsData",
    "EpochLoader",
    "EpochOrder",
    "GraphSplits",
    "ImageData",
    "ImageDataModule",
    "ImageSplit",
    "Pairs",
    "PlanetoidData",
    "SpeechData",
    "Splits",
    "Standardization",
    "TensorLoader",
    "TextData",
    "TextSplits",
    "TranslationData",
]
