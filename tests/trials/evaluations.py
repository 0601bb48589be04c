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


class Keep:
    """Writes each result into a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, key, result):
        (self.folder / f"{key}.txt").write_text(str(result))
