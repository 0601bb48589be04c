"""One line out of jsonargparse's many: where the problem is, what it is, and what was probably meant."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Sequence

__all__ = ["shorten"]

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":?')
_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)'")
_CALLABLE = re.compile(r"expects a function or a callable class: ")
_GIVEN_CLASS = re.compile(r"Got value: Namespace\(class_path='(?P<path>[^']+)'")
_OPTION = re.compile(r"Option '(?P<name>[^']+)' is not accepted")
_GROUP = re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<name>[^']+)'")
_SUBCOMMAND = re.compile(r"Subcommand '[^']+' does not accept option '(?P<name>[^']+)'")
_ATTRIBUTE = re.compile(r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_UNKNOWN = re.compile(r"unrecognized arguments: -+(?P<name>[\w.]+)")
_MISSING = re.compile(r"Key[s]? (?P<names>.+?) (?:is|are) required")
_NOISE = re.compile(
    r"(Does not validate against any|Subtypes:|Errors:|Given value( type)?:|Expected an? <class 'NoneType'>"
    r"|Expected a path but|Expected a dot import path)"
)
_BARE = re.compile(r"Expected an? <class '\w+'>$")
_GIVEN = re.compile(r"^\s*Given value: (?P<value>[^{\[\n]+?)(\. Got value: .*)?$", re.MULTILINE)
_LONGEST = 400
_MOST = 20


def shorten(message: str, known: Sequence[str] = ()) -> str:
    """Return the first concrete problem of a parser's message on one line.

    Args:
        message: what jsonargparse says; a message of another kind comes back on one line.
        known: dotted names of the options that the parser takes, to suggest from.
    """
    keys: list[str] = []
    owner: str | None = None
    problem = ""
    for raw in message.splitlines():
        line = raw.strip().removeprefix("- ")
        if match := _CALLABLE.search(line):
            given = _GIVEN_CLASS.search(message)
            owner = given["path"] if given else owner
            line = line[match.end() :]
        if match := _KEY.match(line):
            keys.append(match["key"])
            line = line[match.end() :].strip()
        if match := _CLASS.match(line):
            owner = match["path"]
            continue
        if line and not _NOISE.match(line):
            problem = line
            break
    if _BARE.match(problem) and (given_value := _GIVEN.search(message)):
        problem = f"{problem}, got {given_value['value']}"
    problem = re.sub(r"\.? Got value: (Namespace\(|\{).*", "", problem)
    problem = problem.replace("<class '", "").replace("'>", "").replace("typing.", "").replace(". Got value:", ", got")
    where = ".".join(keys)
    text = _explain(problem or " ".join(message.split()), owner, known, within=where)
    return " ".join((f"{where}: {text}" if where else text).split())[:_LONGEST]


def _explain(problem: str, owner: str | None, known: Sequence[str], *, within: str) -> str:
    """Return the problem with the names that would have been right."""
    if match := _GROUP.search(problem):
        group = match["group"]
        names = {name.removeprefix(f"{group}.").partition(".")[0] for name in known if name.startswith(f"{group}.")}
        return f"{group}.{match['name']} is not an option; {_suggestion(match['name'], names)}"
    if match := _SUBCOMMAND.search(problem):
        return _misspelt(match["name"], known)
    if match := _OPTION.search(problem):
        name = match["name"].partition(".")[0]
        if owner is None and within == "":
            return f"{name} is not an option; {_suggestion(name, {key.partition('.')[0] for key in known})}"
        return f"{name} is not an option of {owner}; {_suggestion(name, _parameters(owner))}"
    if match := _ATTRIBUTE.search(problem):
        return f"{match['module']} has no {match['name']}; {_suggestion(match['name'], _exports(match['module']))}"
    if match := _UNKNOWN.search(problem):
        return f"--{match['name']} is not an option; {_suggestion(match['name'], known)}"
    if match := _MISSING.search(problem):
        return f"{match['names']} must be given; add it to the YAML file or on the command line"
    return problem


def _misspelt(name: str, known: Sequence[str]) -> str:
    """Say which part of a dotted option is wrong: the first one under which nothing is known."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        if not any(key == ".".join(parts[:depth]) or key.startswith(".".join(parts[:depth]) + ".") for key in known):
            break
    else:
        depth = len(parts)
    above = ".".join(parts[: depth - 1])
    prefix = f"{above}." if above else ""
    names = {key.removeprefix(prefix).partition(".")[0] for key in known if key.startswith(prefix)}
    return f"{'.'.join(parts[:depth])} is not an option; {_suggestion(parts[depth - 1], names)}"


def _suggestion(name: str, names: Iterable[str]) -> str:
    options = sorted(names)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"it takes {', '.join(options[:_MOST])}" if options else "--help lists what is"


def _parameters(path: str | None) -> set[str]:
    module, _, name = (path or "").rpartition(".")
    try:
        return set(inspect.signature(getattr(importlib.import_module(module), name)).parameters) - {"space", "problem"}
    except (ImportError, AttributeError, TypeError, ValueError):
        return set()


def _exports(module: str) -> set[str]:
    try:
        return set(getattr(importlib.import_module(module), "__all__", ()))
    except ImportError:
        return set()
