"""Supernets: weight sources, sampling rules, tasks, and the subnetworks that come out of them."""

from supernets.calibration import UncalibratedError, calibrate, calibration_batches, uncalibrated
from supernets.card import card, weights_version
from supernets.export import Exported, ExportError, export
from supernets.kernels import KernelTransform
from supernets.persistence import CheckpointError, CheckpointMismatchError, load, read_card, save, trusted
from supernets.rules import SamplingRule, SandwichRule, Slot, UniformRule
from supernets.schedules import ConstantEnding, Cosine
from supernets.supernet import Supernet
from supernets.tasks import Classification, Task
from supernets.weights import SharedWeights, WeightSource

__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "Classification",
    "ConstantEnding",
    "Cosine",
    "ExportError",
    "Exported",
    "KernelTransform",
    "SamplingRule",
    "SandwichRule",
    "SharedWeights",
    "Slot",
    "Supernet",
    "Task",
    "UncalibratedError",
    "UniformRule",
    "WeightSource",
    "calibrate",
    "calibration_batches",
    "card",
    "export",
    "load",
    "read_card",
    "save",
    "trusted",
    "uncalibrated",
    "weights_version",
]
