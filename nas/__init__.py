"""Neural architecture search over weight sources: objectives, costs, controllers, the search loop and the command line.

Importing this package is free; its names are imported when they are first used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "nas.allocation": ("BitAllocation", "RateDistortion", "SelectedArchitecture"),
    "nas.bitops": ("BitOps", "WeightBits"),
    "nas.buffers": ("BufferSize",),
    "nas.conditioned": ("ConditionedNetwork",),
    "nas.confidence": ("Confidence",),
    "nas.controllers": (
        "CoarseToFineController",
        "Controller",
        "EvolutionController",
        "NNIController",
        "OptunaController",
        "PredictorController",
        "Problem",
        "RandomController",
    ),
    "nas.costs": ("Cost", "MACs", "ModelSize", "Parameters"),
    "nas.data": ("DigitsData", "ImageData", "PlanetoidData", "SpeechData", "TextData", "TranslationData"),
    "nas.discretise": ("Discretised", "DiscretisationGap", "DiscretisationGapError", "SelectedArchitecture"),
    "nas.effects": ("Effect", "InputNoise", "WeightPenalty"),
    "nas.evaluation": ("Evaluate", "Screen"),
    "nas.expected": ("ExpectedMACs",),
    "nas.fidelities": ("Rungs",),
    "nas.generation": ("open_weight_maker",),
    "nas.latency": ("Latency",),
    "nas.latency_table": ("LatencyTable", "make_latency_table"),
    "nas.making": ("Generation", "GenerationError", "Request", "WeightMaker"),
    "nas.nni_experiment": ("nni_portal", "write_nni_experiment"),
    "nas.nni_space": ("NNISpace",),
    "nas.nni_strategies": ("nni_model_space", "search_with_nni"),
    "nas.objectives": ("Evaluation", "FromScratch", "Objective", "UntrainedError", "WeightSharing"),
    "nas.samplers": ("DatasetSampler", "load_sampler", "save_sampler"),
    "nas.sampling": ("UnsatisfiableError", "sample_within"),
    "nas.search": ("Search", "SearchResult", "front"),
    "nas.seeds": ("FinishedStudy", "KnownArchitectures", "Seeds"),
    "nas.service.client": ("Client", "ServiceError"),
    "nas.settings": ("RayCluster", "SearchSettings", "open_search"),
    "nas.standalone": ("Recipe",),
    "nas.stopping": ("NoImprovement", "Stopping"),
    "nas.tabular": ("TableData", "TableScore", "TabularObjective"),
    "nas.trust": ("TrustGate", "UntrustedError"),
    "nas.warm_start": ("WarmStart",),
    "nas.zoo_diffusion": ("ZooDiffusion",),
}
_LATER = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_LATER)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
