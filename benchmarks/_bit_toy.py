"""Twelve layers whose errors simply add up, to be searched under a budget with and without an exact first guess."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nas.allocation import Allocation, RateDistortionTable, allocate
from nas.controllers import Controller, EvolutionController, OptunaController, Problem
from nas.costs import Cost
from nas.evaluation import Evaluate, Screen
from nas.objectives import Evaluation, Objective
from nas.search import Search
from search_spaces import Architecture, Choice, SearchSpace
from trials import Direction, Limit, Metric, SerialExecutor, StudySpec, TrialStore

__all__ = ["BUDGET", "allocated", "searched"]

BITS = (2, 4, 8)
BUDGET = 0.18
LAYERS = 12
_RANDOM = np.random.default_rng(0)
GAINS = np.abs(_RANDOM.normal(size=LAYERS)) + 0.1
MACS = _RANDOM.integers(1, 20, size=LAYERS).astype(float)


class Toy(SearchSpace):
    """Bits of twelve layers."""

    choices = tuple(Choice(f"layer{number}.weight_bits", BITS) for number in range(LAYERS))

    def build(self, architecture: Architecture) -> nn.Module:
        """Return a module; nothing depends on it."""
        del architecture
        return nn.Linear(1, 1)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return what the module takes."""
        del architecture
        return (torch.zeros(batch_size, 1),)


def bits(architecture: Architecture) -> np.ndarray:
    """Bits of the layers, in order."""
    return np.array([architecture.integer(f"layer{number}.weight_bits") for number in range(LAYERS)], dtype=float)


class Loss(Objective):
    """``sum_l gain_l 4^(2 - b_l)``."""

    metrics = (Metric("loss", "1", "minimize"),)

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Look the loss up."""
        del seed
        return Evaluation({"loss": float((GAINS * 4.0 ** (2 - bits(architecture))).sum())})


class Share(Cost):
    """``sum_l MACs_l b_l^2`` as a share of that of 8 bits."""

    name, unit = "share", "fraction"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the share."""
        del model
        return float((MACS * bits(architecture) ** 2).sum() / (64 * MACS.sum()))


def allocated(noise: float) -> tuple[Allocation, float]:
    """Return the allocation from a table off by log-normal factors, and its true loss."""
    factors = np.exp(noise * np.random.default_rng(5).normal(size=LAYERS))
    rows = [g * f * 4.0 ** (2 - np.array(BITS, dtype=float)) for g, f in zip(GAINS, factors, strict=True)]
    costs = [m * np.array(BITS, dtype=float) ** 2 / (64 * MACS.sum()) for m in MACS]
    found = allocate(RateDistortionTable(tuple(rows), {"share": tuple(costs)}), {"share": BUDGET})
    chosen = np.array([BITS[option] for option in found.options], dtype=float)
    return found, float((GAINS * 4.0 ** (2 - chosen)).sum())


def searched(kind: str, trials: int, seed: int, start: Allocation | None = None) -> tuple[float, float]:
    """Return the least loss within the budget, and the loss of the first trial within it."""
    space = Toy()
    problem = Problem(space, Loss.metrics, (Limit("share", BUDGET, "max"),), seed)
    made: Controller = EvolutionController(problem) if kind == "evolution" else OptunaController(problem)
    cost = Share(space)
    spec = StudySpec(
        name="toy",
        objectives=problem.objectives,
        choices={choice.name: choice.candidates for choice in space.choices},
        space_digest=space.digest,
        limits=problem.limits,
    )
    seeds = []
    if start is not None:
        names = [choice.name for choice in space.choices]
        seeds = [space.architecture({n: BITS[o] for n, o in zip(names, start.options, strict=True)})]
    with tempfile.TemporaryDirectory() as folder, TrialStore(f"{folder}/s.journal", spec, runs=Path(folder)) as store:
        search = Search(
            problem,
            made,
            screen=Screen(space, [cost], problem.limits),
            store=store,
            executor=SerialExecutor(Evaluate(Loss(), problem.limits)),
            seeds=seeds,
        )
        found = [trial.value("loss") for trial in search.run(trials).trials if trial.state == "COMPLETE"]
    return min(found), found[0]
