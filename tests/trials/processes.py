"""Waiting for what other processes do."""

import time

import psutil


def until(condition, seconds=200):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def has_ended(process):
    """Whether a process is gone, or left for a parent to ask after, which an orphan's may never do."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
