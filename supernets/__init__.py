"""Supernets: weight sources, sampling rules, tasks, and the subnetworks that come out of them."""

from supernets.attentive import AttentiveRule, parameters_of
from supernets.calibration import UncalibratedError, calibrate, calibration_batches, uncalibrated
from supernets.card import card, weights_version
from supernets.distillation import KL, AlphaDivergence, Distillation, SoftTargets
from supernets.export import Exported, ExportError, export
from supernets.growth import Ensemble, Member, grow, member_of
from supernets.kernels import KernelTransform
from supernets.mixture import MixtureWeights
from supernets.persistence import CheckpointError, CheckpointMismatchError, load, load_weights, read_card, save, trusted
from supernets.places import GrowthError
from supernets.progressive import ProgressiveRule, ShrinkingStage
from supernets.rules import SamplingRule, SandwichRule, Score, Slot, UniformRule
from supernets.schedules import ConstantEnding, Cosine
from supernets.sorting import importance, sort_channels
from supernets.supernet import Supernet
from supernets.tasks import Classification, LanguageModelling, SpeakerVerification, Task, Translation
from supernets.templates import TemplateWeights
from supernets.weights import SharedWeights, WeightSource

__all__ = [
    "KL",
    "AlphaDivergence",
    "AttentiveRule",
    "CheckpointError",
    "CheckpointMismatchError",
    "Classification",
    "ConstantEnding",
    "Cosine",
    "Distillation",
    "Ensemble",
    "ExportError",
    "Exported",
    "GrowthError",
    "KernelTransform",
    "LanguageModelling",
    "Member",
    "MixtureWeights",
    "ProgressiveRule",
    "SamplingRule",
    "SandwichRule",
    "Score",
    "SharedWeights",
    "ShrinkingStage",
    "Slot",
    "SoftTargets",
    "SpeakerVerification",
    "Supernet",
    "Task",
    "TemplateWeights",
    "Translation",
    "UncalibratedError",
    "UniformRule",
    "WeightSource",
    "calibrate",
    "calibration_batches",
    "card",
    "export",
    "grow",
    "importance",
    "load",
    "load_weights",
    "member_of",
    "parameters_of",
    "read_card",
    "save",
    "sort_channels",
    "trusted",
    "uncalibrated",
    "weights_version",
]
