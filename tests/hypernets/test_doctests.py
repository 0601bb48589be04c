import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import hypernets

MODULES = ["hypernets", *(f"hypernets.{module.name}" for module in pkgutil.iter_modules(hypernets.__path__))]
SHOWN = {"hypernets", "hypernets.target", "hypernets.dense", "hypernets.chunked", "hypernets.recurrent"}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_documentation_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in SHOWN


def test_the_guide_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "hypernets.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    exec("\n".join(blocks), {})


def test_every_public_name_exists():
    assert all(hasattr(hypernets, name) for name in hypernets.__all__)
    assert hypernets.__all__ == sorted(hypernets.__all__, key=lambda n: (n.islower(), n))
