"""Single sections of a configuration, built as `nas fit` would build them, without the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nas.commands.boundary import UsageError
from nas.commands.functions import OneLineErrors
from nas.commands.places import Placing

__all__ = ["build_section", "build_sections", "read_yaml"]


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Read a configuration file.

    Raises:
        UsageError: it does not exist, cannot be read, or is no mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"the configuration {path} does not exist; give the YAML file of the experiment") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UsageError(f"the configuration {path} must be a mapping with sections such as model, data and search")
    return tree


def build_sections(tree: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Build what stands under some dotted keys.

    Args:
        tree: a configuration.
        kinds: dotted key -> type; keys that the tree does not have are left out of the result.

    Raises:
        UsageError: something does not fit its type; the message names the key.
    """
    present = {key: value for key in kinds if (value := _at(tree, key)) is not None}
    parser = OneLineErrors()
    given: dict[str, Any] = {}
    for key, value in present.items():
        parser.add_argument(f"--{key}", type=kinds[key])
        _put(given, key, value)
    parsed = parser.parse_object(given)
    made = parser.instantiate(parsed, instantiators=[(Placing(parsed.as_dict()), object, True)])
    return {key: made[key] for key in present}


def build_section(path: Path, key: str, kind: Any) -> Any:
    """Read a file and build what stands under one dotted key of it.

    Raises:
        UsageError: the file cannot be used, or has no such key.
    """
    made = build_sections(read_yaml(path), {key: kind})
    if key not in made:
        raise UsageError(f"{path} must have the section {key}; see configs/digits.yaml")
    return made[key]


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[leaf] = value
