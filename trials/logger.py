"""The MLflow logger of a Lightning ``Trainer``, without the traps of the stock one."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from trials.tracking import Tracker, is_mlflow_trouble, log_new_params
from trials.tracking_address import artifact_location, check_tracking
from trials.tracking_address import tracking_uri as absolute_uri

__all__ = ["TrackingLogger"]

_LONGEST = 500
_FILE = "hyperparameters.json"


class TrackingLogger(MLFlowLogger):
    """Logs a fit as an MLflow run, in ``mlflow.db`` unless told otherwise.

    Differs from Lightning's logger: the database and the artifacts beside it are found by default; parameters are
    named ``hp/...``; a long value becomes the artifact ``hyperparameters.json`` instead of being cut; logging other
    parameters when a run is continued does not end the fit; MLflow going away during a fit costs the rest of its
    metrics and a warning, not the fit; there is a folder for checkpoints, ``save_dir``.

    It extends a concrete class because Lightning's own callbacks recognise an MLflow logger by that class.

    Args:
        experiment_name: Experiment of the run.
        run_name: What people see; MLflow finds a name when left out.
        tracking_uri: Where MLflow is; ``MLFLOW_TRACKING_URI`` or ``mlflow.db`` here when left out.
        tags: Tags of the run, besides ``nas.kind=fit``.
        save_dir: Folder for checkpoints and other local files.
        log_model: Whether checkpoints are uploaded, see Lightning.
        run_id: Run to continue.
        system_metrics: Whether CPU, memory, disk, network and GPU of the machine are logged every ten seconds; ``None``
            asks ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING``, as MLflow itself does.

    Raises:
        TrackingUnavailableError: If MLflow cannot be reached or written.
    """

    def __init__(
        self,
        experiment_name: str = "weightloom",
        *,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        save_dir: str = "runs",
        log_model: Literal[True, False, "all"] = False,
        run_id: str | None = None,
        system_metrics: bool | None = None,
    ) -> None:
        address = absolute_uri(tracking_uri)
        check_tracking(address)
        _create_experiment(address, experiment_name)
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=address,
            tags={"nas.kind": "fit", **(tags or {})},
            log_model=log_model,
            artifact_location=artifact_location(address, experiment_name),
            run_id=run_id,
        )
        self.experiment_name = experiment_name
        self.tracking_uri = address
        self._folder = save_dir
        self._away = False
        flag = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("true", "1")
        self.system_metrics = flag if system_metrics is None else system_metrics
        self._monitor: Any = None

    @property
    def save_dir(self) -> str:
        """The folder under which Lightning writes checkpoints, as ``<experiment id>/<run id>/checkpoints``."""
        return self._folder

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Log the leaves of a nested configuration as parameters ``hp/...``.

        A parameter that the run has already keeps its value: MLflow refuses changes.
        """
        self._try(self._watch)
        self._try(self._log_leaves, params)

    def _watch(self) -> None:
        """Start the monitor of the machine, where it is wanted and not running."""
        if not self.system_metrics or self._monitor is not None:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        make: Any = SystemMetricsMonitor
        self._monitor = make(str(self.run_id), resume_logging=True, tracking_uri=self.tracking_uri)
        self._monitor.start()

    def _log_leaves(self, params: dict[str, Any] | Namespace) -> None:
        leaves = dict(_leaves(vars(params) if isinstance(params, Namespace) else params))
        long = {key for key, value in leaves.items() if len(value) > _LONGEST}
        if long:
            self.experiment.log_text(self.run_id, json.dumps(leaves, indent=2), _FILE)
        shown = {f"hp/{key}": f"see {_FILE}" if key in long else value for key, value in leaves.items()}
        log_new_params(self.experiment, str(self.run_id), shown)

    @rank_zero_only
    def log_config(self, text: str) -> None:
        """Keep a configuration as ``config.yaml`` of the run."""
        self._try(lambda: self.experiment.log_text(self.run_id, text, "config.yaml"))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, until MLflow goes away."""
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """End the run, unless MLflow has gone away."""
        if self._monitor is not None:
            self._try(self._monitor.finish)
            self._monitor = None
        self._try(super().finalize, status)

    def _try(self, write: Callable[..., None], *values: Any) -> None:
        """Write, or skip it after the first failure: a client that retries would stall every step of the fit."""
        if self._away:
            return
        try:
            write(*values)
        except Exception as error:
            if not is_mlflow_trouble(error):
                raise
            self._away = True
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            rank_zero_warn(f"MLflow has gone away, training goes on without it: {reason}")


@rank_zero_only
def _create_experiment(address: str, name: str) -> None:
    """Make sure of the experiment, which Lightning would create as one of no kind."""
    _ = Tracker(address, name).experiment_id


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and text of every leaf but the instantiator that Lightning's command line leaves behind."""
    for key, value in tree.items():
        if key == "_instantiator":
            continue
        if isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", str(value)
