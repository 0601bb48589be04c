"""Trials: plain records, the durable store of a study, its MLflow mirror, Pareto arithmetic and executors.

What needs Optuna, MLflow or Lightning is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trials.executors import Completion, Executor, SerialExecutor
from trials.files import OutcomeFolder, write_atomically
from trials.limits import Limit, parse_limits
from trials.pareto import crowding_distance, hypervolume, non_dominated, non_dominated_rank
from trials.process_executor import ProcessExecutor
from trials.study import StudyMismatchError, StudySpec
from trials.trial import Candidate, Direction, Measurement, Metric, Outcome, Trial, TrialState
from trials.urls import redact

if TYPE_CHECKING:
    from trials.logger import TrackingLogger
    from trials.mirror import Mirror, MirrorReport, mirror_study
    from trials.proxy import Proxy
    from trials.ray_executor import RayExecutor
    from trials.storages import StoreUnavailableError
    from trials.store import StudyNotFoundError, TrialStore
    from trials.tracking import ModelNotFoundError, ResolvedModel, Tracker
    from trials.tracking_address import TrackingUnavailableError, tracking_uri

__all__ = [
    "Candidate",
    "Completion",
    "Direction",
    "Executor",
    "Limit",
    "Measurement",
    "Metric",
    "Mirror",
    "MirrorReport",
    "ModelNotFoundError",
    "Outcome",
    "OutcomeFolder",
    "ProcessExecutor",
    "Proxy",
    "RayExecutor",
    "ResolvedModel",
    "SerialExecutor",
    "StoreUnavailableError",
    "StudyMismatchError",
    "StudyNotFoundError",
    "StudySpec",
    "Tracker",
    "TrackingLogger",
    "TrackingUnavailableError",
    "Trial",
    "TrialState",
    "TrialStore",
    "crowding_distance",
    "hypervolume",
    "mirror_study",
    "non_dominated",
    "non_dominated_rank",
    "parse_limits",
    "redact",
    "tracking_uri",
    "write_atomically",
]

_LATER = {
    "Mirror": "trials.mirror",
    "MirrorReport": "trials.mirror",
    "ModelNotFoundError": "trials.tracking",
    "Proxy": "trials.proxy",
    "RayExecutor": "trials.ray_executor",
    "ResolvedModel": "trials.tracking",
    "StoreUnavailableError": "trials.storages",
    "StudyNotFoundError": "trials.store",
    "Tracker": "trials.tracking",
    "TrackingLogger": "trials.logger",
    "TrackingUnavailableError": "trials.tracking_address",
    "TrialStore": "trials.store",
    "mirror_study": "trials.mirror",
    "tracking_uri": "trials.tracking_address",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'trials' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
