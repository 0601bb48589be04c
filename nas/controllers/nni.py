"""The tuners of NNI 3.0 as a controller."""

import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import nni
import numpy as np
import torch
from nni.algorithms.hpo.evolution_tuner import EvolutionTuner, Individual
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
from nni.algorithms.hpo.random_tuner import RandomTuner
from nni.algorithms.hpo.regularized_evolution_tuner import RegularizedEvolutionTuner
from nni.algorithms.hpo.tpe_tuner import TpeTuner

from nas.controllers.base import Controller, Problem
from nas.controllers.history import History, Observation
from nas.controllers.nni_log import quiet
from search_spaces import Architecture, Choice, derive_seed
from trials import Trial

__all__ = ["NNIController"]

_TUNERS: Mapping[str, Callable[..., Any]] = {
    "tpe": TpeTuner,
    "evolution": EvolutionTuner,
    "random": RandomTuner,
    "grid": GridSearchTuner,
    "regularized_evolution": RegularizedEvolutionTuner,
}
_REFUSED = {
    "gp": "NNI's GPTuner takes numeric spaces only, and NumPy 2 refuses the arrays it makes",
    "metis": "NNI's MetisTuner takes numeric spaces only, and fails on what it draws itself",
    "networkmorphism": "NNI's NetworkMorphismTuner searches its own graphs, and NumPy 2 refuses what it computes",
    "batch": "NNI's BatchTuner runs a list that you give; name known candidates as seeds of the search instead",
    "pbt": "population based training shares checkpoints between trials, and here a trial is one architecture",
    "hyperband": "NNI drives it from its own dispatcher, over budgets that a trial here does not have",
    "bohb": "it needs ConfigSpace, and NNI drives it from its own dispatcher",
    "smac": "it needs the package smac of 2021, which does not install beside NumPy 2",
    "hyperopt": "it needs the package hyperopt; 'tpe' is the same method",
    "anneal": "it needs the package hyperopt",
    "ppo": "it needs the package gym, which is no longer maintained",
    "dngo": "it needs the package pybnn, which is no longer maintained",
}
_AUGMENTATION = 0.05
_DEFAULTS: Mapping[str, Mapping[str, int]] = {  # NNI's are for searches of thousands of trials
    "evolution": {"population_size": 10},
    "regularized_evolution": {"population_size": 20, "sample_size": 10},
}


@final
class NNIController(Controller):
    """Lets a tuner of NNI 3.0 choose, in this process: no experiment, no node, no files.

    **Space.** Every choice of more than one candidate is one categorical parameter, the position of its candidate.
    A choice that is absent from an architecture is pinned to its first candidate.

    **Values.** NNI's tuners know one number, the smaller the better, and no limits. Objectives ``f_i`` are scaled to
    [0, 1] over the trials within the limits. Each proposal draws weights ``w`` uniformly from the simplex and takes the
    augmented Chebyshev value ``max_i w_i f_i + 0.05 sum_i w_i f_i`` of every known trial (ParEGO, Knowles 2006, Eq. 2);
    one objective has weight 1. A trial that breaks limits gets 2 plus its violation relative to the bounds, so that it
    ranks behind all that hold them, the least broken first.

    **Repeats.** NNI replaces a point that it has proposed before by the next point of a grid. Here a repeat is drawn
    anew a few times, then mutated, as by every controller.

    **Replay.** Each proposal uses a fresh tuner that is told the history in the order in which trials finished. Its
    random states, the global one of Python included, are seeded by the problem and the number of known architectures;
    the global one is put back. A proposal takes 0.06 ms for each known trial with ``tpe`` and ``evolution``, and
    hardly any time with the others.

    - ``tpe``: trees of Parzen estimators (Bergstra et al. 2011). What is being evaluated enters with NNI's own lie.
    - ``evolution``: of two random survivors the worse one dies and the better one has a mutated child (Real et al.
      2017, arXiv 1703.01041).
    - ``regularized_evolution``: the best of a sample of the youngest is mutated (Real et al. 2019, arXiv 1802.01548).
    - ``random``: uniform draws.
    - ``grid``: every architecture in turn, scattered, because a search seldom sees more than a small part of the grid:
      as many points as the largest choice has candidates show every candidate of every choice. Which ones come
      together first depends on the seed.

    Until the population of either evolution is full, proposals are uniform draws, as NNI's are.

    Args:
        problem: what is searched for.
        tuner: which one.
        tuner_args: arguments of its constructor but ``seed`` and ``optimize_mode``. ``evolution`` takes a
            ``population_size``, 10 by default here, and ``regularized_evolution`` a ``population_size`` and a
            ``sample_size``, 20 and 10 by default here.

    Raises:
        ValueError: the tuner is unknown or does not work, or does not take ``tuner_args``.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        tuner: Literal["tpe", "evolution", "random", "grid", "regularized_evolution"] = "tpe",
        tuner_args: Mapping[str, Any] | None = None,
    ) -> None:
        if tuner not in _TUNERS:
            why = f": {_REFUSED[tuner]}" if tuner in _REFUSED else ""
            raise ValueError(f"tuner must be one of {sorted(_TUNERS)}, got {tuner!r}{why}")
        self.problem = problem
        self.tuner = tuner
        self.tuner_args = tuner_args
        self._arguments = _checked(tuner, tuner_args or {})
        self._history = History(problem)
        self._choices = tuple(choice for choice in problem.space.choices if choice.size > 1)
        self._grid = _Grid(problem.seed, self._choices) if tuner == "grid" else None
        self._replay: tuple[tuple[int, int], Any] | None = None

    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` architectures that the tuner proposes, or replacements of its repeats."""
        with quiet():
            return self._history.propose(count, self._draw)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remember trials for the next proposal."""
        self._history.tell(trials)

    def _draw(self, generator: torch.Generator) -> Architecture:
        space = self.problem.space
        if not self._choices:
            return space.smallest()
        if self._grid is not None:
            points = map(self._architecture, self._grid)
            fresh = next((point for point in points if point not in self._history), None)
            return space.sample(generator) if fresh is None else fresh
        known = len(self._history.lessons()) + len(self._history.pending())
        if known < self._arguments.get("population_size", 0):
            return space.sample(generator)
        positions = self._propose(int(torch.randint(2**31, (), generator=generator)))
        return space.sample(generator) if positions is None else self._architecture(positions)

    def _propose(self, seed: int) -> dict[str, int] | None:
        """Return what the tuner proposes, and leave it as it was; ``None`` when its whole population is evaluated."""
        moment = self._history.revision, self._history.seen
        if self._replay is None or self._replay[0] != moment:
            with _seeded(derive_seed(self.problem.seed, "replay")):
                self._replay = moment, self._replayed()
        tuner = self._replay[1]
        population = list(getattr(tuner, "population", ()))
        tuner.rng, tuner.random_state = np.random.default_rng(seed), np.random.RandomState(seed)
        try:
            with _seeded(seed):
                proposed = tuner.generate_parameters(-1)
        except (nni.NoMoreTrialError, RuntimeError):
            return None
        if self.tuner == "tpe":
            tuner.trial_end(-1, False)
        elif self.tuner == "evolution":
            tuner.population = population
        return {name: int(value["_idx"] if isinstance(value, dict) else value) for name, value in proposed.items()}

    def _replayed(self) -> Any:
        """Return a tuner that knows the history."""
        tuner, lessons, pending = self._fresh(), self._history.lessons(), self._history.pending()
        weights = np.random.default_rng(derive_seed(self.problem.seed, "weights", self._history.seen))
        values = _scalars(self.problem, lessons, weights)
        told = [(self._positions(item.architecture), value) for item, value in zip(lessons, values, strict=True)]
        if self.tuner == "tpe":
            if tuner.liar and told:
                for value in values:
                    tuner.liar.update(value)
                told += [(self._positions(architecture), tuner.liar.lie()) for architecture in pending]
            tuner.import_data([{"parameter": parameter, "value": value} for parameter, value in told])
        elif self.tuner == "regularized_evolution":
            tuner.initial_population.clear()  # drawn by the caller
            for number, (positions, value) in enumerate(told[-self._arguments["population_size"] :]):
                tuner.history[number] = {name: {"_value": at, "_idx": at} for name, at in positions.items()}
                tuner.receive_trial_result(number, None, value)
        elif self.tuner == "evolution":
            _evolve(tuner, told, len(pending))
        return tuner

    def _fresh(self) -> Any:
        """Return a new tuner for the space of positions."""
        tuner = _TUNERS[self.tuner](**self._arguments, optimize_mode="minimize")
        kind = "layer_choice" if self.tuner == "regularized_evolution" else "choice"
        tuner.update_search_space(
            {choice.name: {"_type": kind, "_value": list(range(choice.size))} for choice in self._choices}
        )
        if hasattr(tuner, "dedup"):
            tuner.dedup = _KeepRepeats()
        return tuner

    def _positions(self, architecture: Architecture) -> dict[str, int]:
        return {
            choice.name: choice.index(architecture[choice.name]) if choice.name in architecture else 0
            for choice in self._choices
        }

    def _architecture(self, positions: Mapping[str, int]) -> Architecture:
        space = self.problem.space
        return space.architecture(
            {choice.name: choice.candidates[positions.get(choice.name, 0)] for choice in space.choices}
        )


@final
class _KeepRepeats:
    """Stands in for NNI's deduplicator, which would answer a repeat with the next point of a grid."""

    def __call__(self, parameters: Any) -> Any:
        return parameters

    def add_history(self, parameters: Any) -> None:
        """Forget ``parameters``."""


@final
class _Grid:
    """Iterates over the positions of NNI's grid, scattered, in an order drawn from a seed.

    NNI counts in mixed radix. With ``d_0`` its fastest digit, that of the choice with the most candidates, choice ``j``
    of ``r_j`` candidates takes position ``(d_j + d_0 + j d_1 + sum_(2 <= l < j) c_jl d_l) mod r_j``, of these terms
    those with ``l < j``, and ``c`` drawn. Solved from ``d_0`` on this gives the digits back, so every point comes
    exactly once. While only ``d_0`` counts, all choices go through their candidates together; of at most ``r`` choices
    that all have the same prime number ``r`` of candidates, any two go through all their pairs in ``r^2`` points.
    """

    def __init__(self, seed: int, choices: Sequence[Choice]) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "grid"))
        order = [choices[i] for i in torch.randperm(len(choices), generator=generator).tolist()]
        self._choices = sorted(order, key=lambda choice: -choice.size)
        self._candidates = [torch.randperm(choice.size, generator=generator).tolist() for choice in self._choices]
        self._factors = [
            [1, j, *torch.randint(choice.size, (j,), generator=generator).tolist()][:j]
            for j, choice in enumerate(self._choices)
        ]
        self._tuner = GridSearchTuner()
        if choices:
            with quiet():
                self._tuner.update_search_space(
                    {
                        choice.name: {"_type": "choice", "_value": list(range(choice.size))}
                        for choice in reversed(self._choices)  # the last one counts fastest
                    }
                )

    def __iter__(self) -> Iterator[dict[str, int]]:
        """Yield what has not been yielded before."""
        while True:
            try:
                point = self._tuner.generate_parameters(-1)
            except nni.NoMoreTrialError:
                return
            yield self._scattered([point[choice.name] for choice in self._choices])

    def _scattered(self, digits: Sequence[int]) -> dict[str, int]:
        found = {}
        parts = zip(self._choices, self._factors, self._candidates, digits, strict=True)
        for choice, factors, candidates, digit in parts:
            place = digit + sum(factor * other for factor, other in zip(factors, digits, strict=False))
            found[choice.name] = candidates[place % choice.size]
        return found


def _evolve(tuner: Any, told: Sequence[tuple[Mapping[str, int], float]], pending: int) -> None:
    """Ask the tuner as often as there were trials, and give it what was evaluated as if it had proposed that."""
    tuner.random_state = np.random.RandomState(0)  # children of the replay are thrown away
    for number, (positions, value) in enumerate(told):
        tuner.generate_parameters(number)
        config = {name: {"_index": position, "_value": position} for name, position in positions.items()}
        tuner.running_trials[number] = Individual(config=config)
        tuner.receive_trial_result(number, None, value)
    for number in range(pending):
        if len(tuner.population) > 1:
            tuner.generate_parameters(len(told) + number)


def _checked(tuner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with defaults of ours.

    Raises:
        ValueError: the tuner does not take them.
    """
    owned = sorted({"seed", "optimize_mode"} & given.keys())
    if owned:
        raise ValueError(
            f"tuner_args must not contain {owned}: seeds and directions come from the problem, got {dict(given)}"
        )
    defaults = _DEFAULTS.get(tuner, {})
    arguments = dict(defaults) | dict(given)
    for name in defaults:
        size, least = arguments[name], 2 if tuner == "evolution" else 1
        if not isinstance(size, int) or size < least:
            raise ValueError(f"tuner_args.{name} must be an integer of at least {least}, got {size!r}")
    try:
        inspect.signature(_TUNERS[tuner]).bind(**arguments)
        with quiet():
            _TUNERS[tuner](**arguments)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"tuner_args of {tuner!r}: {error}; give arguments that NNI's {_TUNERS[tuner].__name__} takes"
        ) from error
    return arguments


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global state that NNI's evolutions draw from, and put it back afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _scalars(problem: Problem, lessons: Sequence[Observation], generator: np.random.Generator) -> list[float]:
    """Return one number for each lesson, the smaller the better, finite whatever was measured."""
    count = len(problem.objectives)
    points = np.array([item.costs for item in lessons if item.costs is not None and item.violation == 0.0])
    weights = np.ones(1) if count == 1 else generator.dirichlet(np.ones(count))
    low, span = np.zeros(count), np.ones(count)
    if len(points):
        low = points.min(0)
        span = np.where(np.ptp(points, axis=0) > 0, np.ptp(points, axis=0), 1.0)
    values = []
    for item in lessons:
        if item.violation > 0.0 or item.costs is None:
            values.append(2.0 + item.violation)
            continue
        terms = weights * (np.array(item.costs) - low) / span
        values.append(float(terms.max() + _AUGMENTATION * math.fsum(terms)))
    return values
