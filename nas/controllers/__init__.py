"""Controllers: ask for architectures, tell what became of them."""

import importlib
from typing import TYPE_CHECKING, Any

from nas.controllers.base import Controller, Problem
from nas.controllers.coarse import CoarseToFineController
from nas.controllers.evolution import EvolutionController
from nas.controllers.random import RandomController

if TYPE_CHECKING:
    from nas.controllers.optuna import OptunaController

__all__ = [
    "CoarseToFineController",
    "Controller",
    "EvolutionController",
    "OptunaController",
    "Problem",
    "RandomController",
]


def __getattr__(name: str) -> Any:
    if name == "OptunaController":  # optuna is imported only by those who use it
        return importlib.import_module("nas.controllers.optuna").OptunaController
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
