"""Search spaces: choices, architectures, and the static modules they build."""

from search_spaces.architecture import Architecture, InvalidArchitectureError
from search_spaces.choice import Candidate, Choice
from search_spaces.convnet import ConvNetSpace, Head, Stage, Stem, mobilenet_v3_space
from search_spaces.mlp import MLPSpace
from search_spaces.seeding import derive_seed
from search_spaces.skeleton import fill, skeleton
from search_spaces.slicing import (
    SlicePlan,
    Slicer,
    SlicingError,
    TensorRule,
    TensorSlice,
)
from search_spaces.space import SearchSpace
from search_spaces.spec import construct, describe, import_path

__all__ = [
    "Architecture",
    "Candidate",
    "Choice",
    "ConvNetSpace",
    "Head",
    "InvalidArchitectureError",
    "MLPSpace",
    "SearchSpace",
    "SlicePlan",
    "Slicer",
    "SlicingError",
    "Stage",
    "Stem",
    "TensorRule",
    "TensorSlice",
    "construct",
    "derive_seed",
    "describe",
    "fill",
    "import_path",
    "mobilenet_v3_space",
    "skeleton",
]
