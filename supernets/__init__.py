"""Supernets: weight sources, sampling rules, tasks, and the subnetworks that come out of them."""

from supernets.attentive import AttentiveRule
from supernets.calibration import UncalibratedError, calibrate, calibration_batches, uncalibrated
from supernets.card import card, weights_version
from supernets.confidence import Bins, Decisions, brier_score, fit_temperature, negative_log_likelihood, reliability
from supernets.differentiable import DifferentiableRule
from supernets.diffused import DiffusionWeights
from supernets.distillation import KL, AlphaDivergence, Distillation, SoftTargets
from supernets.expected import ExpectedCost, ExpectedParameters
from supernets.expected_bits import ExpectedBufferBytes, ExpectedWeightBytes
from supernets.export import Exported, ExportError, export
from supernets.generated import GeneratedWeights
from supernets.growth import Ensemble, Member, grow, grow_mixed, member_of
from supernets.implicit import ImplicitWeights
from supernets.kernels import KernelTransform
from supernets.lpgnas import LPGNASRule
from supernets.mixed_growth import MixedNetwork
from supernets.mixture import MixtureWeights
from supernets.persistence import CheckpointError, CheckpointMismatchError, load, load_weights, read_card, save, trusted
from supernets.places import GrowthError
from supernets.post_training import fit_scales
from supernets.progressive import ProgressiveRule, ShrinkingStage
from supernets.quantized import QuantizedWeights
from supernets.quantizers import LSQ, SBS, Binary, Codes, FixedPoint, StatsQ, Ternary, WeightQuantizer
from supernets.relaxation import Relaxation, RelaxationError
from supernets.rules import SamplingRule, SandwichRule, Score, SingleRule, Slot, UniformRule
from supernets.samplers import AlphaSampler, DrNASSampler, GDASSampler, GumbelSampler, SoftmaxSampler, SPOSSampler
from supernets.sbs import SBSRule
from supernets.schedules import ConstantEnding, Cosine, Restarts
from supernets.sorting import importance, sort_channels
from supernets.supernet import Supernet
from supernets.tasks import (
    Classification,
    LanguageModelling,
    NodeClassification,
    SpeakerVerification,
    Task,
    Translation,
)
from supernets.templates import TemplateWeights
from supernets.weights import SharedWeights, WeightSource

__all__ = [
    "KL",
    "LSQ",
    "SBS",
    "AlphaDivergence",
    "AlphaSampler",
    "AttentiveRule",
    "Binary",
    "Bins",
    "CheckpointError",
    "CheckpointMismatchError",
    "Classification",
    "Codes",
    "ConstantEnding",
    "Cosine",
    "Decisions",
    "DifferentiableRule",
    "DiffusionWeights",
    "Distillation",
    "DrNASSampler",
    "Ensemble",
    "ExpectedBufferBytes",
    "ExpectedCost",
    "ExpectedParameters",
    "ExpectedWeightBytes",
    "ExportError",
    "Exported",
    "FixedPoint",
    "GDASSampler",
    "GeneratedWeights",
    "GrowthError",
    "GumbelSampler",
    "ImplicitWeights",
    "KernelTransform",
    "LPGNASRule",
    "LanguageModelling",
    "Member",
    "MixedNetwork",
    "MixtureWeights",
    "NodeClassification",
    "ProgressiveRule",
    "QuantizedWeights",
    "Relaxation",
    "RelaxationError",
    "Restarts",
    "SBSRule",
    "SPOSSampler",
    "SamplingRule",
    "SandwichRule",
    "Score",
    "SharedWeights",
    "ShrinkingStage",
    "SingleRule",
    "Slot",
    "SoftTargets",
    "SoftmaxSampler",
    "SpeakerVerification",
    "StatsQ",
    "Supernet",
    "Task",
    "TemplateWeights",
    "Ternary",
    "Translation",
    "UncalibratedError",
    "UniformRule",
    "WeightQuantizer",
    "WeightSource",
    "brier_score",
    "calibrate",
    "calibration_batches",
    "card",
    "export",
    "fit_scales",
    "fit_temperature",
    "grow",
    "grow_mixed",
    "importance",
    "load",
    "load_weights",
    "member_of",
    "negative_log_likelihood",
    "read_card",
    "reliability",
    "save",
    "sort_channels",
    "trusted",
    "uncalibrated",
    "weights_version",
]
