"""Trials: plain records, the durable store of a study, its MLflow mirror, Pareto arithmetic and executors."""

from trials.limits import Limit, parse_limits
from trials.pareto import crowding_distance, hypervolume, non_dominated, non_dominated_rank
from trials.trial import Candidate, Direction, Measurement, Metric, Outcome, Trial, TrialState

__all__ = [
    "Candidate",
    "Direction",
    "Limit",
    "Measurement",
    "Metric",
    "Outcome",
    "Trial",
    "TrialState",
    "crowding_distance",
    "hypervolume",
    "non_dominated",
    "non_dominated_rank",
    "parse_limits",
]
