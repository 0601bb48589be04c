"""Where MLflow is, and whether it can be written: asked before anything is begun, without importing it."""

import os
import re
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

from trials.urls import redact

__all__ = ["TrackingUnavailableError", "artifact_location", "check_tracking", "tracking_uri", "unavailable"]

_PROBE_TIMEOUT_S = 5.0


class TrackingUnavailableError(RuntimeError):
    """MLflow is absent, unreachable or not writable."""


def tracking_uri(uri: str | None = None) -> str:
    """Return an absolute tracking address.

    Args:
        uri: An address, ``None`` for ``MLFLOW_TRACKING_URI`` or, without it, ``mlflow.db`` in the working directory.

    Returns:
        The address; the path of a sqlite address is made absolute, so that it means the same in every process.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not chosen.startswith("sqlite:///"):
        return chosen
    return f"sqlite:///{Path(chosen.removeprefix('sqlite:///')).absolute()}"


def artifact_location(uri: str, experiment: str) -> str | None:
    """Return where the artifacts of a new experiment go: beside the database, or where a server decides."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(tracking_uri(uri).removeprefix("sqlite:///")).parent / "mlartifacts"
    return (folder / re.sub(r"[^\w.-]", "_", experiment)).as_uri()


def check_tracking(uri: str) -> None:
    """Find out within seconds whether MLflow can be written, where its client would retry for minutes.

    Raises:
        TrackingUnavailableError: With the address, the reason and the way out.
    """
    try:
        if uri.startswith("sqlite:///"):
            path = Path(uri.removeprefix("sqlite:///"))
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=_PROBE_TIMEOUT_S)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("CREATE TABLE IF NOT EXISTS weightloom_probe (id INTEGER)")
                database.rollback()
        elif uri.startswith(("http://", "https://")):
            with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=_PROBE_TIMEOUT_S):
                return
    except urllib.error.HTTPError:
        return  # somebody answers; what it thinks of us is for the client to find out
    except (OSError, sqlite3.Error) as error:
        raise unavailable(uri, error) from error


def unavailable(uri: str, error: BaseException) -> TrackingUnavailableError:
    """Return the error that says that an address cannot be used, and why."""
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return TrackingUnavailableError(
        f"MLflow must be reachable and writable at {redact(uri)}, it is not ({reason}); "
        "check the address, the permissions and, for a server, that it runs"
    )
