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

    Parameters without default are positional, those that are false by default are flags, and one called ``config`` is
    ``-c``.
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
    parser.add_function_arguments(function, skip=skipped, as_positional=True, fail_untyped=True)
    given = parser.instantiate(parser.parse_args(list(arguments)))
    return function(**given.as_dict())


def _flags(function: Callable[..., Any]) -> list[DocstringParam]:
    """Return the documentation of every parameter that is ``False`` unless given."""
    parameters = inspect.signature(function).parameters
    documented = docstring_parser.parse(function.__doc__ or "").params
    return [item for item in documented if item.arg_name in parameters and parameters[item.arg_name].default is False]
