"""MLflow, where people look: runs, artifacts and registered models.

Everything goes through a client with explicit ids; no global active run is touched. MLflow costs more than a second to
import, so it is imported when a tracker is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trials.registered_models import ModelNotFoundError, RegisteredModels, ResolvedModel
from trials.tracking_address import (
    TrackingUnavailableError,
    artifact_location,
    check_tracking,
    tracking_uri,
    unavailable,
)
from trials.urls import redact

__all__ = [
    "ModelNotFoundError",
    "Point",
    "ResolvedModel",
    "TrackedRun",
    "Tracker",
    "is_mlflow_trouble",
    "log_new_params",
    "tracking_name",
]

_BATCH = 100
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000
_FORBIDDEN = re.compile(r"[^\w./ -]")


@dataclass(frozen=True)
class Point:
    """One value of a metric: its name, the value, seconds since the epoch and a step."""

    name: str
    value: float
    time: float
    step: int = 0


@dataclass(frozen=True)
class TrackedRun:
    """A run as MLflow knows it: its id, its status and its tags."""

    run_id: str
    status: str
    tags: Mapping[str, str]


def tracking_name(name: str) -> str:
    """Return a metric, parameter or tag name with what MLflow does not accept replaced by underscores."""
    return _FORBIDDEN.sub("_", name)


def log_new_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    """Log the parameters that a run does not have yet; those it has cannot be changed.

    Args:
        client: An ``MlflowClient``.
        run_id: The run.
        params: Texts by parameter name.
    """
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    named = {tracking_name(key): value[:_LONGEST_PARAM] for key, value in params.items()}
    fresh = [Param(key, value) for key, value in named.items() if key not in known]
    for start in range(0, len(fresh), _BATCH):
        client.log_batch(run_id, params=fresh[start : start + _BATCH])


class Tracker:
    """One experiment of one MLflow.

    Args:
        uri: Tracking address, see :func:`trials.tracking_uri`.
        experiment: Name of the experiment, created when it is needed with its artifacts beside the database.

    Raises:
        TrackingUnavailableError: If MLflow is not installed, or cannot be reached or written.
    """

    def __init__(self, uri: str | None = None, experiment: str = "weightloom") -> None:
        self.uri = tracking_uri(uri)
        self.experiment = experiment
        check_tracking(self.uri)
        with self._translated():
            from mlflow import MlflowClient

            self._client = MlflowClient(self.uri, registry_uri=self.uri)
        self._models = RegisteredModels(self._client, self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """Id of the experiment, which is created by whoever first needs it."""
        with self._translated():
            found = self._client.get_experiment_by_name(self.experiment)
            if found is not None:
                return str(found.experiment_id)
            location = artifact_location(self.uri, self.experiment)
            tags = {"mlflow.experimentKind": "custom_model_development"}  # or its pages are those of language agents
            try:
                return str(self._client.create_experiment(self.experiment, artifact_location=location, tags=tags))
            except Exception:
                found = self._client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
                return str(found.experiment_id)  # another process was faster

    def start_run(
        self, name: str, *, tags: Mapping[str, str], parent: str | None = None, started: float | None = None
    ) -> str:
        """Create a run and return its id.

        Args:
            name: What people see.
            tags: Tags of the run.
            parent: Id of the run under which it is shown.
            started: Seconds since the epoch; now when left out.
        """
        nested = {} if parent is None else {"mlflow.parentRunId": parent}
        with self._translated():
            run = self._client.create_run(
                self.experiment_id,
                start_time=None if started is None else int(started * 1000),
                tags={key: value[:_LONGEST_TAG] for key, value in {**tags, **nested}.items()},
                run_name=name,
            )
        return str(run.info.run_id)

    def runs(self, tags: Mapping[str, str]) -> list[TrackedRun]:
        """Return the runs of the experiment that carry all these tags, oldest first."""
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found: list[TrackedRun] = []
        token: str | None = None
        with self._translated():
            while True:
                page = self._client.search_runs(
                    [self.experiment_id],
                    query,
                    max_results=1000,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                found += [TrackedRun(run.info.run_id, run.info.status, dict(run.data.tags)) for run in page]
                token = page.token
                if not token:
                    return found

    def log(
        self,
        run_id: str,
        *,
        points: Iterable[Point] = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write metrics, parameters and tags of a run in as few calls as MLflow allows.

        Values that are infinite or not a number are left out: MLflow would store a stand-in that looks measured.
        """
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(tracking_name(point.name), point.value, int(point.time * 1000), point.step)
            for point in points
            if math.isfinite(point.value)
        ]
        pairs = [Param(tracking_name(key), str(value)[:_LONGEST_PARAM]) for key, value in (params or {}).items()]
        labels = [RunTag(tracking_name(key), value[:_LONGEST_TAG]) for key, value in (tags or {}).items()]
        with self._translated():
            for start in range(0, max(len(metrics), len(pairs), len(labels)), _BATCH):
                part = slice(start, start + _BATCH)
                self._client.log_batch(run_id, metrics=metrics[part], params=pairs[part], tags=labels[part])

    def last_step(self, run_id: str, metric: str) -> int | None:
        """Return the highest step at which a metric of a run was logged."""
        with self._translated():
            history = self._client.get_metric_history(run_id, tracking_name(metric))
        return max((entry.step for entry in history), default=None)

    def end_run(self, run_id: str, status: str, *, finished: float | None = None) -> None:
        """End a run as ``FINISHED``, ``FAILED`` or ``KILLED``, at a time in seconds since the epoch."""
        with self._translated():
            self._client.set_terminated(run_id, status, None if finished is None else int(finished * 1000))

    def reopen_run(self, run_id: str) -> None:
        """Set an ended run back to ``RUNNING``."""
        with self._translated():
            self._client.update_run(run_id, status="RUNNING")

    def delete_run(self, run_id: str) -> None:
        """Remove a run from sight."""
        with self._translated():
            self._client.delete_run(run_id)

    def log_artifacts(self, run_id: str, folder: str | os.PathLike[str], path: str | None = None) -> None:
        """Upload a folder under a run, optionally below ``path``.

        Raises:
            FileNotFoundError: If the folder does not exist.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"the folder to log must exist, got {os.fspath(folder)}")
        with self._translated():
            self._client.log_artifacts(run_id, os.fspath(folder), path)

    def log_config(self, run_id: str, text: str, file: str = "config.yaml") -> None:
        """Keep a configuration as a text artifact of a run."""
        with self._translated():
            self._client.log_text(run_id, text, file)

    def fetch(self, run_id: str, path: str, folder: str | os.PathLike[str]) -> Path:
        """Copy one artifact of a run below ``folder`` and return the copy.

        Raises:
            FileNotFoundError: If the run has no such artifact.
        """
        with self._translated():
            try:
                return Path(self._client.download_artifacts(run_id, path, os.fspath(folder)))
            except Exception as error:
                raise FileNotFoundError(f"run {run_id} must have the artifact {path}, it has not ({error})") from error

    def register_folder(
        self,
        folder: str | os.PathLike[str],
        name: str,
        *,
        alias: str | Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        kind: str = "subnetwork",
        description: str = "",
    ) -> int:
        """Make a folder a new version of a registered model.

        The version appears after its files are uploaded and the aliases move last, so that nobody resolves a model that
        is half there.

        Args:
            folder: The files.
            name: Name of the registered model, created when missing.
            alias: Aliases that shall point to the new version.
            tags: Tags of the version.
            run_id: The run that made the files.
            kind: Type of the logged model, such as ``supernet``.
            description: What people read of the version, in Markdown.

        Returns:
            The version.

        Raises:
            FileNotFoundError: If the folder does not exist.
            TrackingUnavailableError: If MLflow refuses.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"the folder to register must exist, got {os.fspath(folder)}")
        with self._translated():
            model = self._client.create_logged_model(
                self.experiment_id, tracking_name(name), source_run_id=run_id, tags=dict(tags or {}), model_type=kind
            )
            self._client.log_model_artifacts(model.model_id, os.fspath(folder))
            self._client.finalize_logged_model(model.model_id, "READY")
            return self._models.add(
                name,
                model,
                aliases=(alias,) if isinstance(alias, str) else alias,
                tags=dict(tags or {}),
                run_id=run_id,
                description=description,
            )

    def version_tags(self, name: str, tags: Mapping[str, str]) -> dict[str, str]:
        """Return all tags of the newest version of a registered model that carries ``tags``; empty if none does."""
        with self._translated():
            versions = self._client.search_model_versions(f"name = '{name}'", max_results=1000)
        fitting = [version for version in versions if tags.items() <= dict(version.tags).items()]
        return dict(max(fitting, key=lambda version: int(version.version)).tags) if fitting else {}

    def log_dataset(
        self, run_id: str, name: str, *, source: Mapping[str, Any], profile: Mapping[str, Any], context: str
    ) -> None:
        """Record which data a run has used.

        Args:
            run_id: The run.
            name: What people see.
            source: How the data is made, as JSON; its digest is that of the data.
            profile: Facts about it, as JSON.
            context: What it was used for, such as ``training``.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        text = json.dumps(source, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        used = Dataset(name, digest, "code", text, profile=json.dumps(profile))
        with self._translated():
            self._client.log_inputs(
                run_id, datasets=[DatasetInput(used, tags=[InputTag("mlflow.data.context", context)])]
            )

    def tag_version(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a model version."""
        with self._translated():
            for key, value in tags.items():
                self._client.set_model_version_tag(name, str(version), key, value)

    def resolve(self, uri: str) -> ResolvedModel:
        """Find a registered model version and make its files local.

        Args:
            uri: ``models:/NAME@alias`` or ``models:/NAME/3``.

        Raises:
            ValueError: If the address has another form.
            ModelNotFoundError: If nothing answers to it, naming what is there.
        """
        with self._translated():
            return self._models.resolve(uri)

    def present_version(self, uri: str) -> int:
        """Return the version that an address stands for now, without fetching its files; see :meth:`resolve`."""
        with self._translated():
            return int(self._models.find(uri).version)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what MLflow and its layers raise into one error of ours."""
        try:
            yield
        except (TrackingUnavailableError, ModelNotFoundError, FileNotFoundError):
            raise
        except ImportError as error:
            raise TrackingUnavailableError(
                f"MLflow must be installed to write to {redact(self.uri)}, it is not ({error}); pip install mlflow"
            ) from error
        except Exception as error:
            if not is_mlflow_trouble(error):
                raise
            raise unavailable(self.uri, error) from error


def is_mlflow_trouble(error: Exception) -> bool:
    """Return whether the error comes from MLflow, its database layer, its transport or the file system."""
    origins: Any = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(origins & {"mlflow", "sqlalchemy", "sqlite3", "requests", "alembic"})
