"""Folders that MLflow can load and serve as models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["package_model"]


def package_model(
    folder: str | os.PathLike[str],
    code: str | os.PathLike[str],
    *,
    artifacts: Mapping[str, str | os.PathLike[str]],
    config: Mapping[str, Any],
    requirements: Sequence[str],
) -> Path:
    """Write a pyfunc model from code: nothing is pickled, and loading runs ``code`` alone.

    Args:
        folder: written; it must not exist.
        code: file that calls ``mlflow.models.set_model``.
        artifacts: folders that the code finds as ``context.artifacts``; each is copied to ``artifacts/<its own name>``.
        config: what the code finds as ``context.model_config``; JSON values.
        requirements: packages that serving installs, unless it uses the environment as it is.

    Returns:
        ``folder``.
    """
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        os.fspath(folder),
        python_model=os.fspath(code),
        artifacts={name: os.fspath(place) for name, place in artifacts.items()},
        model_config=dict(config),
        pip_requirements=list(requirements),
    )
    return Path(folder)
