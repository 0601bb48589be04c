"""From an architecture to the outcome of a trial: cheap costs first, then the objective."""

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nas.costs import Cost, CostMeter
from nas.objectives import Objective
from search_spaces import Architecture, SearchSpace
from trials import Limit, Measurement, Metric, Outcome, Trial, TrialState

__all__ = ["Evaluate", "Job", "Screen", "scored_with"]


def _record(metrics: Mapping[str, Metric], values: Mapping[str, float]) -> dict[str, Measurement]:
    return {
        name: Measurement(value, metrics[name].unit, metrics[name].direction)
        for name, value in values.items()
        if name in metrics
    }


class Screen:
    """Measures costs and says whether an architecture is worth evaluating at all.

    Args:
        space: the architectures.
        costs: measured in this order.
        limits: of the problem; those on costs are checked here.
    """

    def __init__(self, space: SearchSpace, costs: Sequence[Cost], limits: Sequence[Limit]) -> None:
        self.space = space
        self.costs = tuple(costs)
        self.metrics = {cost.name: cost.metric for cost in costs}
        self.limits = tuple(limit for limit in limits if limit.metric in self.metrics)
        self.meter = CostMeter(space, costs)

    def __call__(self, architecture: Architecture) -> tuple[dict[str, Measurement], bool]:
        """Return the costs of ``architecture`` and whether they respect every limit."""
        values = self.meter(architecture)
        return _record(self.metrics, values), all(limit.holds(values[limit.metric]) for limit in self.limits)


@dataclass(frozen=True)
class Job:
    """What an evaluating process is given."""

    architecture: Architecture
    seed: int
    costs: Mapping[str, Measurement]


@dataclass(frozen=True)
class Evaluate:
    """Runs the objective and turns whatever happens into an outcome; picklable, for worker processes.

    Args:
        objective: measures the architecture.
        limits: of the problem; those on the objective's measurements decide between COMPLETE and INFEASIBLE.
    """

    objective: Objective
    limits: tuple[Limit, ...] = ()

    def __call__(self, job: Job) -> Outcome:
        """Evaluate; an exception or a value that is no number is a FAILED outcome, never an exception."""
        try:
            evaluation = self.objective(job.architecture, seed=job.seed)
            values = {name: float(value) for name, value in evaluation.measurements.items()}
            provenance = {str(name): str(value) for name, value in evaluation.provenance.items()}
        except (Exception, SystemExit):
            return Outcome(state=TrialState.FAILED, measurements=job.costs, error=traceback.format_exc())
        metrics = {metric.name: metric for metric in self.objective.metrics}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        missing = sorted(metrics.keys() - values.keys())
        if bad or missing:
            return Outcome(
                state=TrialState.FAILED,
                measurements=job.costs,
                error=f"the objective must measure {sorted(metrics)} as finite numbers; missing {missing}, got {bad}",
                provenance=provenance,
            )
        measured = {**job.costs, **_record(metrics, values)}
        feasible = all(limit.holds(measured[limit.metric].value) for limit in self.limits if limit.metric in measured)
        state = TrialState.COMPLETE if feasible else TrialState.INFEASIBLE
        return Outcome(state=state, measurements=measured, provenance=provenance)


def scored_with(trial: Trial, *, alone: bool) -> str | None:
    """Return the version of the supernet's weights that a trial was scored with, or ``None`` where it was not.

    Args:
        trial: of any objective.
        alone: whether to count a trial whose headline is of weights of its own, and that has a score with these beside
            it; and a trial of a rung, which was scored on a part of the data.
    """
    if "share" in trial.provenance and not alone:
        return None
    names = ("weights", "searched") if alone else ("weights",)
    found = (trial.provenance.get(name, "") for name in names)
    return next((value.removeprefix("shared:") for value in found if value.startswith("shared:")), None)
