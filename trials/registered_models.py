"""Models registered in MLflow: versions behind addresses, and where their files are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from urllib.parse import unquote, urlparse

from trials.urls import redact

__all__ = ["ModelNotFoundError", "RegisteredModels", "ResolvedModel"]

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


class ModelNotFoundError(LookupError):
    """No registered model answers to a model address."""


@dataclass(frozen=True)
class ResolvedModel:
    """A registered model version and a local folder with its files.

    Args:
        folder: The files, read-only by convention.
        name: Name of the registered model.
        version: Its version.
        tags: Tags of the version.
        run_id: The run that made it, if known.
    """

    folder: Path
    name: str
    version: int
    tags: Mapping[str, str]
    run_id: str | None


@final
class RegisteredModels:
    """The model registry of one MLflow; errors are those of MLflow.

    Args:
        client: An ``MlflowClient``.
        uri: Its tracking address.
    """

    def __init__(self, client: Any, uri: str) -> None:
        self._client = client
        self._uri = uri

    def add(
        self,
        name: str,
        model: Any,
        *,
        aliases: Sequence[str],
        tags: Mapping[str, str],
        run_id: str | None,
        description: str,
    ) -> int:
        """Make a logged model whose files are there a new version, and return the version.

        The aliases move last, so that nobody resolves a model that is half there.
        """
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            name,
            model.artifact_location,
            run_id=run_id,
            tags=tags,
            # The registry would look up a model id without a run in whatever MLflow is the global default.
            model_id=model.model_id if run_id else None,
            description=description or None,
        )
        for alias in aliases:
            self._client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)

    def resolve(self, uri: str) -> ResolvedModel:
        """Find a version and make its files local; see :meth:`find`."""
        version = self.find(uri)
        folder = self._local(str(version.source))
        return ResolvedModel(
            folder, str(version.name), int(version.version), dict(version.tags), version.run_id or None
        )

    def find(self, uri: str) -> Any:
        """Return the version that an address stands for now.

        Raises:
            ValueError: If the address has another form than ``models:/NAME@alias`` or ``models:/NAME/3``.
            ModelNotFoundError: If nothing answers to it, naming what is there.
        """
        match = _MODEL_URI.fullmatch(uri)
        if match is None:
            raise ValueError(f"a model address must read models:/NAME@alias or models:/NAME/3, got {uri!r}")
        name, alias, number = match["name"], match["alias"], match["version"]
        from mlflow.exceptions import MlflowException

        try:
            find = self._client.get_model_version_by_alias if alias else self._client.get_model_version
            return find(name, alias or number)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise ModelNotFoundError(
                f"{uri} must be a registered model in {redact(self._uri)}, it is not; there is: {self._known(name)}"
            ) from None

    def _known(self, name: str) -> str:
        models = {model.name: model for model in self._client.search_registered_models(max_results=100)}
        if name not in models:
            return "models " + (", ".join(sorted(models)) or "none")
        versions = [version.version for version in self._client.search_model_versions(f"name = '{name}'")]
        aliases = self._client.get_registered_model(name).aliases
        return f"versions {sorted(int(item) for item in versions)}, aliases {sorted(aliases) or 'none'}"

    def _local(self, source: str) -> Path:
        parsed = urlparse(source)
        if parsed.scheme == "file":
            return Path(unquote(parsed.path))
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=source, tracking_uri=self._uri))
