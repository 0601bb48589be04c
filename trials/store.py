"""The durable record of a study, shared by any number of processes and independent of the controller.

Life cycle of a trial: ``begin`` claims an architecture with one write; the evaluating process leaves an outcome file;
``finish`` records the outcome and removes the file. A process may die between any two of these steps: ``reconcile``,
which runs whenever a study is opened, finishes what has an outcome and frees what has none.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from trials.claims import Claims, Row, Void
from trials.files import OutcomeFolder
from trials.ledger import Ledger, StudyNotFoundError, read_spec, study_names
from trials.storages import StoreUnavailableError
from trials.study import StudySpec
from trials.trial import Candidate, Outcome, Trial, TrialState
from trials.worker import Heartbeat, Worker

__all__ = ["StoreUnavailableError", "StudyNotFoundError", "TrialStore"]

_logger = logging.getLogger(__name__)


class TrialStore:
    """One study: claims, outcomes and history. Safe to use from several threads and processes.

    Trials are immutable, so everything handed out may be kept. A finished trial never changes. An architecture has at
    most one trial, however many processes ask for it.

    Args:
        url: Path of a journal file, a database URL (``sqlite:///...``, ``postgresql://...``), or ``grpc://HOST:PORT``
            for Optuna's proxy in front of a database.
        spec: The question of the study; created when missing, compared when there.
        runs: Folder under which outcome files lie, in ``<runs>/<study>/outcomes``.
        heartbeat_s: Seconds between two signs of life of running trials.
        lease_s: Silence in seconds after which a process on another host counts as dead.
        max_retries: How often an architecture is tried again after its process died.
        settle: Whether to settle at once what dead processes left; a mere reader does not.

    Raises:
        StoreUnavailableError: If the storage cannot be opened; every method raises it while the storage is away.
        StudyMismatchError: If the study exists and asks another question.
        ValueError: If the heartbeat is not positive and shorter than the lease.
    """

    def __init__(
        self,
        url: str,
        spec: StudySpec,
        *,
        runs: str | os.PathLike[str] = "runs",
        heartbeat_s: float = 60.0,
        lease_s: float = 300.0,
        max_retries: int = 2,
        settle: bool = True,
    ) -> None:
        if not 0 < heartbeat_s < lease_s:
            raise ValueError(f"heartbeat_s must be positive and below lease_s, got {heartbeat_s} and {lease_s}")
        self.url = url
        self.runs = runs
        self.heartbeat_s = heartbeat_s
        self.lease_s = lease_s
        self.max_retries = max_retries
        self.settle = settle
        self._ledger = Ledger(url, spec)
        self.spec = self._ledger.spec
        self.outcomes = OutcomeFolder(Path(runs).absolute() / self.spec.name / "outcomes", self._ledger.token)
        self.worker = Worker.current()
        self._lock = threading.RLock()
        self._claims = Claims()
        self._mine: set[int] = set()
        self._heartbeat: Heartbeat | None = None
        if settle:
            self.reconcile()

    @classmethod
    def load(cls, url: str, study: str, *, runs: str | os.PathLike[str] = "runs") -> TrialStore:
        """Open an existing study to read it, taking its question from the storage; nothing is settled.

        Raises:
            StoreUnavailableError: If the storage does not exist or cannot be opened.
            StudyNotFoundError: If there is no such study in it.
        """
        return cls(url, read_spec(url, study), runs=runs, settle=False)

    @staticmethod
    def studies(url: str) -> tuple[str, ...]:
        """Return the names of the studies in an existing storage.

        Raises:
            StoreUnavailableError: If the storage does not exist or cannot be opened.
        """
        return study_names(url)

    def begin(
        self,
        architecture: Mapping[str, Candidate],
        arch_id: str,
        *,
        seed: int,
        provenance: Mapping[str, str] | None = None,
    ) -> Trial | None:
        """Claim an architecture for evaluation.

        Args:
            architecture: Active choices and their candidates.
            arch_id: Digest of the canonical architecture.
            seed: Seed of the evaluation.
            provenance: Facts known before the evaluation.

        Returns:
            The running trial, or ``None`` when the architecture has a trial already, of whatever process.

        Raises:
            ValueError: If a choice or candidate is not in the study.
        """
        return self._claim(self._draft(architecture, arch_id, seed, provenance), None)

    def record(
        self,
        architecture: Mapping[str, Candidate],
        arch_id: str,
        outcome: Outcome,
        *,
        seed: int = 0,
        provenance: Mapping[str, str] | None = None,
    ) -> Trial | None:
        """Claim and finish an architecture with a single write, for outcomes that need no evaluation.

        Returns:
            The finished trial, or ``None`` when the architecture has a trial already.

        Raises:
            ValueError: If a choice or candidate is not in the study, or an objective is missing.
        """
        return self._claim(self._draft(architecture, arch_id, seed, provenance), self._settle(outcome))

    def finish(self, trial: Trial) -> Trial | None:
        """Record the outcome of a trial that ``begin`` returned (see ``Trial.with_outcome``).

        A ``COMPLETE`` trial that breaks a limit of the study is recorded as ``INFEASIBLE``. When this process was taken
        for dead meanwhile, the outcome is recorded as a new attempt, unless another process has taken the architecture.

        Returns:
            The trial as stored, or ``None`` when another process has taken the architecture.

        Raises:
            ValueError: If the trial is unknown, still running, misses an objective, or is finished already with
                another outcome.
            StoreUnavailableError: If the storage is away; the outcome is kept as a file, for whoever opens the study
                on this machine next.
        """
        outcome = self._settle(trial.outcome())
        try:
            return self._record(trial, outcome)
        except StoreUnavailableError as error:
            self.outcomes.write(trial.number, outcome)
            raise StoreUnavailableError(f"{error} (trial {trial.number} waits in {self.outcomes.folder})") from error

    def trials(self) -> list[Trial]:
        """Return the trial of every architecture begun so far, by number."""
        with self._lock:
            self._refresh()
            return self._claims.trials()

    def get(self, number: int) -> Trial:
        """Return the trial with this number.

        Raises:
            KeyError: If the study has no such trial.
        """
        with self._lock:
            self._refresh()
            row = self._claims.row(number)
            if row is None or not self._claims.has_claim(row):
                raise KeyError(f"study {self.spec.name!r} has no trial {number}")
            return row.trial

    def find(self, arch_id: str) -> Trial | None:
        """Return the trial of an architecture, running or finished."""
        with self._lock:
            self._refresh()
            row = self._claims.claim(arch_id)
            return None if row is None else row.trial

    def interrupted(self) -> list[Trial]:
        """Return the last attempt at every architecture whose process died or gave up; begin these first."""
        with self._lock:
            self._refresh()
            return self._claims.interrupted()

    def alive(self, trial: Trial) -> bool:
        """Return whether the process of a running trial may still be evaluating it."""
        with self._lock:
            row = self._claims.row(trial.number)
        heartbeat = trial.started if row is None else row.heartbeat
        return Worker.parse(trial.worker).alive(heartbeat_age=time.time() - heartbeat, lease_s=self.lease_s)

    def reconcile(self) -> int:
        """Settle the running trials whose process is dead; safe to repeat and to run from several processes.

        A trial with an outcome is finished with it. One without is freed for another attempt, and fails for good after
        ``max_retries`` of them.

        Returns:
            How many trials were settled.
        """
        with self._lock:
            self._refresh()
            orphans = [row for row in self._claims.open_rows() if row.void is not None or not self.alive(row.trial)]
            for row in orphans:
                self._settle_orphan(row, Void.LOST)
            for number in self.outcomes.numbers():
                known = self._claims.row(number)
                if known is not None and known.closed and known.void is None:
                    self.outcomes.discard(number)  # its process died between recording and removing it
            return len(orphans)

    def note(self, key: str) -> str | None:
        """Return a note left beside the study."""
        return self._ledger.note(key)

    def set_note(self, key: str, value: str) -> None:
        """Leave a small note beside the study; the last writer wins."""
        self._ledger.set_note(key, value)

    def close(self) -> None:
        """Give back the running trials of this store, so that any process may begin them again at once.

        While the storage is away they stay as they are, and are settled as those of a dead process.
        """
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
        try:
            self._release()
        except StoreUnavailableError as error:
            _logger.warning("running trials could not be given back: %s", error)

    def _release(self) -> None:
        with self._lock:
            if self._mine:
                self._refresh()
            for number in sorted(self._mine):
                row = self._claims.row(number)
                if row is not None and not row.closed:
                    self._settle_orphan(row, Void.RELEASED)
            self._mine.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draft(
        self, architecture: Mapping[str, Candidate], arch_id: str, seed: int, provenance: Mapping[str, str] | None
    ) -> Trial:
        self.spec.check_architecture(architecture)
        return Trial(
            number=-1,
            architecture=architecture,
            arch_id=arch_id,
            state=TrialState.RUNNING,
            seed=seed,
            provenance=provenance or {},
        )

    def _claim(self, draft: Trial, outcome: Outcome | None) -> Trial | None:
        """Append a row, then look whether it has the claim; the loser of a race retires its row."""
        with self._lock:
            self._refresh()
            if self._claims.claim(draft.arch_id) is not None:
                return None
            attempt = self._claims.next_attempt(draft.arch_id)
            wanted = replace(draft, attempt=attempt, worker=str(self.worker), started=time.time())
            number = self._ledger.append(wanted if outcome is None else wanted.with_outcome(outcome))
            self._refresh()
            row = self._claims.row(number)
            if row is None or not self._claims.has_claim(row):
                if row is not None and not row.closed:
                    self._ledger.void(row, Void.DUPLICATE)
                    self._refresh()
                return None
            if outcome is None:
                self._mine.add(number)
                if self._heartbeat is None:
                    self._heartbeat = Heartbeat(self._beat, self.heartbeat_s)
            return row.trial

    def _record(self, trial: Trial, outcome: Outcome) -> Trial | None:
        with self._lock:
            self._refresh()
            row = self._claims.row(trial.number)
            if row is None or row.trial.arch_id != trial.arch_id:
                raise ValueError(
                    f"trial {trial.number} ({trial.arch_id}) must have been begun in study {self.spec.name!r}; "
                    "it is not there"
                )
            if not row.closed and row.void is None:
                self._ledger.close(row, outcome)
                self._refresh()
                row = self._claims.row(trial.number) or row
            self._mine.discard(trial.number)
            self.outcomes.discard(trial.number)
            if row.void is not None:
                return self._claim(trial, outcome)
            if _result(row.trial.outcome()) != _result(outcome):
                raise ValueError(
                    f"trial {trial.number} is finished already with another outcome; finished trials never change"
                )
            return row.trial

    def _settle(self, outcome: Outcome) -> Outcome:
        """Return the outcome as it will be stored: dated, judged by the limits, complete in its objectives."""
        state = outcome.state
        if state is TrialState.COMPLETE:
            state = self.spec.judge(outcome.measurements)
        missing = [metric.name for metric in self.spec.objectives if metric.name not in outcome.measurements]
        if state is TrialState.COMPLETE and missing:
            raise ValueError(
                f"a COMPLETE trial must measure every objective, got none for {missing}; "
                "return them from the objective, or finish the trial as FAILED"
            )
        return replace(outcome, state=state, finished=time.time() if outcome.finished is None else outcome.finished)

    def _settle_orphan(self, row: Row, reason: Void) -> None:
        number = row.trial.number
        if row.void is not None or not self._claims.has_claim(row):
            self._ledger.void(row, row.void or Void.DUPLICATE)
            self._refresh()
            return
        outcome = row.outcome or self.outcomes.read(number)
        if outcome is None and reason is Void.LOST and row.trial.attempt >= self.max_retries:
            outcome = Outcome(state=TrialState.FAILED, error=f"its process died {row.trial.attempt + 1} times")
        if outcome is None:
            self._ledger.void(row, reason)
        else:
            try:
                settled = self._settle(outcome)
            except ValueError as error:
                settled = replace(outcome, state=TrialState.FAILED, error=str(error), finished=time.time())
            self._ledger.close(row, settled)
            self.outcomes.discard(number)
        self._refresh()

    def _beat(self) -> None:
        with self._lock:
            for number in sorted(self._mine):
                row = self._claims.row(number)
                if row is None or row.closed:
                    continue
                try:
                    self._ledger.beat(row)
                except Exception:
                    _logger.warning("no sign of life could be left for trial %d", number, exc_info=True)

    def _refresh(self) -> None:
        for row in self._ledger.changes():
            if row != self._claims.row(row.trial.number):
                self._claims.update(row)


def _result(outcome: Outcome) -> tuple[object, ...]:
    return outcome.state, outcome.measurements, outcome.error
