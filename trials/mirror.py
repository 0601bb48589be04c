"""The MLflow record of a study: a mirror of its store, written by a process of its own.

The search pays nothing for it and does not notice when MLflow is slow or away. Everything mirrored is a function of the
store, and every child run is found again by its tag ``nas.trial``, so mirroring may stop anywhere and start over:
``mirror_study(..., once=True)`` completes the record of any study at any time.

Life cycle: a search starts a :class:`Mirror`, which starts the process; the process looks at the store every second; on
``close``, or when the search dies, it writes what is left and ends. Of several searches that share a study one mirrors,
and another takes over when it ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from trials.record import StudyRecord
from trials.store import TrialStore
from trials.tracking import Tracker
from trials.tracking_address import TrackingUnavailableError
from trials.worker import Worker

__all__ = ["Mirror", "MirrorReport", "mirror_study"]

_INTERVAL_S = 1.0
_RETRY_S = 5.0
_LEASE_S = 60.0
_RENEW_S = 15.0
_SETTLE_S = 0.3
_NOTE = "mirror"


@dataclass(frozen=True)
class MirrorReport:
    """How a mirroring ended.

    Args:
        complete: Whether MLflow has everything that the store has.
        reason: Why not, in one line.
        run_id: The parent run, once there is one.
    """

    complete: bool
    reason: str = ""
    run_id: str | None = None


def mirror_study(
    store_url: str,
    study: str,
    tracking_uri: str | None,
    experiment: str,
    *,
    once: bool,
    draining: threading.Event | None = None,
    killed: Callable[[], bool] = lambda: False,
    owner: str = "",
) -> MirrorReport:
    """Write the record of a study into MLflow.

    Args:
        store_url: The store of the study.
        study: Its name.
        tracking_uri: Where MLflow is.
        experiment: The experiment that gets the runs.
        once: Write what is there and return, instead of following the store until ``draining`` is set.
        draining: Set by the caller when nothing more will come.
        killed: Tells, at the end, whether the search ended by being killed.
        owner: Identity of the worker that the search is; what it still runs at the end is shown as killed.

    Returns:
        Whether the record is complete, and the parent run.

    Raises:
        StoreUnavailableError: If the store cannot be opened.
        StudyNotFoundError: If it has no such study.
        TrackingUnavailableError: If MLflow cannot be written, when run ``once``.
    """
    store = TrialStore.load(store_url, study)
    ending = draining or threading.Event()
    lease = _Lease(store)
    record: StudyRecord | None = None
    try:
        while True:
            last = once or ending.is_set()
            if not lease.hold():
                if last:
                    return MirrorReport(False, f"process {lease.holder} is writing the record of study {study!r}")
                ending.wait(_INTERVAL_S)
                continue
            try:
                if record is None:
                    tracker = Tracker(tracking_uri, experiment)  # takes seconds, in which a rival shows itself
                    if not lease.confirm():
                        continue
                    record = StudyRecord(store, tracker)
                done = record.update(allowed=lease.hold, ended=owner if last else "")
                if last and done:
                    record.close(status="KILLED" if killed() else "FINISHED")
                    return MirrorReport(True, run_id=record.run_id)
                ending.wait(_INTERVAL_S)
            except TrackingUnavailableError as error:
                if once:
                    raise
                if last:
                    return MirrorReport(False, str(error), None if record is None else record.run_id)
                record = None
                ending.wait(_RETRY_S)
    finally:
        lease.release()


class _Lease:
    """The right to mirror a study, kept as a note in its store and renewed while in use."""

    def __init__(self, store: TrialStore) -> None:
        self.store = store
        self.worker = str(Worker.current())
        self.holder = ""
        self._renewed = -_RENEW_S

    def hold(self) -> bool:
        """Take, keep or renew the right; ``False`` when a living process has it."""
        if time.monotonic() - self._renewed < _RENEW_S:
            return True
        fresh = not self._is_mine()
        if fresh and self._is_taken():
            return False
        self.store.set_note(_NOTE, f"{self.worker}|{time.time()}")
        if fresh:  # whoever wrote at the same time sees the same last writer after a moment
            time.sleep(_SETTLE_S)
            if not self._is_mine():
                return False
        self._renewed = time.monotonic()
        return True

    def confirm(self) -> bool:
        """Look again whether the right is still this process's."""
        mine = self._is_mine()
        if not mine:
            self._renewed = -_RENEW_S
        return mine

    def release(self) -> None:
        """Give the right back, if this process has it."""
        if self._is_mine():
            self.store.set_note(_NOTE, "")

    def _is_mine(self) -> bool:
        return (self.store.note(_NOTE) or "").partition("|")[0] == self.worker

    def _is_taken(self) -> bool:
        self.holder, _, written = (self.store.note(_NOTE) or "").partition("|")
        if not self.holder:
            return False
        age = time.time() - float(written)
        return age <= _LEASE_S and Worker.parse(self.holder).alive(heartbeat_age=age, lease_s=_LEASE_S)


class Mirror:
    """A running mirror process, as the search sees it; leaving the ``with`` block closes it.

    The process ends by itself when this one dies. It is in a session of its own, so Ctrl-C does not reach it.

    Args:
        store_url: The store of the study, which must exist.
        study: Name of the study.
        tracking_uri: Where MLflow is.
        experiment: The experiment that gets the runs.
        log: File for the messages of the process; dropped when left out.
    """

    def __init__(
        self,
        store_url: str,
        study: str,
        *,
        tracking_uri: str | None = None,
        experiment: str = "weightloom",
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        self.store_url = store_url
        self.study = study
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self.log = log
        self._report: MirrorReport | None = None
        self._process = self._start()

    def close(self, timeout: float = 60.0) -> MirrorReport:
        """Let the process write what is left, and wait for it.

        Args:
            timeout: Seconds after which it is stopped; what it could not write is left for a later mirroring.

        Returns:
            Whether the record is complete. The same report again when called twice.
        """
        if self._report is None:
            try:
                answer, _ = self._process.communicate("drain\n", timeout=timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                self._report = MirrorReport(False, f"MLflow did not take everything within {timeout:g} s")
            else:
                self._report = self._read(answer)
        return self._report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[str]:
        command = {
            "store_url": self.store_url,
            "study": self.study,
            "tracking_uri": self.tracking_uri,
            "experiment": self.experiment,
            "owner": str(Worker.current()),
        }
        paths = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        errors: IO[bytes] | int = subprocess.DEVNULL if self.log is None else open(self.log, "ab")  # noqa: SIM115
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "trials.mirror"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
                start_new_session=True,
            )
        finally:
            if not isinstance(errors, int):
                errors.close()
        if process.stdin is not None:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
        return process

    def _read(self, answer: str) -> MirrorReport:
        lines = answer.strip().splitlines()
        if self._process.returncode != 0 or not lines:
            where = "" if self.log is None else f"; see {os.fspath(self.log)}"
            return MirrorReport(False, f"the mirror process ended with exit code {self._process.returncode}{where}")
        return MirrorReport(**json.loads(lines[-1]))


def _main() -> None:
    """Mirror as the first line of standard input says, until it says ``drain`` or ends."""
    command = json.loads(sys.stdin.readline())
    draining = threading.Event()
    asked: list[str] = []

    def listen() -> None:
        asked.append(sys.stdin.readline().strip())
        draining.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        report = mirror_study(
            command["store_url"],
            command["study"],
            command["tracking_uri"],
            command["experiment"],
            once=False,
            draining=draining,
            killed=lambda: asked != ["drain"],
            owner=command["owner"],
        )
    except (LookupError, RuntimeError) as error:
        report = MirrorReport(False, str(error))
    try:
        print(json.dumps(asdict(report)), flush=True)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    _main()
