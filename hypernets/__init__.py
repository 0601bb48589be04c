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
from hypernets.dense import DenseHyperNetwork
from hypernets.parametrization import Parametrization
from hypernets.recurrent import RecurrentHyperNetwork
from hypernets.target import Target, TensorSpec

__all__ = [
    "ArchitectureCode",
    "Bits",
    "Bounded",
    "Categorical",
    "ChunkedHyperNetwork",
    "DenseHyperNetwork",
    "Examples",
    "Field",
    "Gaussian",
    "HyperCard",
    "HyperNetwork",
    "Parametrization",
    "RecurrentHyperNetwork",
    "Size",
    "Target",
    "TensorSpec",
    "Unit",
    "apply",
    "apply_many",
]
