"""The command ``nas``: a dispatcher that imports a command when it is called."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from nas.commands.boundary import UsageError, guarded

__all__ = ["main"]

_TRAINER = {
    "fit": "train a supernet",
    "validate": "score the smallest, middle and largest subnetwork of a checkpoint",
    "test": "the same on the test split",
    "search": "search the subnetworks of a trained supernet",
    "worker": "join a search from another machine: the options of search, no report and no MLflow of its own",
}
_LIGHT = {
    "profile": "what a space can reach, and whether limits can be met, before any training",
    "sample": "export the best known subnetwork under a limit",
    "export": "export one given subnetwork",
    "allocate": "the best bits for one network of a quantised supernet within budgets",
    "generate": "weights from a trained hypernetwork, for a condition or a size",
    "proxy": "let many workers reach one database through Optuna's gRPC proxy",
    "serve": "hand out subnetworks over HTTP",
    "grow": "start a wider network from one or two trained ones",
    "zoo": "train many small networks over variations of a data set, to generate weights from",
    "report": "write the report of a study, or of two side by side; --resync completes MLflow",
    "quickstart": "all of it on the embedded digits, in about a minute",
}
_HELP = """usage: nas COMMAND [options]        nas COMMAND --help for its options

{commands}

A first session:
  nas quickstart
  nas fit    -c configs/digits.yaml
  nas search -c configs/digits.yaml --ckpt_path models:/digits-supernet@champion
  nas sample models:/digits-supernet@champion --max_params 20000 --out tiny/
  mlflow ui --backend-store-uri sqlite:///mlflow.db

NAS_TRACEBACK=1 shows the traceback behind an error line."""


def _help() -> str:
    commands = _TRAINER | _LIGHT
    return _HELP.format(commands="\n".join(f"  {name:<11} {text}" for name, text in commands.items()))


def _run(arguments: Sequence[str]) -> int | None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return None
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"weightloom {version('weightloom')}")
        return None
    name, *rest = arguments
    if name in _TRAINER:
        return int(import_module("nas.cli").run([name, *rest]))
    if name not in _LIGHT:
        raise UsageError(f"{name!r} is not a command; the commands are {', '.join(_TRAINER | _LIGHT)}")
    from nas.commands.functions import run_function

    code = run_function(getattr(import_module(f"nas.commands.{name}"), name), rest, name=name)
    return None if code is None else int(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: what follows ``nas``; the process's own arguments by default.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that a YAML file finds the modules beside it, as with python -m nas
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait cost 4 x on a busy machine
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # or creating a database takes twenty lines
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return guarded(lambda: _run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
