"""Hypernetworks: networks that generate the weights of other networks."""

from hypernets.applying import apply, apply_many
from hypernets.base import HyperNetwork
from hypernets.card import HyperCard
from hypernets.chunked import ChunkedHyperNetwork
from hypernets.conditions import (
    ArchitectureCode,
    Bits,
    Bounded,
    Categorical,
    Examples,
    Field,
    Gaussian,
    Size,
    Unit,
)
from hypernets.continual import OutputRegularizer, importance
from hypernets.dense import DenseHyperNetwork
from hypernets.diagnostics import Diagnosis, diagnose
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
from hypernets.recurrent import RecurrentHyperNetwork
from hypernets.target import Target, TensorSpec

__all__ = [
    "ArchitectureCode",
    "Bits",
    "Bounded",
    "Categorical",
    "ChunkedHyperNetwork",
    "DenseHyperNetwork",
    "Diagnosis",
    "Examples",
    "Field",
    "Gaussian",
    "HyperCard",
    "HyperNetwork",
    "HyperNetworkFileError",
    "OutputRegularizer",
    "Parametrization",
    "RecurrentHyperNetwork",
    "Size",
    "Target",
    "TensorSpec",
    "Unit",
    "apply",
    "apply_many",
    "diagnose",
    "digest",
    "importance",
    "load",
    "read_card",
    "read_provenance",
    "save_hypernetwork",
    "save_weights",
]
