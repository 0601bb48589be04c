"""Functions for worker processes: they must be importable, so they cannot live in a test."""

import os
import signal
import time
from pathlib import Path


def evaluate(command):
    """Do what the command says: a number is squared, a word misbehaves."""
    if command == "raise":
        raise ValueError("no such width")
    if command == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if command == "hang":
        time.sleep(60)
    if command == "pid":
        return os.getpid()
    if command == "unpicklable":
        return lambda: None
    if command == "threads":
        return os.environ["OMP_NUM_THREADS"]
    return command * command


def leave_a_child(gate):
    """Die by SIGKILL while a forked process lives on until there is a file."""
    if os.fork() == 0:
        end = time.monotonic() + 250
        while not os.path.exists(gate) and time.monotonic() < end:
            time.sleep(0.05)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


class LoadsTheSecondTime:
    """Squares numbers in every worker but the first, which ends when it loads this."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        if not os.path.exists(state["path"]):
            Path(state["path"]).touch()
            os._exit(3)
        self.__dict__ = state

    def __call__(self, argument):
        return argument * argument


class Keep:
    """Writes each result into a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, key, result):
        (self.folder / f"{key}.txt").write_text(str(result))
