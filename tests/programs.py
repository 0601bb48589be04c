"""Programs in processes of their own that begin with the slow imports done: each is a fork of one clean process."""

import multiprocessing
import os
import runpy
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

TIMEOUT = 250.0


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Running:
    """A program on its way."""

    process: ForkServerProcess
    outputs: tuple[Path, Path]

    def wait(self) -> Done:
        """Return what became of it; after a while it is killed."""
        self.process.join(TIMEOUT)
        if self.process.is_alive():
            self.kill()
        texts = [path.read_text() if path.exists() else "" for path in self.outputs]
        return Done(-1 if self.process.exitcode is None else self.process.exitcode, *texts)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self.process.kill()
        self.process.join()


def _context() -> ForkServerContext:
    """Return what forks the clean process, in which texts have other hashes than here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    before, folder = os.environ.get("PYTHONHASHSEED"), tempfile.tempdir
    os.environ["PYTHONHASHSEED"] = "8" if before == "7" else "7"
    tempfile.tempdir = "/tmp"  # of its socket, whose path has 107 characters at most
    try:
        forkserver.ensure_running()
    finally:
        tempfile.tempdir = folder
        del os.environ["PYTHONHASHSEED"]
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before
    return context


def _begin(folder: str, environment: Mapping[str, str], outputs: tuple[str, str]) -> None:
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


def _script(arguments: list[str]) -> None:
    sys.argv = arguments
    sys.path.insert(0, os.path.dirname(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


def _program(
    kind: str, arguments: list[str], folder: str, environment: Mapping[str, str], outputs: tuple[str, str]
) -> None:
    _begin(folder, environment, outputs)
    {"nas": _nas, "script": _script}[kind](arguments)


def _start(kind: str, arguments: list[str], folder: Path, environment: Mapping[str, str], scratch: Path) -> Running:
    scratch.mkdir(parents=True, exist_ok=True)
    outputs = (scratch / "stdout", scratch / "stderr")
    given = (kind, arguments, str(folder), dict(environment), (str(outputs[0]), str(outputs[1])))
    process = _context().Process(target=_program, args=given)
    process.start()
    return Running(process, outputs)


def run_nas(line: str, folder: Path, environment: Mapping[str, str], scratch: Path) -> Done:
    """Run the words after ``nas`` on a shell line that has no shell syntax beside quotes."""
    return _start("nas", shlex.split(line)[1:], folder, environment, scratch).wait()


def start_script(path: Path, *arguments: str, folder: Path, environment: Mapping[str, str], scratch: Path) -> Running:
    """Start a Python file as a program whose outputs go to ``scratch``."""
    return _start("script", [str(path), *arguments], folder, environment, scratch)


def run_script(path: Path, *arguments: str, folder: Path, environment: Mapping[str, str], scratch: Path) -> Done:
    """Run a Python file as a program."""
    return start_script(path, *arguments, folder=folder, environment=environment, scratch=scratch).wait()


def run_code(code: str, *arguments: str, folder: Path, scratch: Path) -> Done:
    """Run Python code as a program, in the environment of the test."""
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "program.py").write_text(code)
    return run_script(scratch / "program.py", *arguments, folder=folder, environment=os.environ, scratch=scratch)
