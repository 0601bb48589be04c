"""Controllers: ask for architectures, tell what became of them."""

import importlib
from typing import TYPE_CHECKING, Any

from nas.controllers.base import Controller, Problem
from nas.controllers.coarse import CoarseToFineController
from nas.controllers.evolution import EvolutionController
from nas.controllers.predictor import PredictorController
from nas.controllers.random import RandomController

if TYPE_CHECKING:
    from nas.controllers.nni import NNIController
    from nas.controllers.optuna import OptunaController

__all__ = [
    "CoarseToFineController",
    "Controller",
    "EvolutionController",
    "NNIController",
    "OptunaController",
    "PredictorController",
    "Problem",
    "RandomController",
]


def __getattr__(name: str) -> Any:
    homes = {"NNIController": "nas.controllers.nni", "OptunaController": "nas.controllers.optuna"}
    if name in homes:  # nni and optuna are imported only by those who use them
        return getattr(importlib.import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
