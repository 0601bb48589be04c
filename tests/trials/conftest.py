import os
import socket
import sys
from pathlib import Path

import pytest

from benchmarks._postgres import empty

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def here():
    return Path(__file__).parent


@pytest.fixture
def root():
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def proxy(database):
    """Optuna's gRPC proxy in front of that server."""
    from trials.proxy import Proxy

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with Proxy(database, port=port):
        yield f"grpc://localhost:{port}"


@pytest.fixture
def storage_url(tmp_path, request):
    """Return a function that gives the address of an empty storage of some kind."""

    def make(kind):
        if kind in ("postgresql", "grpc"):
            database = request.getfixturevalue("database")
            empty(database)
            return database if kind == "postgresql" else request.getfixturevalue("proxy")
        return str(tmp_path / "s.journal") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"

    return make
