"""Any Optuna sampler as a controller."""

import importlib
import inspect
import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseGASampler, BaseSampler, BruteForceSampler, QMCSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState, create_trial

from nas.controllers.base import Controller, Problem
from nas.controllers.history import History, Observation
from search_spaces import Architecture, SearchSpace, derive_seed
from trials import Trial

__all__ = ["OptunaController"]

_STUDY = "controller"
_REDRAWS = 256


@final
class OptunaController(Controller):
    """Lets a sampler of Optuna choose, over an in-memory study that is rebuilt from the trials it is told.

    **Space.** Every choice of more than one candidate becomes one dimension, the position of its candidate: an integer
    where order has a meaning, a category otherwise. Dimensions are fixed, so that multivariate TPE, Gaussian processes
    and genetic crossover apply; a choice that is absent from an architecture is pinned to its first candidate.

    **Trials.** ``COMPLETE`` trials enter with their objective values and, as constraints, the margin of every limit
    relative to its bound. ``INFEASIBLE`` trials enter as complete as well: telling Optuna that they failed would make
    it ignore them and repeat the mistake. Where a trial was refused before its objectives were evaluated, each takes
    the median of those known when it finished; TPE and NSGA-II rank infeasible trials by their violation alone, and a
    Gaussian process of the objective is not pulled towards either end. ``FAILED`` trials are left out: they teach
    nothing but that the architecture is taken. Running ones appear as running, so that samplers spread out.

    **Repeats.** Samplers propose known points again in discrete spaces. A repeat is drawn anew a few times, then
    mutated, then replaced by a random architecture that is new.

    **Replay.** Each proposal uses a fresh sampler, seeded by the problem and the number of known architectures, so all
    a sampler knows is in the study, and a search that continues goes on as it would have. Quasi-Monte Carlo has one
    seed for the whole search, and its place in the sequence is the number of known architectures; brute force is shown
    everything that is known, so it enumerates what is left. CMA-ES and grid samplers keep a state of their own between
    proposals: they start over with each.

    Args:
        problem: what is searched for.
        sampler: ``"tpe"``, ``"nsga2"``, ``"nsga3"``, ``"gp"``, ``"qmc"``, ``"brute"``, ``"random"``, an import path, or
            a callable that makes a sampler. ``None`` chooses: NSGA-II for several objectives when ``budget`` is at
            least 300; a Gaussian process for one objective over at most eight choices, all ordinal, when ``budget`` is
            at most 100; else TPE. Gaussian processes are slow (0.1 s a proposal, 6 s with several objectives, limits
            and categorical choices): ask for them where one evaluation takes minutes.
        sampler_args: arguments of the sampler, without ``seed``.
        budget: how many evaluations are planned, where known; used to choose the sampler.

    Raises:
        ValueError: the sampler cannot be imported or does not take ``sampler_args``, or ``budget < 1``.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        sampler: str | Callable[..., BaseSampler] | None = None,
        sampler_args: Mapping[str, Any] | None = None,
        budget: int | None = None,
    ) -> None:
        if budget is not None and budget < 1:
            raise ValueError(f"search.controller: OptunaController.budget must be >= 1, or null, got {budget}")
        self.problem = problem
        self.sampler = sampler
        self.sampler_args = sampler_args
        self.budget = budget
        self._make = _factory(sampler or _default(problem, budget), sampler_args or {})
        self._make(seed=0)
        self._history = History(problem)
        self._study = _Study(problem)

    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` architectures that the sampler proposes, or replacements of its repeats."""
        room = self._history.room(count)
        if isinstance(self._make(seed=0), BruteForceSampler):
            return [architecture for _ in range(room) for architecture in self._enumerated()]
        genetic = self._make(seed=0)
        self._study.learn(self._history.lessons(), genetic if isinstance(genetic, BaseGASampler) else None)
        with self._study.running(self._history.pending()):
            asked: list[Architecture] = []
            for _ in range(room):
                if isinstance(genetic, QMCSampler):
                    asked += self._history.propose(1, self._in_sequence(), redraws=_REDRAWS)
                else:  # a sampler repeats what it believes in: vary it
                    asked += self._history.propose(1, self._drawn, redraws=0)
                self._study.start(asked[-1])
        return asked

    def _drawn(self, generator: torch.Generator) -> Architecture:
        return self._study.propose(self._make(seed=_seed(generator)))

    def _in_sequence(self) -> Callable[[torch.Generator], Architecture]:
        """Return a function that takes the points of a quasi-random sequence from the number of known ones on."""
        sampler = self._make(seed=derive_seed(self.problem.seed, "sequence") % 2**32)
        assert isinstance(sampler, QMCSampler)  # noqa: S101 - the caller has looked
        places = itertools.count(self._history.seen)
        return lambda generator: self._study.point(sampler, next(places))

    def _enumerated(self) -> list[Architecture]:
        """Let the sampler enumerate what is left."""
        study = _Study(self.problem)
        study.taken(self._history.known())
        return self._history.propose(
            1, lambda generator: study.propose(self._make(seed=_seed(generator))), redraws=_REDRAWS
        )

    def tell(self, trials: Sequence[Trial]) -> None:
        """Enter finished trials into the study."""
        self._history.tell(trials)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**32 - 1, (), generator=generator))


def _default(problem: Problem, budget: int | None) -> str:
    """Return the sampler for a problem; the rule is in the docstring of the controller."""
    choices = [choice for choice in problem.space.choices if choice.size > 1]
    if len(problem.objectives) > 1:
        return "nsga2" if (budget or 0) >= 300 else "tpe"
    small = len(choices) <= 8 and all(choice.kind == "ordinal" for choice in choices)
    return "gp" if small and budget is not None and budget <= 100 else "tpe"


def _factory(sampler: str | Callable[..., BaseSampler], given: Mapping[str, Any]) -> Callable[..., BaseSampler]:
    """Return a function of ``seed`` that makes the sampler.

    Raises:
        ValueError: it cannot be imported, or does not take the arguments.
    """
    short = {"tpe": "TPE", "nsga2": "NSGAII", "nsga3": "NSGAIII", "gp": "GP", "random": "Random"}
    short |= {"qmc": "QMC", "brute": "BruteForce"}
    if isinstance(sampler, str):
        path = f"optuna.samplers.{short[sampler]}Sampler" if sampler in short else sampler
        module, _, name = path.rpartition(".")
        try:
            make = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"sampler must be one of {sorted(short)} or an import path such as "
                f"'optuna.samplers.TPESampler', got {sampler!r}"
            ) from error
    else:
        make = sampler
    if "seed" in given:
        raise ValueError("sampler_args must not contain 'seed': seeds derive from the seed of the problem")
    try:
        signature = inspect.signature(make)
        seeded = "seed" in signature.parameters
        signature.bind(**given, **({"seed": 0} if seeded else {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"sampler_args of {sampler!r}: {error}; give arguments that its constructor takes") from error

    def build(*, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            made = make(**given, **({"seed": seed} if seeded else {}))
        if not isinstance(made, BaseSampler):
            raise ValueError(f"sampler must make an Optuna sampler, got {type(made).__name__} from {sampler!r}")
        return made

    return build


def _dimensions(space: SearchSpace) -> dict[str, BaseDistribution]:
    return {
        choice.name: IntDistribution(0, choice.size - 1)
        if choice.kind == "ordinal"
        else CategoricalDistribution(tuple(range(choice.size)))
        for choice in space.choices
        if choice.size > 1
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing a study that no user asked for."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@final
class _Study:
    """In-memory study of finished trials in the order in which they finished; all else in it is marked as failed."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.dimensions = _dimensions(problem.space)
        self._clear()

    def _clear(self) -> None:
        self._lessons: list[Observation] = []
        self._running: list[int] = []
        self._members = 0
        self._generation: dict[str, Any] = {}
        self._spaces: dict[str, IntersectionSearchSpace] = {}
        with _quiet():
            self._storage = optuna.storages.InMemoryStorage()
            self._study = optuna.create_study(
                study_name=_STUDY, storage=self._storage, directions=["minimize"] * len(self.problem.objectives)
            )
        self._id = self._storage.get_study_id_from_name(_STUDY)

    def learn(self, lessons: Sequence[Observation], genetic: BaseGASampler | None) -> None:
        """Make the study hold exactly ``lessons``, in this order; appending is cheap, anything else starts anew."""
        known = len(self._lessons)
        if any(a is not b for a, b in zip(self._lessons, lessons, strict=False)) or known > len(lessons):
            self._clear()
        for item in lessons[len(self._lessons) :]:
            self._append(item, genetic)
            self._lessons.append(item)
        self._file(self._add(self.problem.space.smallest()), genetic, keep=False)

    def _file(self, trial_id: int, genetic: BaseGASampler | None, *, keep: bool = True) -> None:
        """Put a running trial into its generation and settle that generation's parents, both in finishing order.

        Otherwise the order of the parents would depend on when a sampler first asked for them. A sampler goes through
        all trials to tell the generation, so it is asked where a generation may begin, and the others are marked alike.
        """
        if genetic is not None:
            usual = type(genetic).get_trial_generation is BaseGASampler.get_trial_generation
            begins = not (self._generation and usual and self._members < (genetic.population_size or 0))
            if begins:
                # a study object remembers the trials it saw when it last proposed one: look with a new one
                study = optuna.load_study(study_name=_STUDY, storage=self._storage, sampler=genetic)
                known = set(self._storage.get_trial(trial_id).system_attrs)
                generation = genetic.get_trial_generation(study, self._storage.get_trial(trial_id))
                genetic.get_parent_population(study, generation)
                attributes = self._storage.get_trial(trial_id).system_attrs
                marks = {key: value for key, value in attributes.items() if key not in known}
            else:
                marks = self._generation
                for key, value in marks.items():
                    self._storage.set_trial_system_attr(trial_id, key, value)
            if keep:
                self._members = 1 if begins else self._members + 1
                self._generation = marks
        if not keep:
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _append(self, item: Observation, genetic: BaseGASampler | None) -> None:
        limits = {limit.key: margin for limit, margin in zip(self.problem.limits, item.margins or (), strict=True)}
        trial_id = self._add(item.architecture, limits)
        self._file(trial_id, genetic)
        values = item.costs if item.costs is not None else self._medians()
        self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)

    def _medians(self) -> tuple[float, ...]:
        known = [item.costs for item in self._lessons if item.costs is not None]
        return (
            tuple(map(statistics.median, zip(*known, strict=True))) if known else (0.0,) * len(self.problem.objectives)
        )

    def _add(self, architecture: Architecture, constraints: dict[str, float] | None = None) -> int:
        space = self.problem.space
        params = {
            name: space.choice(name).index(architecture[name]) if name in architecture else 0
            for name in self.dimensions
        }
        template = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions=self.dimensions,
            constraints=constraints,
        )
        return self._storage.create_new_trial(self._id, template)

    @contextmanager
    def running(self, architectures: Sequence[Architecture]) -> Iterator[None]:
        """Show ``architectures``, and those passed to :meth:`start`, as running trials for a while."""
        try:
            for architecture in architectures:
                self.start(architecture)
            yield
        finally:
            for trial_id in self._running:
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            self._running.clear()

    def start(self, architecture: Architecture) -> None:
        """Show ``architecture`` as running until the enclosing :meth:`running` ends."""
        self._running.append(self._add(architecture))

    def taken(self, architectures: Sequence[Architecture]) -> None:
        """Show ``architectures`` as trials that ended, for samplers that enumerate."""
        for architecture in architectures:
            self._storage.set_trial_state_values(self._add(architecture), TrialState.FAIL)

    def propose(self, sampler: BaseSampler) -> Architecture:
        """Return what ``sampler`` proposes next, in canonical form."""
        for name, value in vars(sampler).items():
            if isinstance(value, IntersectionSearchSpace):  # it has gone through the older trials already
                setattr(sampler, name, self._spaces.setdefault(name, value))
        self._study.sampler = sampler
        trial = self._study.ask(self.dimensions)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
        self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        return self._canonical(trial.params)

    def point(self, sampler: QMCSampler, place: int) -> Architecture:
        """Return point number ``place`` of the sampler's sequence, in canonical form."""
        trial = create_trial(state=TrialState.RUNNING)
        if not self._places():  # the sampler leaves a note of its place with the study
            sampler.sample_relative(self._study, trial, self.dimensions)
        for key in self._places():
            self._storage.set_study_system_attr(self._id, key, place - 1)
        return self._canonical(sampler.sample_relative(self._study, trial, self.dimensions))

    def _places(self) -> list[str]:
        return [key for key in self._storage.get_study_system_attrs(self._id) if key.startswith("qmc:")]

    def _canonical(self, params: Mapping[str, Any]) -> Architecture:
        space = self.problem.space
        return space.architecture(
            {choice.name: choice.candidates[params.get(choice.name, 0)] for choice in space.choices}
        )
