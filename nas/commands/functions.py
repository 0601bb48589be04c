"""A typed function as a command: its signature gives the options, its docstring the help."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from nas.commands.boundary import UsageError
from nas.commands.messages import shorten

__all__ = ["OneLineErrors", "run_function"]


class OneLineErrors(ArgumentParser):
    """A parser whose errors are exceptions with one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`UsageError`, unless the parser is used inside another one."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(shorten(message, list(self.get_defaults(skip_validation=True).keys()))) from ex


def run_function(function: Callable[..., Any], arguments: Sequence[str], *, name: str) -> Any:
    """Parse ``arguments`` by the signature of ``function`` and call it.

    Parameters without default are positional; a parameter called ``config`` is ``-c``.
    """
    summary = (function.__doc__ or "").partition("\n")[0]
    parser = OneLineErrors(prog=f"nas {name}", description=summary, allow_abbrev=False)
    skipped: set[str | int] = set()
    if "config" in function.__annotations__:
        parser.add_argument("-c", "--config", type=str, required=True, help="the YAML file of the experiment")
        skipped.add("config")
    parser.add_function_arguments(function, skip=skipped, as_positional=True, fail_untyped=True)
    given = parser.instantiate(parser.parse_args(list(arguments)))
    return function(**given.as_dict())
