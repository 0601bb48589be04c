import doctest
import importlib
import pkgutil

import pytest

import search_spaces


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(search_spaces.__path__)])
def test_the_examples_of_the_documentation_run(name):
    result = doctest.testmod(importlib.import_module(f"search_spaces.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name not in {"factory", "layers", "mlp", "seeding"}


def test_every_public_name_exists():
    assert all(hasattr(search_spaces, name) for name in search_spaces.__all__)
    assert search_spaces.__all__ == sorted(search_spaces.__all__, key=lambda n: (not n.isupper(), n.islower(), n))
