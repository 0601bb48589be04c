"""Search spaces: choices, architectures, and the static modules they build."""

from search_spaces.architecture import Architecture, InvalidArchitectureError
from search_spaces.cells import CellSpace
from search_spaces.choice import Candidate, Choice
from search_spaces.convnet import ConvNetSpace, Head, Stage, Stem, mobilenet_v3_space
from search_spaces.cost import ArchitectureCost, cost_of
from search_spaces.coupling import Coupling, Couplings, couplings
from search_spaces.darts import DARTSSpace
from search_spaces.factory import FactorySpace, from_config
from search_spaces.graph import GraphSpace
from search_spaces.mlp import MLPSpace
from search_spaces.operations import MixedOp
from search_spaces.permutation import Site, permuted
from search_spaces.quantized import QuantizedSpace
from search_spaces.quantizer import FULL_PRECISION, InputQuantizer, fake_quantize
from search_spaces.relaxed import RelaxedArchitecture
from search_spaces.report import SharingReport, TensorSharing, sharing_report
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
from search_spaces.spec import construct, describe, foreign, import_path, load
from search_spaces.tdnn import TDNNSpace
from search_spaces.transformer import TransformerSpace
from search_spaces.transformer_stack import Stack
from search_spaces.translation import TranslationSpace
from search_spaces.vision_transformer import VisionTransformerSpace

__all__ = [
    "FULL_PRECISION",
    "Architecture",
    "ArchitectureCost",
    "Candidate",
    "CellSpace",
    "Choice",
    "ConvNetSpace",
    "Coupling",
    "Couplings",
    "DARTSSpace",
    "FactorySpace",
    "GraphSpace",
    "Head",
    "InputQuantizer",
    "InvalidArchitectureError",
    "MLPSpace",
    "MixedOp",
    "QuantizedSpace",
    "RelaxedArchitecture",
    "SearchSpace",
    "SharingReport",
    "Site",
    "SlicePlan",
    "Slicer",
    "SlicingError",
    "Stack",
    "Stage",
    "Stem",
    "TDNNSpace",
    "TensorRule",
    "TensorSharing",
    "TensorSlice",
    "TransformerSpace",
    "TranslationSpace",
    "VisionTransformerSpace",
    "construct",
    "cost_of",
    "couplings",
    "derive_seed",
    "describe",
    "fake_quantize",
    "fill",
    "foreign",
    "from_config",
    "import_path",
    "load",
    "mobilenet_v3_space",
    "permuted",
    "sharing_report",
    "skeleton",
]
