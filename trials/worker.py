"""Who is evaluating: process identities that outlive the process, and the heartbeat of one that is alive."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Heartbeat", "Worker"]

_CLOCK_TOLERANCE_S = 2.0


def _host() -> str:
    """Return a name under which process ids are comparable: the host and, on Linux, its process namespace and boot."""
    try:
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").partition("-")[0]
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}/{namespace}/{boot}"


def _created(process: psutil.Process) -> float:
    """Return when a process began, on Linux since the boot: clocks are set, after a laptop has slept say."""
    return process.create_time() - (psutil.boot_time() if psutil.LINUX else 0.0)


@dataclass(frozen=True)
class Worker:
    """One process on one host; the creation time tells it from a later process with the same id.

    Args:
        host: Host (process namespace and boot) in which ``pid`` means something.
        pid: Process id.
        created: Creation time in seconds since the boot, or since the epoch where that is not known.
    """

    host: str
    pid: int
    created: float

    @classmethod
    def current(cls) -> Worker:
        """Return the identity of this process."""
        return cls(_host(), os.getpid(), _created(psutil.Process()))

    @classmethod
    def parse(cls, text: str) -> Worker:
        """Read what ``str(worker)`` wrote.

        Raises:
            ValueError: If the text is no worker identity.
        """
        try:
            host, pid, created = text.rsplit(":", 2)
            return cls(host, int(pid), float(created))
        except ValueError:
            raise ValueError(f"a worker identity must read host:pid:created, got {text!r}") from None

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.created:.2f}"

    def alive(self, *, heartbeat_age: float, lease_s: float) -> bool:
        """Return whether the process may still be evaluating.

        On this host the process table decides; elsewhere the age of the last heartbeat does. What has been silent since
        before this host was booted, under its name, died with it; half of the lease must be over, since machines that
        are copies of one image share their name.

        Args:
            heartbeat_age: Seconds since the last sign of life.
            lease_s: Age at which a process on another host counts as dead.
        """
        here = _host()
        if self.host != here:
            machine = here.rpartition("/")[0]
            silent = heartbeat_age > max(time.time() - psutil.boot_time(), lease_s / 2)
            died = silent and machine == self.host.rpartition("/")[0]
            return heartbeat_age <= lease_s and not (machine and died)
        try:
            process = psutil.Process(self.pid)
            same = abs(_created(process) - self.created) <= _CLOCK_TOLERANCE_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


class Heartbeat:
    """Calls a function every interval from a thread of its own until stopped.

    Args:
        beat: What to call; it must not raise.
        interval_s: Seconds between two calls.
    """

    def __init__(self, beat: Callable[[], None], interval_s: float) -> None:
        self.beat = beat
        self.interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="study-heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.beat()

    def stop(self) -> None:
        """End the thread and wait for a call that is under way."""
        self._stop.set()
        self._thread.join()
