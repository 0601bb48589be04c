import doctest
import importlib
import pkgutil

import pytest

import hypernets


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(hypernets.__path__)])
def test_the_examples_of_the_documentation_run(name):
    result = doctest.testmod(importlib.import_module(f"hypernets.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name not in {"target", "dense", "chunked", "recurrent"}


def test_every_public_name_exists():
    assert all(hasattr(hypernets, name) for name in hypernets.__all__)
    assert hypernets.__all__ == sorted(hypernets.__all__, key=lambda n: (n.islower(), n))
