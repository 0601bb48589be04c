"""A typed function as a command: its signature gives the options, its docstring the help."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import docstring_parser
from docstring_parser import DocstringParam
from jsonargparse import ActionYesNo, ArgumentParser

from nas.commands.boundary import UsageError
from nas.commands.messages import shorten

__all__ = ["OneLineErrors", "run_function"]


class OneLineErrors(ArgumentParser):
    """A parser whose errors are exceptions with one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`UsageError`, unless the parser is used inside another one."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UsageError(shorten(message, list(parser.get_defaults(skip_validation=True).keys()))) from ex


def run_function(function: Callable[..., Any], arguments: Sequence[str], *, name: str) -> Any:
    """Parse ``arguments`` by the signature of ``function`` and call it.

    Parameters without default are positional, one of the form ``*name`` takes one argument or more, those that are
    false by default are flags, and one called ``config`` is ``-c``.
    """
    summary = (function.__doc__ or "").partition("\n")[0]
    parser = OneLineErrors(prog=f"nas {name}", description=summary, allow_abbrev=False)
    skipped: set[str | int] = set()
    if "config" in function.__annotations__:
        parser.add_argument("-c", "--config", type=str, required=True, help="the YAML file of the experiment")
        skipped.add("config")
    for flag in _flags(function):
        parser.add_argument(f"--{flag.arg_name}", action=ActionYesNo, default=False, help=flag.description)
        skipped.add(flag.arg_name)
    several = next(
        (p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_POSITIONAL), None
    )
    if several is not None:
        parser.add_argument(several, nargs="+", type=str, help=_documented(function)[several].description)
    parser.add_function_arguments(function, skip=skipped, as_positional=True, fail_untyped=True)
    given = parser.instantiate(parser.parse_args(list(arguments))).as_dict()
    return function(*given.pop(several, ()), **given)


def _flags(function: Callable[..., Any]) -> list[DocstringParam]:
    """Return the documentation of every parameter that is ``False`` unless given."""
    parameters = inspect.signature(function).parameters
    documented = _documented(function)
    return [documented[name] for name in documented if name in parameters and parameters[name].default is False]


def _documented(function: Callable[..., Any]) -> dict[str, DocstringParam]:
    """Return the documentation of every parameter by name."""
    return {item.arg_name.lstrip("*"): item for item in docstring_parser.parse(function.__doc__ or "").params}
