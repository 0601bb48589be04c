"""The trials of one study in an Optuna storage: appended, completed and read incrementally.

:class:`StorageEntries` uses nothing but the interface that every storage of Optuna has. It writes a statement for each
parameter and attribute, and reads distributions along with every parameter; :class:`TableEntries` does the same to the
same tables of a relational database in a few statements, so that 10,000 trials are read in seconds.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, final

from optuna.distributions import CategoricalDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from trials.trial import Candidate

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Entries", "Entry", "StorageEntries", "TableEntries", "entries_of"]

_ROWS = 500


@dataclass(frozen=True)
class Entry:
    """One trial as the storage has it.

    Args:
        key: Key of the trial in the storage.
        number: Its number in the study.
        state: Its state.
        params: Candidates by choice.
        attributes: Its user attributes.
        ended: When it was completed, in seconds since the epoch.
    """

    key: int
    number: int
    state: TrialState
    params: Mapping[str, Candidate]
    attributes: Mapping[str, Any]
    ended: float | None


class Entries(ABC):
    """Trials of one study."""

    @abstractmethod
    def append(self, template: FrozenTrial) -> int:
        """Add a trial with everything in it, and return its number."""

    @abstractmethod
    def update(
        self,
        key: int,
        *,
        user: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
        state: TrialState | None = None,
        values: Sequence[float] | None = None,
    ) -> None:
        """Set attributes of an open trial, then its state.

        Raises:
            UpdateFinishedTrialError: If the trial is finished.
        """

    @abstractmethod
    def changes(self) -> Iterator[Entry]:
        """Yield the trials that are new or were open when last read, by number."""


def entries_of(storage: BaseStorage, study_id: int, choices: Mapping[str, Sequence[Candidate]]) -> Entries:
    """Return the fastest access to a study of a storage.

    Args:
        storage: What ``open_storage`` returned.
        study_id: The study.
        choices: Candidates of every choice.
    """
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, RDBStorage) and backend.engine.dialect.name in ("postgresql", "sqlite"):
        return TableEntries(backend, study_id, choices)
    return StorageEntries(storage, study_id)


@final
class StorageEntries(Entries):
    """Trials through the interface of Optuna's storages.

    Args:
        storage: Any storage.
        study_id: The study.
    """

    def __init__(self, storage: BaseStorage, study_id: int) -> None:
        self.storage = storage
        self.study_id = study_id
        self._read = 0
        self._open: set[int] = set()

    def append(self, template: FrozenTrial) -> int:
        """Add a trial."""
        return self.storage.get_trial(self.storage.create_new_trial(self.study_id, template)).number

    def update(
        self,
        key: int,
        *,
        user: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
        state: TrialState | None = None,
        values: Sequence[float] | None = None,
    ) -> None:
        """Set one after the other; who dies in between leaves an open trial."""
        for name, value in (user or {}).items():
            self.storage.set_trial_user_attr(key, name, value)
        for name, value in (system or {}).items():
            self.storage.set_trial_system_attr(key, name, value)
        if state is not None:
            self.storage.set_trial_state_values(key, state, values)

    def changes(self) -> Iterator[Entry]:
        """Yield what the storage's own cache says is new."""
        trials = self.storage.get_all_trials(self.study_id, deepcopy=False)
        numbers = [*sorted(self._open), *range(self._read, len(trials))]
        self._read = len(trials)
        for number in numbers:
            trial = trials[number]
            (self._open.discard if trial.state.is_finished() else self._open.add)(number)
            ended = None if trial.datetime_complete is None else trial.datetime_complete.timestamp()
            yield Entry(trial._trial_id, number, trial.state, trial.params, trial.user_attrs, ended)


@final
class TableEntries(Entries):
    """Trials in the tables of Optuna's relational storage.

    A writer first locks the row of the study, as Optuna does, so that keys become visible in their order, and a reader
    that has seen one key has seen all lower ones. Every method is one transaction.

    Args:
        storage: The relational storage.
        study_id: The study.
        choices: Candidates of every choice.
    """

    def __init__(self, storage: RDBStorage, study_id: int, choices: Mapping[str, Sequence[Candidate]]) -> None:
        from optuna.storages._rdb import models

        self.storage = storage
        self.study_id = study_id
        self.choices = choices
        self._studies, self._trials, self._params, self._values, self._user, self._system = (
            model.__table__
            for model in (
                models.StudyModel,
                models.TrialModel,
                models.TrialParamModel,
                models.TrialValueModel,
                models.TrialUserAttributeModel,
                models.TrialSystemAttributeModel,
            )
        )
        self._finite = models.TrialValueModel.TrialValueType.FINITE
        self._distributions = {
            name: distribution_to_json(CategoricalDistribution(candidates)) for name, candidates in choices.items()
        }
        self._last = -1
        self._open: dict[int, Mapping[str, Candidate]] = {}

    def append(self, template: FrozenTrial) -> int:
        """Add a trial in one transaction."""
        return self.extend([template])[0]

    def extend(self, templates: Sequence[FrozenTrial]) -> list[int]:
        """Add trials in one transaction, and return their numbers."""
        from sqlalchemy import func, insert, select

        trials = self._trials
        with self.storage.engine.begin() as connection:
            self._lock(connection)
            ours = select(func.count()).select_from(trials).where(trials.c.study_id == self.study_id)
            past = connection.execute(ours).scalar_one()
            now = datetime.now(UTC).replace(tzinfo=None)
            rows = [
                {
                    "study_id": self.study_id,
                    "number": past + index,
                    "state": template.state,
                    "datetime_start": now,
                    "datetime_complete": now if template.state.is_finished() else None,
                }
                for index, template in enumerate(templates)
            ]
            statement = insert(trials).returning(trials.c.trial_id, sort_by_parameter_order=True)
            keys = connection.scalars(statement, rows).all()
            added = list(zip(keys, templates, strict=True))
            self._insert(connection, self._params, [row for key, item in added for row in self._chosen(key, item)])
            for table, kind in ((self._user, "user_attrs"), (self._system, "system_attrs")):
                self._insert(
                    connection, table, [row for key, item in added for row in _attributes(key, getattr(item, kind))]
                )
            self._insert(connection, self._values, [row for key, item in added for row in self._told(key, item.values)])
        return [past + index for index in range(len(templates))]

    def update(
        self,
        key: int,
        *,
        user: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
        state: TrialState | None = None,
        values: Sequence[float] | None = None,
    ) -> None:
        """Set all of it or nothing."""
        from sqlalchemy import delete, select, update

        trials = self._trials
        with self.storage.engine.begin() as connection:
            known = connection.scalar(select(trials.c.state).where(trials.c.trial_id == key).with_for_update())
            if known is None or known.is_finished():
                raise UpdateFinishedTrialError(f"trial {key} is finished or gone")
            for table, attributes in ((self._user, user), (self._system, system)):
                if attributes:
                    connection.execute(delete(table).where(table.c.trial_id == key, table.c.key.in_(list(attributes))))
                    self._insert(connection, table, _attributes(key, attributes))
            if state is not None:
                self._insert(connection, self._values, self._told(key, values))
                now = datetime.now(UTC).replace(tzinfo=None)
                changed = {"state": state, **({"datetime_complete": now} if state.is_finished() else {})}
                connection.execute(update(trials).where(trials.c.trial_id == key).values(**changed))

    def changes(self) -> Iterator[Entry]:
        """Yield what is new, read with one statement for trials and one for parameters of new ones."""
        from sqlalchemy import or_, select

        trials, user = self._trials, self._user
        columns = (trials.c.trial_id, trials.c.number, trials.c.state, trials.c.datetime_complete)
        rows: dict[int, tuple[Any, ...]] = {}
        attributes: dict[int, dict[str, Any]] = {}
        with self.storage.engine.connect() as connection:
            wanted = trials.c.trial_id > self._last
            found = connection.execute(
                select(*columns, user.c.key, user.c.value_json)
                .select_from(trials.outerjoin(user, user.c.trial_id == trials.c.trial_id))
                .where(
                    trials.c.study_id == self.study_id,
                    or_(wanted, trials.c.trial_id.in_(sorted(self._open))) if self._open else wanted,
                )
                .order_by(trials.c.trial_id)
            )
            for key, number, state, completed, name, value in found:
                if key not in rows:
                    rows[key] = number, state, completed
                    attributes[key] = {}
                if name is not None:
                    attributes[key][name] = json.loads(value)
            params = {**self._open, **self._candidates(connection, max(rows, default=self._last))}
        self._last = max(rows, default=self._last)
        self._open = {key: params.get(key, {}) for key, (_, state, _) in rows.items() if not state.is_finished()}
        for key, (number, state, completed) in rows.items():
            ended = None if completed is None else completed.replace(tzinfo=UTC).timestamp()
            yield Entry(key, number, state, params.get(key, {}), attributes[key], ended)

    def _candidates(self, connection: Connection, until: int) -> Mapping[int, Mapping[str, Candidate]]:
        """Return the candidates of the trials after the last one read."""
        from sqlalchemy import select

        found: dict[int, dict[str, Candidate]] = {}
        table, keys = self._params, (self._last, until)
        ours = select(self._trials.c.trial_id).where(self._trials.c.study_id == self.study_id)
        query = select(table.c.trial_id, table.c.param_name, table.c.param_value).where(
            table.c.trial_id > keys[0], table.c.trial_id <= keys[1], table.c.trial_id.in_(ours)
        )
        for key, name, value in connection.execute(query) if until > self._last else ():
            if name in self.choices:
                found.setdefault(key, {})[name] = self.choices[name][int(value)]
        return found

    def _lock(self, connection: Connection) -> None:
        """Let one writer of the study through until the end of the transaction."""
        from sqlalchemy import select, update

        table = self._studies
        if connection.dialect.name == "sqlite":  # knows no locks of rows, and locks the database at the first write
            name = select(table.c.study_name).where(table.c.study_id == self.study_id).scalar_subquery()
            connection.execute(update(table).where(table.c.study_id == self.study_id).values(study_name=name))
        else:
            connection.execute(select(table.c.study_id).where(table.c.study_id == self.study_id).with_for_update())

    def _chosen(self, key: int, template: FrozenTrial) -> list[dict[str, Any]]:
        return [
            {
                "trial_id": key,
                "param_name": name,
                "param_value": template.distributions[name].to_internal_repr(value),
                "distribution_json": self._distributions[name],
            }
            for name, value in template.params.items()
        ]

    def _told(self, key: int, values: Sequence[float] | None) -> list[dict[str, Any]]:
        return [
            {"trial_id": key, "objective": index, "value": value, "value_type": self._finite}
            for index, value in enumerate(values or ())
        ]

    def _insert(self, connection: Connection, table: Any, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, some hundreds with each statement."""
        from sqlalchemy import insert

        for start in range(0, len(rows), _ROWS):
            connection.execute(insert(table).values(rows[start : start + _ROWS]))


def _attributes(key: int, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": key, "key": name, "value_json": json.dumps(value)} for name, value in attributes.items()]
