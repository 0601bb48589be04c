"""Search spaces: choices, architectures, and the static modules they build."""

from search_spaces.architecture import Architecture, InvalidArchitectureError
from search_spaces.choice import Candidate, Choice
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
    "InvalidArchitectureError",
    "MLPSpace",
    "SearchSpace",
    "SlicePlan",
    "Slicer",
    "SlicingError",
    "TensorRule",
    "TensorSlice",
    "construct",
    "derive_seed",
    "describe",
    "fill",
    "import_path",
    "skeleton",
]
