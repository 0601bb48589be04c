"""Hypernetworks: networks that generate the weights of other networks.

>>> import torch
>>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
>>> hypernet = ChunkedHyperNetwork(Target.of(module), {"strength": Bounded(0.0, 10.0)})
>>> weights = hypernet.generate({"strength": torch.tensor([0.5, 2.0, 9.0])})
>>> apply_many(module, weights, torch.randn(16, 4)).shape
torch.Size([3, 16, 2])
"""

from hypernets.applying import apply, apply_linearized, apply_many
from hypernets.base import HyperNetwork
from hypernets.best_response import BestResponseHyperNetwork, Hyperparameters, Tunable
from hypernets.card import HyperCard
from hypernets.chunked import ChunkedHyperNetwork
from hypernets.conditions import (
    ArchitectureCode,
    Bits,
    Bounded,
    Categorical,
    Examples,
    Gaussian,
    Real,
    Size,
    Unit,
)
from hypernets.continual import OutputRegularizer, importance
from hypernets.dense import DenseHyperNetwork
from hypernets.diagnostics import Diagnosis, diagnose
from hypernets.diffusion import DiffusionHyperNetwork
from hypernets.fields import Field
from hypernets.implicit import ImplicitHyperNetwork
from hypernets.labelled import LabelledExamples
from hypernets.ordering import path_length, shortest_path
from hypernets.parametrization import Parametrization
from hypernets.persistence import (
    HyperNetworkFileError,
    digest,
    load,
    read_card,
    read_provenance,
    save_hypernetwork,
    save_weights,
)
from hypernets.recalibration import recalibrate
from hypernets.recurrent import RecurrentHyperNetwork
from hypernets.resampling import interpolation, resample
from hypernets.target import Target, TensorSpec

__all__ = [
    "ArchitectureCode",
    "BestResponseHyperNetwork",
    "Bits",
    "Bounded",
    "Categorical",
    "ChunkedHyperNetwork",
    "DenseHyperNetwork",
    "Diagnosis",
    "DiffusionHyperNetwork",
    "Examples",
    "Field",
    "Gaussian",
    "HyperCard",
    "HyperNetwork",
    "HyperNetworkFileError",
    "Hyperparameters",
    "ImplicitHyperNetwork",
    "LabelledExamples",
    "OutputRegularizer",
    "Parametrization",
    "Real",
    "RecurrentHyperNetwork",
    "Size",
    "Target",
    "TensorSpec",
    "Tunable",
    "Unit",
    "apply",
    "apply_linearized",
    "apply_many",
    "diagnose",
    "digest",
    "importance",
    "interpolation",
    "load",
    "path_length",
    "read_card",
    "read_provenance",
    "recalibrate",
    "resample",
    "save_hypernetwork",
    "save_weights",
    "shortest_path",
]
