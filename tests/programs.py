"""Programs in processes of their own that begin with the slow imports done: each is a fork of one clean process."""

import multiprocessing
import os
import runpy
import shlex
import sys
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

TIMEOUT = 120.0


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    return context


def _begin(folder: str, environment: dict[str, str], outputs: tuple[str, str]) -> None:
    """Become a program: of this folder and environment, writing to files."""
    for descriptor, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


def _nas(arguments: list[str]) -> None:
    from nas.__main__ import main

    sys.argv = ["nas", *arguments]
    sys.exit(main())


def _script(path: str) -> None:
    sys.argv = [path]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


def _program(
    kind: str, argument: list[str], folder: str, environment: dict[str, str], outputs: tuple[str, str]
) -> None:
    _begin(folder, environment, outputs)
    if kind == "nas":
        _nas(argument)
    else:
        _script(argument[0])


def _run(kind: str, argument: list[str], folder: Path, environment: dict[str, str], scratch: Path) -> Done:
    outputs = (str(scratch / "stdout"), str(scratch / "stderr"))
    process = _context().Process(target=_program, args=(kind, argument, str(folder), environment, outputs))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
    texts = [Path(path).read_text() if Path(path).exists() else "" for path in outputs]
    return Done(-1 if process.exitcode is None else process.exitcode, *texts)


def run_nas(line: str, folder: Path, environment: dict[str, str], scratch: Path) -> Done:
    """Run the words after ``nas`` on a shell line that has no shell syntax beside quotes."""
    return _run("nas", shlex.split(line)[1:], folder, environment, scratch)


def run_script(path: Path, folder: Path, environment: dict[str, str], scratch: Path) -> Done:
    """Run a Python file as a program."""
    return _run("script", [str(path)], folder, environment, scratch)
