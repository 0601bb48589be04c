"""The ``search`` section of a configuration, and how its parts become a search."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import lightning as L
import torch

from nas.controllers import Controller, PredictorController, Problem
from nas.costs import Cost, MACs, Parameters
from nas.evaluation import Evaluate, Job, Screen
from nas.fidelities import Rungs
from nas.objectives import Objective, WeightSharing, prepare
from nas.sampling import sample_within
from nas.search import Search
from nas.seeds import Planting, Seeds
from nas.stopping import Stopping
from nas.trust import TrustGate
from nas.warm_start import WarmStart, told_first
from search_spaces import SearchSpace
from supernets import Supernet
from supernets.mismatch import check_data
from trials import (
    Executor,
    Metric,
    Outcome,
    ProcessExecutor,
    RayExecutor,
    SerialExecutor,
    StudySpec,
    Trial,
    TrialStore,
    parse_limits,
)

__all__ = ["RayCluster", "SearchSettings", "make_problem", "open_search"]


@dataclass(frozen=True)
class RayCluster:
    """Where evaluations run with ``search.executor: ray``.

    Args:
        address: of the cluster, ``auto`` for the one that this machine belongs to; left out, Ray runs on this machine
            for as long as the search does.
        cpus: that one evaluation needs.
        gpus: that one evaluation needs; 0.5 lets two share one.
        retries: how often an evaluation is begun again when its worker or machine dies.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 1

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"search.ray.{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class SearchSettings:
    """What to search for, and how.

    Args:
        study: name of the study; running the same name again continues it.
        trials: evaluations in the whole study.
        objectives: measurements to optimise, of the objective or of a cost; default the objective's first and the
            first cost.
        costs: measured for every candidate before it is evaluated, in this order.
        limits: hard limits on any measurement, e.g. ``{max_params: 20000, min_accuracy: 0.9}``.
        controller: chooses the next architecture.
        objective: evaluates an architecture.
        trust: what weights that a hypernetwork generates must show before their scores may rank; see
            :class:`nas.TrustGate`.
        seeds: architectures to evaluate before the controller is asked, as ordinary trials; see :class:`nas.Seeds`.
        warm_start: finished studies of the same space and objectives that the controller learns from first; see
            :class:`nas.WarmStart`.
        rungs: cheap evaluations of more architectures before, of which the best are promoted; see :class:`nas.Rungs`.
        stopping: ends the search before its budget; see :class:`nas.NoImprovement`.
        workers: evaluating processes; 0 evaluates in this one.
        executor: where those processes run: on this machine, or on a Ray cluster.
        ray: the cluster, for ``executor: ray``.
        timeout: seconds after which an evaluation in a worker process fails.
        storage: where studies live: a journal file, a database such as ``postgresql://USER@HOST/NAME``, or
            ``grpc://HOST:PORT`` of a `nas proxy`.
        seed: of the controller and the evaluations.
    """

    study: str = "search"
    trials: int = 100
    objectives: Sequence[str] | None = None
    costs: Sequence[Callable[[SearchSpace], Cost]] = (Parameters, MACs)
    limits: Mapping[str, float] = field(default_factory=dict)
    controller: Callable[[Problem], Controller] = PredictorController
    objective: Callable[[Supernet, L.LightningDataModule], Objective] = WeightSharing
    trust: TrustGate = field(default_factory=TrustGate)
    seeds: Sequence[Seeds] = ()
    warm_start: Sequence[WarmStart] = ()
    rungs: Rungs | None = None
    stopping: Stopping | None = None
    workers: int = 0
    executor: Literal["process", "ray"] = "process"
    ray: RayCluster = field(default_factory=RayCluster)
    timeout: float | None = None
    storage: str = "studies.journal"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"search.trials must be >= 1, got {self.trials}")
        if self.workers < 0:
            raise ValueError(f"search.workers must be >= 0, got {self.workers}")
        if self.timeout is not None and self.workers == 0:
            raise ValueError("search.timeout needs worker processes; set search.workers to 1 or more")
        if self.executor == "ray" and self.workers == 0:
            raise ValueError("search.executor: ray needs search.workers, how many evaluations run at once, got 0")
        parse_limits(self.limits)


def make_problem(
    space: SearchSpace, settings: SearchSettings, costs: Sequence[Cost], measured: Sequence[Metric]
) -> Problem:
    """Return the problem of ``settings``.

    Args:
        space: the architectures.
        settings: names of objectives, and limits.
        costs: available costs.
        measured: metrics of the objective, the first being its headline.

    Raises:
        ValueError: an objective or a limit names nothing that is measured.
    """
    known = {metric.name: metric for metric in (*measured, *(cost.metric for cost in costs))}
    names = settings.objectives
    if names is None:
        names = [measured[0].name, *(cost.name for cost in costs[:1])]
    limits = parse_limits(settings.limits)
    for where, wanted in (("objectives", names), ("limits", [limit.metric for limit in limits])):
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ValueError(
                f"search.{where} must name measurements, which are {sorted(known)}, got {unknown}; "
                "correct the name, or add its cost to search.costs"
            )
    return Problem(space, tuple(known[name] for name in names), limits, settings.seed)


@contextmanager
def open_search(
    supernet: Supernet,
    data: L.LightningDataModule,
    settings: SearchSettings,
    *,
    metadata: Mapping[str, str] | None = None,
    runs: str = "runs",
    progress: Callable[[Sequence[Trial]], None] | None = None,
) -> Iterator[Search]:
    """Yield the search that ``settings`` describes, ready to run; its study and workers are closed afterwards.

    Args:
        supernet: trained.
        data: the data module to evaluate on.
        settings: the ``search`` section.
        metadata: facts for people to store with the study.
        runs: folder for results that worker processes leave until the study has them.
        progress: see :class:`Search`.

    Raises:
        UnsatisfiableError: no architecture can meet the limits on costs.
        StudyMismatchError: the study exists and asks another question.
        ValueError: an objective or a limit names nothing that is measured, a seed is not of the space, a
            study of the warm start cannot be learnt from, or the objective refuses what is sought.
        OSError: the data is not there.
        UntrainedError: the supernet has trained one architecture only.
        UntrustedError: its weights are generated, and ``settings.trust`` refuses them.
    """
    space = supernet.space
    objective = settings.objective(supernet, data)
    if isinstance(objective, WeightSharing):
        objective.require_whole()
    costs = [make(space) for make in settings.costs]
    problem = make_problem(space, settings, costs, objective.metrics)
    objective.check(problem.objectives, problem.limits)
    screen = Screen(space, costs, problem.limits)
    sample_within(space, screen.limits, screen.meter, torch.Generator().manual_seed(settings.seed), count=1)
    if settings.executor == "process":  # data that is not there is one error, not that of every trial
        read = data if settings.workers == 0 else copy.deepcopy(data)  # what goes to workers stays small
        prepare(read)
        check_data(space, read)
        if isinstance(objective, WeightSharing):
            objective.require_share(read)
    facts = dict(metadata or {})
    if objective.inherits and supernet.source.generated:
        path = Path(runs) / settings.study / "report" / "trust.json"  # with the report it goes to MLflow
        task = supernet.task  # whose metrics every way of scoring has
        ranked = next((m.name for m in problem.objectives if m.name in task.quantities), task.headline)
        gate = settings.trust
        facts["trust"] = str(gate(supernet, data, objective, screen, metric=ranked, seed=settings.seed, path=path))
    spec = StudySpec(
        name=settings.study,
        objectives=problem.objectives,
        choices={choice.name: choice.candidates for choice in space.choices},
        space_digest=space.digest,
        limits=problem.limits,
        metadata=facts,
        subject=objective.identity(),
    )
    evaluate = Evaluate(objective, problem.limits)
    told = told_first(settings.warm_start, problem)
    planting = Planting(settings.seeds, problem, supernet, data, study=settings.study, storage=settings.storage)
    with TrialStore(settings.storage, spec, runs=runs) as store:
        seeds = planting.keep(store)
        with _executor(evaluate, settings, store) as executor:
            controller = settings.controller(problem)
            controller.tell(told)
            yield Search(
                problem,
                controller,
                screen=screen,
                store=store,
                executor=executor,
                progress=progress,
                seeds=seeds,
                stopping=settings.stopping,
            )


def _executor(evaluate: Evaluate, settings: SearchSettings, store: TrialStore) -> Executor[Job, Outcome]:
    if settings.workers == 0:
        return SerialExecutor(evaluate)
    if settings.executor == "process":
        return ProcessExecutor(
            evaluate, workers=settings.workers, timeout=settings.timeout, record=store.outcomes.write
        )
    cluster = settings.ray
    return RayExecutor(
        evaluate,
        workers=settings.workers,
        timeout=settings.timeout,
        address=cluster.address,
        cpus=cluster.cpus,
        gpus=cluster.gpus,
        retries=cluster.retries,
    )
