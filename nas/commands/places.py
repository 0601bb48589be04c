"""Where in a configuration an object stands whose constructor refuses what it is given."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Union, final, get_args, get_origin, get_type_hints

from nas.commands.boundary import UsageError
from search_spaces import load
from supernets import trusted

__all__ = ["ConfigurationError", "Placing"]

_KNOWN = {name.partition(".")[0] for name in trusted()} | {"lightning"}  # packages; of others NaN may be a value
Node = tuple[str, str | None, Mapping[str, Any]]


class ConfigurationError(UsageError):
    """An object of a configuration cannot be made; the message begins with its place, such as ``model.rule``."""


@final
class Placing:
    """Makes the objects of a configuration, and tells what a constructor refuses with its place in the file.

    It may be pickled: workers get factories that hold it. Errors of files, imports and types of our own pass as they
    are; they name what they are about.

    Args:
        tree: the configuration, its sections being the keys.
        sections: classes of the sections that are not told by a ``class_path``.

    Raises:
        ConfigurationError: an argument of a class that is not the user's is not a number (NaN), which hardly any
            comparison notices, or stands where the options of a dataclass belong, which the parser does not.
    """

    def __init__(self, tree: Mapping[str, Any], sections: Mapping[str, type] | None = None) -> None:
        self.tree = _plain(tree)
        for place, value in _values(self.tree, ""):
            if isinstance(value, float) and math.isnan(value):
                raise ConfigurationError(f"{place} must be a number, got nan")
        kinds = sections or {}
        for place, path, arguments in _nodes(self.tree, ""):
            kind = kinds.get(place) if path is None else _loaded(path)
            if kind is not None:
                _check_groups(place, kind, arguments)

    def __call__(self, kind: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Return ``kind(*args, **kwargs)``.

        Raises:
            ConfigurationError: in place of an error of Python's own.
        """
        try:
            return kind(*args, **kwargs)
        except Exception as error:
            if type(error).__module__ != "builtins" or isinstance(error, OSError | ImportError):
                raise
            raise ConfigurationError(self._explained(kind, kwargs, error)) from error

    def _explained(self, kind: Any, given: Mapping[str, Any], error: Exception) -> str:
        text = str(error)
        if not isinstance(error, ValueError):
            text = f"{kind.__name__} takes something else than it is given ({type(error).__name__}: {error})"
        place = self._place(kind, given)
        section = place.partition(".")[0]
        return text if text.startswith((f"{section}.", f"{section}:")) else f"{place}: {text}"

    def _place(self, kind: Any, given: Mapping[str, Any]) -> str:
        """Return the place of the node that ``kind`` was made of, or its name where several or none could be."""
        named = [
            node for node in _nodes(self.tree, "") if node[1] is None or node[1].rpartition(".")[2] == kind.__name__
        ]
        fitting = [place for place, name, values in named if _fits(values, given, whole=name is None)]
        return fitting[0] if len(fitting) == 1 else str(kind.__name__)


def _loaded(path: str) -> Any:
    """Return what the path names, or ``None``: plain options of a user's class may be called ``class_path`` too."""
    try:
        return load(path)
    except (ValueError, ImportError):
        return None


def _is_class(tree: Mapping[str, Any]) -> bool:
    return isinstance(tree.get("class_path"), str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else None


def _check_groups(place: str, kind: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse what is no mapping where ``kind`` takes the options of a dataclass."""
    for name, wanted in _groups(kind).items():
        if isinstance(arguments.get(name), bool | int | float | str | list):
            raise ConfigurationError(
                f"{place}.{name} must be a mapping of the options of {wanted}, got {arguments[name]}"
            )


def _groups(kind: Any) -> dict[str, str]:
    """Return the parameters that take a dataclass and nothing else -> its name."""
    try:
        hints = get_type_hints(kind.__init__)
    except (NameError, TypeError, AttributeError):  # of a user's class, or a function
        return {}
    found = {}
    for name, hint in hints.items():
        kinds = [part for part in get_args(hint) or (hint,) if part is not type(None)]
        if len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]) and get_origin(hint) in (None, Union, UnionType):
            found[name] = getattr(kinds[0], "__name__", "")
    return found


def _values(tree: Any, place: str, *, ours: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield (place without ``init_args``, value) of what holds nothing else and is for no class of the user."""
    if isinstance(tree, list):
        for number, item in enumerate(tree):
            yield from _values(item, f"{place}[{number}]", ours=ours)
    elif isinstance(tree, dict):
        inner = tree["class_path"].partition(".")[0] in _KNOWN if _is_class(tree) else ours
        for key, item in tree.items():
            yield from _values(item, _inner(place, key), ours=inner)
    elif ours:
        yield place, tree


def _inner(place: str, key: str) -> str:
    return place if key == "init_args" else f"{place}.{key}" if place else key


def _nodes(tree: Any, place: str) -> Iterator[Node]:
    """Yield (place, path of the class, arguments) of every mapping, ``init_args`` being no part of a place."""
    if isinstance(tree, list):
        for number, item in enumerate(tree):
            yield from _nodes(item, f"{place}[{number}]")
    if not isinstance(tree, dict):
        return
    arguments = tree
    if _is_class(tree):
        arguments = tree.get("init_args") or {}
        yield place, tree["class_path"], arguments
    elif place:
        yield place, None, arguments
    for key, item in arguments.items():
        yield from _nodes(item, _inner(place, key))


def _fits(values: Mapping[str, Any], given: Mapping[str, Any], *, whole: bool) -> bool:
    """Whether an object made with ``given`` may be that of a node, ``whole``: which has no class but its keys."""
    if whole and values.keys() != given.keys():
        return False
    told = {key: item for key, item in values.items() if _is_final(item)}
    return all(key in given and repr(_plain(given[key])) == repr(item) for key, item in told.items())


def _is_final(item: Any) -> bool:
    """Whether a value is passed to the constructor as it is, rather than something that is made of it."""
    if isinstance(item, list):
        return bool(item) and all(_is_final(part) for part in item)
    return isinstance(item, bool | int | float) or (isinstance(item, str) and "." not in item)
