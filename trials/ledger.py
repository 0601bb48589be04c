"""The rows of a study in an Optuna storage. The only file that reads or writes them.

A choice is a categorical parameter, an objective a value, a broken limit is ``PRUNED`` with its constraint, a failure
is ``FAIL``; everything else is in the attributes ``nas.*``. Optuna's own tools open such a study as they open any
other. A row is created with one write, parameters and attributes included, where Optuna's own loop writes once per
parameter.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as RowState

from trials.claims import Row, Void
from trials.entries import Entry, entries_of
from trials.storages import open_storage, reaching
from trials.study import StudyMismatchError, StudySpec
from trials.trial import FORMAT_VERSION, Outcome, Trial, TrialState
from trials.urls import redact

__all__ = ["Ledger", "StudyNotFoundError", "read_spec", "study_names"]

# A study without a question belongs to a process that is just creating it, or died doing so.
_CREATION_PATIENCE_S = 10.0
_ROW_STATES = {
    TrialState.RUNNING: RowState.RUNNING,
    TrialState.COMPLETE: RowState.COMPLETE,
    TrialState.INFEASIBLE: RowState.PRUNED,
    TrialState.FAILED: RowState.FAIL,
}


class StudyNotFoundError(LookupError):
    """The storage holds no study of that name."""


class Ledger:
    """Rows of one study: appended, closed once, never changed afterwards.

    Args:
        url: Address of the storage, see ``open_storage``.
        spec: The question of the study; created when missing, compared when there.

    Raises:
        StoreUnavailableError: If the storage cannot be opened. Every method raises it once the storage is away.
        StudyMismatchError: If the study exists and asks another question.
    """

    def __init__(self, url: str, spec: StudySpec) -> None:
        self.url = url
        self._storage = open_storage(url)
        with reaching(url):
            self._study_id, self.spec, self.token = _attach(self._storage, spec)
        self._distributions = {name: CategoricalDistribution(values) for name, values in self.spec.choices.items()}
        self._entries = entries_of(self._storage, self._study_id, self.spec.choices)

    def append(self, trial: Trial) -> int:
        """Add a row for a trial, running or finished, with one write.

        Args:
            trial: The trial; its number is ignored.

        Returns:
            The number of the row.
        """
        with reaching(self.url):
            return self._entries.append(self._template(trial))

    def _template(self, trial: Trial) -> FrozenTrial:
        outcome = trial.outcome() if trial.state.finished else None
        begin = {
            "format_version": FORMAT_VERSION,
            "seed": trial.seed,
            "provenance": dict(trial.provenance),
            "attempt": trial.attempt,
            "worker": trial.worker,
            "started": trial.started,
        }
        return create_trial(
            state=_ROW_STATES[trial.state],
            values=None if outcome is None else self._values(outcome),
            params=dict(trial.architecture),
            distributions={name: self._distributions[name] for name in trial.architecture},
            user_attrs={
                "nas.arch_id": trial.arch_id,
                "nas.begin": begin,
                **({} if outcome is None else {"nas.outcome": outcome.to_dict()}),
            },
            system_attrs={} if outcome is None else self._constraints(outcome),
        )

    def close(self, row: Row, outcome: Outcome) -> None:
        """Close a row with an outcome; nothing happens when another process closed it first."""
        told = {} if row.outcome is not None else {"nas.outcome": outcome.to_dict()}
        with reaching(self.url), _being_late_is_fine():
            self._entries.update(
                row.ledger_id,
                user=told,
                system=self._constraints(outcome),
                state=_ROW_STATES[outcome.state],
                values=self._values(outcome),
            )

    def void(self, row: Row, reason: Void) -> None:
        """Close a row that does not count; nothing happens when another process closed it first."""
        told = {} if row.void is not None else {"nas.void": reason.value}
        with reaching(self.url), _being_late_is_fine():
            self._entries.update(row.ledger_id, user=told, state=RowState.FAIL)

    def beat(self, row: Row) -> None:
        """Leave a sign of life on an open row."""
        with reaching(self.url), _being_late_is_fine():
            self._entries.update(row.ledger_id, user={"nas.heartbeat": time.time()})

    def changes(self) -> Iterator[Row]:
        """Yield the rows that are new or were open when last read; closed ones are read once."""
        with reaching(self.url):
            entries = list(self._entries.changes())
        for entry in entries:
            row = _parse_row(entry, self.spec)
            if row is not None:
                yield row

    def note(self, key: str) -> str | None:
        """Return a note left beside the study."""
        with reaching(self.url):
            value = self._storage.get_study_user_attrs(self._study_id).get(f"nas.note.{key}")
        return None if value is None else str(value)

    def set_note(self, key: str, value: str) -> None:
        """Leave a small note beside the study; the last writer wins."""
        with reaching(self.url):
            self._storage.set_study_user_attr(self._study_id, f"nas.note.{key}", value)

    def _values(self, outcome: Outcome) -> list[float] | None:
        if outcome.state is not TrialState.COMPLETE:
            return None
        return [outcome.measurements[metric.name].value for metric in self.spec.objectives]

    def _constraints(self, outcome: Outcome) -> dict[str, float]:
        measured = outcome.measurements
        return {
            f"constraints:{limit.key}": limit.violation(measured[limit.metric].value)
            for limit in self.spec.limits
            if limit.metric in measured
        }


def study_names(url: str) -> tuple[str, ...]:
    """Return the names of the studies in an existing storage.

    Raises:
        StoreUnavailableError: If the storage does not exist or cannot be opened.
    """
    storage = open_storage(url, must_exist=True)
    with reaching(url):
        studies = storage.get_all_studies()
    return tuple(sorted(study.study_name for study in studies if "nas.spec" in study.user_attrs))


def read_spec(url: str, study: str) -> StudySpec:
    """Return the question of an existing study.

    Raises:
        StoreUnavailableError: If the storage does not exist or cannot be opened.
        StudyNotFoundError: If there is no such study in it.
    """
    storage = open_storage(url, must_exist=True)
    with reaching(url):
        studies = storage.get_all_studies()
    for item in studies:
        if item.study_name == study and "nas.spec" in item.user_attrs:
            return StudySpec.from_dict(item.user_attrs["nas.spec"])
    known = ", ".join(study_names(url)) or "none"
    raise StudyNotFoundError(f"{redact(url)} must hold a study {study!r}, it holds: {known}")


def _attach(storage: BaseStorage, spec: StudySpec) -> tuple[int, StudySpec, str]:
    """Create the study or compare it with the stored one; return its key, stored question and token."""
    directions = [
        StudyDirection.MINIMIZE if metric.direction == "minimize" else StudyDirection.MAXIMIZE
        for metric in spec.objectives
    ]
    study_id, created = _find_or_create(storage, spec.name, directions)
    patience = 0.0 if created else time.monotonic() + _CREATION_PATIENCE_S
    attributes = storage.get_study_user_attrs(study_id)
    used = "nas.spec" not in attributes and bool(storage.get_all_trials(study_id, deepcopy=False))
    while "nas.spec" not in attributes and not used and time.monotonic() < patience:
        time.sleep(0.05)
        attributes = storage.get_study_user_attrs(study_id)
    if "nas.spec" not in attributes:
        if used or storage.get_study_directions(study_id) != directions:
            raise StudyMismatchError(f"study {spec.name!r} exists and was made by another tool; use another study name")
        storage.set_study_system_attr(study_id, "study:metric_names", [metric.name for metric in spec.objectives])
        if "nas.spec" not in storage.get_study_user_attrs(study_id):  # or this process was stopped, and another began
            storage.set_study_user_attr(study_id, "nas.token", secrets.token_hex(8))
            storage.set_study_user_attr(study_id, "nas.spec", spec.to_dict())
        attributes = storage.get_study_user_attrs(study_id)
    stored = StudySpec.from_dict(attributes["nas.spec"])
    stored.check_same(spec)
    return study_id, stored, str(attributes["nas.token"])


def _find_or_create(storage: BaseStorage, name: str, directions: list[StudyDirection]) -> tuple[int, bool]:
    """Return the key of the study and whether this process created it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        known = {study.study_name: study._study_id for study in storage.get_all_studies()}
        return (known[name], False) if name in known else (storage.create_new_study(directions, name), True)
    except DuplicatedStudyError:
        return storage.get_study_id_from_name(name), False
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def _being_late_is_fine() -> Iterator[None]:
    try:
        yield
    except UpdateFinishedTrialError:
        return


def _parse_row(entry: Entry, spec: StudySpec) -> Row | None:
    """Read a row of ours; ``None`` for rows that other tools added to the study."""
    attributes: Mapping[str, Any] = entry.attributes
    begin = attributes.get("nas.begin")
    if begin is None:
        return None
    closed = entry.state.is_finished()
    outcome = Outcome.from_dict(attributes["nas.outcome"]) if "nas.outcome" in attributes else None
    void = Void(attributes["nas.void"]) if "nas.void" in attributes else None
    if entry.state in (RowState.COMPLETE, RowState.PRUNED):
        void = None
    trial = Trial(
        number=entry.number,
        architecture={name: entry.params[name] for name in spec.choices if name in entry.params},
        arch_id=attributes["nas.arch_id"],
        state=TrialState.RUNNING,
        seed=begin["seed"],
        started=begin["started"],
        provenance=begin["provenance"],
        attempt=begin["attempt"],
        worker=begin["worker"],
    )
    if closed:
        if void is not None or outcome is None:
            reason = "closed by another tool" if void is None else void.value
            trial = trial.with_outcome(
                Outcome(state=TrialState.FAILED, error=f"trial was {reason}", finished=entry.ended)
            )
        else:
            trial = trial.with_outcome(outcome)
    heartbeat = float(attributes.get("nas.heartbeat", begin["started"]))
    return Row(trial, entry.key, closed, void, heartbeat, outcome)
