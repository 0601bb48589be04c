"""The search loop: ask, screen, evaluate, record, tell."""

import itertools
import logging
import operator
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nas.controllers.base import Controller, Problem
from nas.evaluation import Job, Screen
from nas.sampling import UnsatisfiableError, sample_within
from nas.stopping import Stopping
from search_spaces import Architecture, InvalidArchitectureError, derive_seed
from trials import Executor, Outcome, Trial, TrialState, non_dominated
from trials.store import TrialStore

__all__ = ["Search", "SearchResult", "front"]

_logger = logging.getLogger(__name__)
_PATIENCE = 50  # infeasible proposals in a row before one is drawn within the limits instead
_FRUITLESS = 10  # such draws in a row that find nothing new before the space counts as exhausted
_TAKEN = 1000  # proposals in a row that are known already before a controller counts as out of ideas


def front(problem: Problem, trials: Sequence[Trial]) -> list[Trial]:
    """Return the complete trials that no other complete trial dominates, in the order of the first objective."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if not complete:
        return []
    points = [[trial.value(metric.name) for metric in problem.objectives] for trial in complete]
    kept = non_dominated(points, problem.directions)
    unique = {tuple(points[i]): complete[i] for i in reversed(range(len(complete))) if kept[i]}
    return sorted(unique.values(), key=lambda trial: trial.value(problem.objectives[0].name))


@dataclass(frozen=True)
class SearchResult:
    """How a search ended.

    Attributes:
        trials: every trial of the study, by number.
        front: the Pareto front among them.
        reason: ``"budget"``, ``"exhausted"`` (the space has no more), ``"converged"`` (no improvement is expected) or
            ``"interrupted"``.
    """

    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    reason: str

    @property
    def failed(self) -> bool:
        """Whether trials were evaluated and none of them was completed."""
        states = {trial.state for trial in self.trials}
        return TrialState.FAILED in states and TrialState.COMPLETE not in states


class Search:
    """Evaluates what a controller proposes until a budget is spent, the space is exhausted or the user interrupts.

    The study is the only state: the history in ``store`` is told to the controller first, trials that died with their
    process are begun again, and no architecture is ever evaluated twice, by whatever number of processes that share
    the study. A candidate whose costs break a limit is recorded as INFEASIBLE and never evaluated. A failed evaluation
    is a FAILED trial. On Ctrl-C running trials are given back and :meth:`run` returns.

    Args:
        problem: space, objectives and limits.
        controller: proposes architectures.
        screen: costs and limits that need no evaluation.
        store: the study.
        executor: runs :class:`nas.evaluation.Evaluate`.
        progress: called after every finished evaluation with all trials so far.
        seeds: architectures to begin before the controller is asked, those that the study holds already excepted.
        stopping: ends the search before its budget.
    """

    def __init__(
        self,
        problem: Problem,
        controller: Controller,
        *,
        screen: Screen,
        store: TrialStore,
        executor: Executor[Job, Outcome],
        progress: Callable[[Sequence[Trial]], None] | None = None,
        seeds: Sequence[Architecture] = (),
        stopping: Stopping | None = None,
    ) -> None:
        self.problem = problem
        self.controller = controller
        self.screen = screen
        self.store = store
        self.executor = executor
        self.progress = progress
        self.seeds = tuple(seeds)
        self.stopping = stopping
        self._planting = deque(self.seeds)
        self._told: dict[int, TrialState] = {}
        self._heard: list[Trial] = []
        self._retries: deque[Architecture] = deque()
        self._rejected = 0
        self._spent: set[str] = set()

    def run(self, budget: int) -> SearchResult:
        """Continue until the study holds ``budget`` evaluated (complete, failed, or infeasible on an objective) trials.

        Screened candidates are free, but after fifty in a row one is drawn within the limits; when such draws find
        nothing new, the space counts as exhausted.

        Raises:
            UnsatisfiableError: no architecture can meet the limits on costs.
        """
        running: dict[int, tuple[Trial, Job]] = {}
        reason = "budget"
        try:
            while reason == "budget" and self._sync() < budget:
                if self._converged():
                    reason = "converged"
                    break
                self._retries.extend(self._interrupted())
                proposals = self._proposals()
                reason = "exhausted" if not self._evaluate(running, proposals, budget) else "budget"
        except KeyboardInterrupt:
            reason = "interrupted"
            self.executor.close()
        trials = self.store.trials()
        return SearchResult(tuple(trials), tuple(front(self.problem, trials)), reason)

    def _evaluate(self, running: dict[int, tuple[Trial, Job]], proposals: Iterator[Architecture], budget: int) -> bool:
        """Evaluate until nothing is running and the budget is full or, returning False, there are no proposals."""
        more = True
        while True:
            more = self._fill(running, proposals, budget)
            if not running:
                return more
            for completion in self.executor.wait():
                trial, job = running.pop(completion.key)
                outcome = completion.result
                if outcome is None:
                    outcome = Outcome(state=TrialState.FAILED, error=completion.error, measurements=job.costs)
                stored = self.store.finish(trial.with_outcome(outcome))
                if stored is not None:
                    self._tell([stored])
                if self.progress is not None:
                    self.progress(self.store.trials())

    def _sync(self) -> int:
        """Take in what other processes did; return how many evaluations the study holds."""
        self._listen()
        self._spent = {trial.arch_id for trial in self.store.trials() if self._counts(trial)}
        return len(self._spent)

    def _converged(self) -> bool:
        return self.stopping is not None and self.stopping(self.problem, self.store.trials())

    def _counts(self, trial: Trial) -> bool:
        """Whether a trial counts against the budget: it is evaluated, or being evaluated, by whatever process."""
        objectives = {metric.name for metric in self.problem.objectives} - set(self.screen.metrics)
        return trial.state is not TrialState.INFEASIBLE or bool(objectives & trial.measurements.keys())

    def _fill(self, running: dict[int, tuple[Trial, Job]], proposals: Iterator[Architecture], budget: int) -> bool:
        """Start evaluations until executor or budget are full or the search may end; False: the space has no more."""
        while len(running) < self.executor.slots and len(self._spent) < budget and not self._converged():
            architecture = next(proposals, None)
            if architecture is None:
                return False
            self._start(architecture, running)
        return True

    def _proposals(self) -> Iterator[Architecture]:
        fruitless = known = 0
        while fruitless < _FRUITLESS and known < _TAKEN:
            if self._retries:
                yield self._retries.popleft()
                continue
            if self._planting:
                seed = self._planting.popleft()
                if self.store.find(seed.arch_id) is None:
                    yield seed
                continue
            self._listen()
            if self._rejected >= _PATIENCE:
                self._rejected = 0
                drawn = self._drawn()
                fruitless = fruitless + 1 if drawn is None else 0
                if drawn is not None:
                    yield drawn
                    continue
            asked = self.controller.ask(1)
            if not asked:
                return
            for architecture in asked:
                known = known + 1 if self.store.find(architecture.arch_id) is not None else 0
                yield architecture

    def _drawn(self) -> Architecture | None:
        """Draw one unknown architecture within the limits."""
        for attempt in range(4):
            seed = derive_seed(self.problem.seed, "within", len(self._told), attempt)
            generator = torch.Generator().manual_seed(seed)
            try:
                drawn = sample_within(self.problem.space, self.screen.limits, self.screen.meter, generator)[0]
            except UnsatisfiableError:  # the walk found none from here; another may
                continue
            if self.store.find(drawn.arch_id) is None:
                return drawn
        return None

    def _start(self, architecture: Architecture, running: dict[int, tuple[Trial, Job]]) -> None:
        seed = derive_seed(self.problem.seed, "trial", architecture.arch_id)
        try:
            costs, feasible = self.screen(architecture)
        except Exception:
            self._settle(architecture, Outcome(state=TrialState.FAILED, error=traceback.format_exc()), seed)
            return
        if not feasible:
            self._rejected += 1
            self._settle(architecture, Outcome(state=TrialState.INFEASIBLE, measurements=costs), seed)
            return
        self._rejected = 0
        trial = self.store.begin(architecture, architecture.arch_id, seed=seed)
        if trial is None:  # another process was faster
            return
        self._tell([trial])
        job = Job(architecture, seed, costs)
        running[trial.number] = trial, job
        self.executor.submit(trial.number, job)

    def _settle(self, architecture: Architecture, outcome: Outcome, seed: int) -> None:
        """Record what needs no evaluation."""
        stored = self.store.record(architecture, architecture.arch_id, outcome, seed=seed)
        self._tell([stored] if stored is not None else [])

    def _interrupted(self) -> list[Architecture]:
        found = []
        for trial in self.store.interrupted():
            try:
                found.append(self.problem.space.architecture(trial.architecture))
            except InvalidArchitectureError as error:  # cannot happen while the study checks its space
                _logger.warning("trial %d is not begun again: %s", trial.number, error)
        return found

    def _listen(self) -> None:
        """Tell the controller what the study knows and it does not, from other processes or an earlier run."""
        trials, heard = self.store.trials(), self._heard
        self._heard = trials
        changed = itertools.compress(trials, map(operator.is_not, trials, heard))  # equal ones need no look inside
        fresh = (*changed, *trials[len(heard) :])
        self._tell([trial for trial in fresh if self._told.get(trial.number) is not trial.state])

    def _tell(self, trials: Sequence[Trial]) -> None:
        if trials:
            self.controller.tell(trials)
            self._told.update({trial.number: trial.state for trial in trials})
            self._spent.update(trial.arch_id for trial in trials if self._counts(trial))
