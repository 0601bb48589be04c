"""Which row of a shared ledger speaks for an architecture.

Processes share a ledger without locks: whoever wants an architecture appends a row and then looks. Rows are numbered
in the order in which everybody sees them, so all agree on one rule: **of the rows of an architecture that are not void,
the lowest number has the claim.** A row becomes void when it lost that race (``duplicate``), when its process gave it
back (``released``) or died (``lost``); the architecture is then free for another attempt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from trials.trial import Outcome, Trial

__all__ = ["Claims", "Row", "Void"]


class Void(StrEnum):
    """Why a row does not count."""

    DUPLICATE = "duplicate"
    RELEASED = "released"
    LOST = "lost"


@dataclass(frozen=True)
class Row:
    """One row of the ledger as last read.

    Args:
        trial: The trial it describes.
        ledger_id: Key of the row in the ledger.
        closed: Whether the ledger accepts no further change.
        void: Why it does not count, if so.
        heartbeat: Last sign of life in seconds since the epoch.
        outcome: An outcome that was written while the row was not closed yet.
    """

    trial: Trial
    ledger_id: int
    closed: bool
    void: Void | None
    heartbeat: float
    outcome: Outcome | None


class Claims:
    """Index over the rows of one study, updated row by row; reading is cheap."""

    def __init__(self) -> None:
        self._rows: dict[int, Row] = {}
        self._by_architecture: dict[str, list[int]] = {}
        self._claims: dict[int, Trial] = {}

    def update(self, row: Row) -> None:
        """Take in a new or changed row."""
        number = row.trial.number
        numbers = self._by_architecture.setdefault(row.trial.arch_id, [])
        if number not in self._rows:
            numbers.append(number)
            numbers.sort()
        self._rows[number] = row
        for other in numbers:
            self._claims.pop(other, None)
        claim = self.claim(row.trial.arch_id)
        if claim is not None:
            self._claims[claim.trial.number] = claim.trial

    def row(self, number: int) -> Row | None:
        """Return the row with this number, void or not."""
        return self._rows.get(number)

    def claim(self, arch_id: str) -> Row | None:
        """Return the row that speaks for the architecture."""
        rows = (self._rows[number] for number in self._by_architecture.get(arch_id, ()))
        return next((row for row in rows if row.void is None), None)

    def has_claim(self, row: Row) -> bool:
        """Return whether the row speaks for its architecture."""
        return row.trial.number in self._claims

    def trials(self) -> list[Trial]:
        """Return the trial of every claimed architecture, by number."""
        return [self._claims[number] for number in sorted(self._claims)]

    def open_rows(self) -> list[Row]:
        """Return the rows that the ledger still accepts changes of."""
        return [row for row in self._rows.values() if not row.closed]

    def next_attempt(self, arch_id: str) -> int:
        """Return how many attempts at the architecture lost their process."""
        return max((row.trial.attempt + (row.void is Void.LOST) for row in self._given_up(arch_id)), default=0)

    def interrupted(self) -> list[Trial]:
        """Return the last attempt of every architecture that was begun, not finished, and is free again."""
        latest = []
        for arch_id in self._by_architecture:
            rows = list(self._given_up(arch_id))
            if rows and self.claim(arch_id) is None:
                latest.append(rows[-1].trial)
        return sorted(latest, key=lambda trial: trial.number)

    def _given_up(self, arch_id: str) -> Iterator[Row]:
        rows = (self._rows[number] for number in self._by_architecture.get(arch_id, ()))
        return (row for row in rows if row.void in (Void.LOST, Void.RELEASED))
