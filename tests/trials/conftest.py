import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def here():
    return Path(__file__).parent


@pytest.fixture
def root():
    return Path(__file__).parents[2]
