"""Objects as ``class_path`` / ``init_args`` trees, the form in which YAML and checkpoints name them.

Every configurable class keeps each constructor argument as an attribute of the same name; that is all it takes to
describe an object and to build it again, with no registry and no pickle. What Lightning's ``save_hyperparameters``
keeps in ``hparams`` counts too.
"""

import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["construct", "describe", "foreign", "import_path", "load"]

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def import_path(target: Any) -> str:
    """Return ``"package.module.Name"`` of a class or function, the shortest package that exports it.

    Raises:
        ValueError: the target cannot be imported by name (a lambda, a local function, something in ``__main__``).
    """
    module, name = target.__module__, target.__qualname__
    if module is None or module == "__main__" or "<" in name:
        raise ValueError(
            f"{module}.{name} cannot be imported by name, so a checkpoint could not refer to it; "
            "move it to the top level of a module"
        )
    package = module.partition(".")[0]
    if getattr(importlib.import_module(package), name, None) is target:
        return f"{package}.{name}"
    return f"{module}.{name}"


def load(path: str) -> Any:
    """Return what :func:`import_path` named.

    Raises:
        ValueError: nothing of that name can be imported.
    """
    module, _, name = path.rpartition(".")
    while module:
        try:
            return functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            module, _, head = module.rpartition(".")
            name = f"{head}.{name}"
        except AttributeError as error:
            raise ValueError(f"class_path {path!r}: {error}") from error
    raise ValueError(f"class_path {path!r} cannot be imported; is its module installed and on the path?")


def describe(value: Any, *, exclude: Sequence[str] = ()) -> Any:
    """Return ``value`` as a tree of JSON types: objects as ``class_path``, classes and functions as ``reference``.

    A ``functools.partial`` becomes ``partial`` with its keyword arguments, and so does what the YAML of a factory is
    read as (``cost: nas.BitOps``), a partial of the class in a wrapping of jsonargparse's own.

    Args:
        value: a scalar, a list, a mapping, a class or function, or an object that follows the convention above.
        exclude: constructor arguments of ``value`` to leave out, e.g. the space a weight source was given.

    Raises:
        ValueError: something in the tree has no import path or does not keep its constructor arguments.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if inspect.isclass(value) or inspect.isfunction(value) or inspect.isbuiltin(value):
        return {"reference": import_path(value)}
    if inspect.ismethod(value) and inspect.isclass(value.__self__):
        return {"reference": f"{import_path(value.__self__)}.{value.__name__}"}
    if isinstance(value, functools.partial):
        target, args = value.func, value.args
        wrapped = str(getattr(target, "__module__", None)).partition(".")[0] == "jsonargparse"
        if wrapped and args and inspect.isclass(args[-1]):
            target, args = args[-1], ()
        if args:
            raise ValueError(f"{value!r}: only keyword arguments of a partial can be described")
        return {"partial": import_path(target), "init_args": describe(value.keywords)}
    kind = type(value)
    names = [
        p.name
        for p in inspect.signature(kind).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in exclude
    ]
    saved = getattr(value, "hparams", None)
    kept: Mapping[str, Any] = saved if isinstance(saved, Mapping) else {}
    missing = [name for name in names if name not in kept and not hasattr(value, name)]
    if missing:
        raise ValueError(f"{import_path(kind)} must keep its constructor arguments as attributes; missing {missing}")
    arguments = {name: describe(getattr(value, name) if hasattr(value, name) else kept[name]) for name in names}
    return {"class_path": import_path(kind), "init_args": arguments}


def construct(tree: Any, expected: type | None = None, *, trusted: Sequence[str] | None = None, **extra: Any) -> Any:
    """Build what :func:`describe` returned, or what a user wrote in YAML.

    Args:
        tree: the tree; anything that is not a ``class_path``, ``reference`` or ``partial`` mapping or a container is
            returned as it is.
        expected: class of which the outermost object must be an instance.
        trusted: for a tree that comes with a file: packages or modules from which it may name classes and functions.
            ``None`` allows every importable name, which is right for what the user has written.
        extra: keyword arguments added to the outermost constructor, e.g. ``space=...`` for a weight source.

    Raises:
        ValueError: a path cannot be imported or is not trusted, an argument does not fit, or the result is of another
            class.
    """
    if trusted is not None:
        _check_trust(tree, trusted)
    if _is_node(tree, "class_path"):
        target = load(tree["class_path"])
        if expected is not None and not (inspect.isclass(target) and issubclass(target, expected)):
            raise ValueError(f"class_path {tree['class_path']!r} must name a subclass of {expected.__name__}")
        arguments = {name: construct(item) for name, item in (tree.get("init_args") or {}).items()}
        try:
            inspect.signature(target).bind(**arguments, **extra)
        except TypeError as error:
            raise ValueError(f"init_args of {tree['class_path']!r}: {error}") from error
        return target(**arguments, **extra)
    if expected is not None:
        raise ValueError(f"expected a mapping with class_path and init_args for a {expected.__name__}, got {tree!r}")
    if _is_node(tree, "reference"):
        return load(tree["reference"])
    if _is_node(tree, "partial"):
        return functools.partial(load(tree["partial"]), **construct(tree.get("init_args") or {}))
    if isinstance(tree, Mapping):
        return {key: construct(item) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [construct(item) for item in tree]
    return tree


def _is_node(tree: Any, kind: str) -> bool:
    return isinstance(tree, Mapping) and kind in tree and tree.keys() <= {kind, "init_args"}


def foreign(tree: Any, trusted: Sequence[str]) -> list[str]:
    """Return the packages outside ``trusted`` of which building ``tree`` would run code, in order of appearance."""
    return list(dict.fromkeys(package for _, package in _foreign(tree, trusted)))


def _foreign(tree: Any, trusted: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield every text in ``tree`` that names something importable outside the trusted packages, and its package.

    Every text, since a constructor may import what it is told by name; and whatever a trusted package has imported
    from elsewhere (``package.module.os.system``) belongs to where it comes from.
    """
    if isinstance(tree, Mapping):
        for item in tree.values():
            yield from _foreign(item, trusted)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _foreign(item, trusted)
    elif isinstance(tree, str) and _DOTTED.fullmatch(tree):
        origin = _origin(tree) if _within(tree, trusted) else tree
        package = origin.partition(".")[0]
        if not _within(origin, trusted) and importlib.util.find_spec(package) is not None:
            yield tree, package


def _check_trust(tree: Any, trusted: Sequence[str]) -> None:
    """Refuse a tree that names what is not trusted, or something else than a class as one."""
    found = list(_foreign(tree, trusted))
    if found:
        packages = list(dict.fromkeys(package for _, package in found))
        raise ValueError(
            f"the file names {found[0][0]!r}, and loading it would run code of {', '.join(map(repr, packages))}; if "
            f"you trust the file, allow it by trust={packages}, on the command line --trust {','.join(packages)}"
        )
    _check_classes(tree)


def _check_classes(tree: Any) -> None:
    """Refuse a ``class_path`` that names a function."""
    if isinstance(tree, Mapping):
        for item in tree.values():
            _check_classes(item)
        if _is_node(tree, "class_path") and not inspect.isclass(load(tree["class_path"])):
            raise ValueError(f"class_path {tree['class_path']!r} must name a class")
    elif isinstance(tree, list | tuple):
        for item in tree:
            _check_classes(item)


def _within(path: str, packages: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in packages)


def _origin(path: str) -> str:
    """Return the module in which the target of a trusted ``path`` is written; ``path`` itself if it runs no code."""
    try:
        target = load(path)
    except ValueError:
        return path
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.ismodule(target):
        return target.__name__
    return getattr(target, "__module__", None) or "builtins" if callable(target) else path
