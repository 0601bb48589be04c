import functools
import gc
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings


def forget() -> None:
    """Remove settings from the environment for good: the user's, and the address that Lightning's logger leaves."""
    for variable in [name for name in os.environ if name.startswith(("MLFLOW_", "NAS_", "OPTUNA_"))]:
        if variable != "MLFLOW_DISABLE_TELEMETRY":
            del os.environ[variable]


forget()
# MLflow and the Hugging Face libraries read these when a test module imports them.
CACHES = tempfile.TemporaryDirectory(prefix="weightloom-tests-")
os.environ |= {
    "DO_NOT_TRACK": "true",
    "HF_HOME": CACHES.name,
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


PROGRAMS = {"run_code", "run_nas", "run_script", "start_script"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test and all that start programs, so that one worker alone makes what these fork from."""

    def place(item: pytest.Item) -> tuple[bool, bool]:
        programs = isinstance(item, pytest.Function) and bool(PROGRAMS & vars(item.module).keys())
        return item.path.name != "test_readme.py", not programs

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Let every Lightning trainer that is made look for the plug-ins of the environment once and not again."""
    registry = sys.modules.get("lightning.fabric.utilities.registry")
    if registry is not None:
        registry.entry_points = functools.cache(registry.entry_points)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No setting of the user reaches a test, none reaches the next test, and nobody's caches are written."""
    forget()
    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("HF_HOME", str(caches / "huggingface"))
    yield caches
    forget()


@pytest.fixture(autouse=True)
def fixed_state() -> Iterator[None]:
    """Every test starts from the same random state and leaves torch's global settings as it found them."""
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes half a millisecond to look for accelerators
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        yield
    torch.set_default_dtype(torch.float32)
    if torch.are_deterministic_algorithms_enabled():  # asking first saves an import of a second
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """One PostgreSQL server for the whole session."""
    from benchmarks._postgres import postgres

    with postgres() as url:
        yield url
        gc.collect()  # stores that nobody holds any more close their connections while there is a server


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, to be copied: creating them takes a second each time."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of MLflow and its layers are theirs
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"
