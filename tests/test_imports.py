"""The direction of imports, the fences round third parties, and what importing a package may do."""

import ast
import fnmatch
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED: Mapping[str, frozenset[str]] = {
    "search_spaces": frozenset(),
    "hypernets": frozenset(),
    "trials": frozenset(),
    "supernets": frozenset({"search_spaces", "hypernets"}),
    "nas": frozenset({"search_spaces", "hypernets", "trials", "supernets"}),
}
FENCES: Mapping[str, tuple[str, ...]] = {
    "mlflow": (
        "trials/registered_models.py",
        "trials/tracking.py",
        "trials/logger.py",
        "trials/packaging.py",
        "nas/scoring.py",
        "nas/mlflow_model.py",
    ),
    "optuna": (
        "trials/entries.py",
        "trials/ledger.py",
        "trials/proxy.py",
        "trials/storages.py",
        "nas/controllers/optuna.py",
    ),
    "ray": ("trials/ray_executor.py",),
    "onnx": ("supernets/formats.py", "supernets/lowbit*.py", "nas/operators.py"),
    "onnxruntime": ("supernets/formats.py", "supernets/lowbit*.py", "nas/runtime.py"),
    "nni": ("nas/controllers/nni*.py", "nas/nni_*.py"),
    "torch_geometric": ("nas/data/planetoid.py",),
    "fastapi": ("nas/service/*.py",),
    "uvicorn": ("nas/service/*.py",),
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a tree imports, inside functions too; ``from a import b`` yields ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(file: str, source: str) -> list[str]:
    """Forbidden imports of one file, given by its path from the root."""
    package = file.partition("/")[0]
    roots = {name.partition(".")[0] for name in imported(ast.parse(source))}
    upward = roots & ALLOWED.keys() - ALLOWED[package] - {package}
    fenced = {
        name for name in roots & FENCES.keys() if not any(fnmatch.fnmatch(file, pattern) for pattern in FENCES[name])
    }
    return [f"{file} imports {name}" for name in sorted(upward | fenced)]


def sources() -> dict[str, str]:
    files = (file for package in ALLOWED for file in sorted((ROOT / package).rglob("*.py")))
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("search_spaces/a.py", "def f():\n    import supernets.x", ["search_spaces/a.py imports supernets"]),
        ("trials/a.py", "from nas import loop", ["trials/a.py imports nas"]),
        ("hypernets/a.py", "from search_spaces.space import SearchSpace", ["hypernets/a.py imports search_spaces"]),
        ("nas/a.py", "import mlflow.pytorch", ["nas/a.py imports mlflow"]),
        ("nas/controllers/a.py", "from optuna import create_study", ["nas/controllers/a.py imports optuna"]),
        ("nas/settings.py", "import ray", ["nas/settings.py imports ray"]),
        ("nas/controllers/nni_proxy.py", "import nni", []),
        ("trials/ledger.py", "import optuna", []),
        ("supernets/a.py", "import hypernets, search_spaces, supernets.rules", []),
    ],
)
def test_violations_are_found(file: str, source: str, expected: list[str]) -> None:
    assert violations(file, source) == expected


def test_imports_point_downwards_and_respect_the_fences() -> None:
    found = sources()
    assert found
    assert [line for file, source in found.items() for line in violations(file, source)] == []


def module_level(tree: ast.Module) -> ast.Module:
    """The statements that run at import: no functions, no ``if TYPE_CHECKING``."""
    kept = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return ast.Module(body=kept, type_ignores=[])


def test_modules_import_each_other_without_cycles() -> None:
    trees = {
        file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): ast.parse(source)
        for file, source in sources().items()
    }
    graph = {name: set(imported(module_level(tree))) & trees.keys() - {name} for name, tree in trees.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert sorted(order) == sorted(trees)


PROBE = """
import json, sys, threading
import {package}
print(json.dumps({{
    "modules": sorted({{name.partition(".")[0] for name in sys.modules}}),
    "threads": threading.active_count(),
    "cuda": "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized(),
}}))
"""


@pytest.mark.parametrize("package", [name for name, below in ALLOWED.items() if not below])
def test_a_leaf_package_imports_alone_and_does_nothing_else(package: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(place)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE.format(package=package)],
        cwd=place,
        env=environment | {"HF_HOME": str(place / "huggingface")},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    ours = set(report["modules"]) & ALLOWED.keys()
    assert ours == {package}
    assert not {"lightning", "pytorch_lightning", "nni"} & set(report["modules"])
    assert report["threads"] == 1
    assert not report["cuda"]
    assert list(place.iterdir()) == []
