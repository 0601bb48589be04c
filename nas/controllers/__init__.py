"""Controllers: ask for architectures, tell what became of them."""

from nas.controllers.base import Controller, Problem
from nas.controllers.evolution import EvolutionController
from nas.controllers.random import RandomController

__all__ = ["Controller", "EvolutionController", "Problem", "RandomController"]
