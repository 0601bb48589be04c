"""Plain, immutable records of what a search evaluated.

Nothing here knows about a storage, a tracker or a search space: an architecture is any mapping from choice names to
candidates. The records survive JSON, pickling and process borders unchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal, get_args

__all__ = ["FORMAT_VERSION", "Candidate", "Direction", "Measurement", "Metric", "Outcome", "Trial", "TrialState"]

FORMAT_VERSION = 1
Candidate = bool | int | float | str
Direction = Literal["minimize", "maximize"]


class TrialState(StrEnum):
    """Where a trial is in its life: ``RUNNING``, then exactly one of the three finished states.

    ``INFEASIBLE`` means that a hard limit is violated, whether or not the objective was evaluated; ``FAILED`` means
    that the evaluation raised, timed out or lost its process for good.
    """

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    INFEASIBLE = "INFEASIBLE"
    FAILED = "FAILED"

    @property
    def finished(self) -> bool:
        """Whether no further change of the trial is possible."""
        return self is not TrialState.RUNNING


def check_direction(direction: str, *, owner: str) -> None:
    """Raise unless ``direction`` is one of the two words that are understood.

    Raises:
        ValueError: If it is neither ``minimize`` nor ``maximize``.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction of {owner} must be 'minimize' or 'maximize', got {direction!r}")


@dataclass(frozen=True)
class Metric:
    """A quantity that a search reads: its name, its unit (``"1"`` for a plain ratio) and which way is better.

    Raises:
        ValueError: If the name is empty or the direction unknown.
    """

    name: str
    unit: str
    direction: Direction

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name of a metric must not be empty, got ''")
        check_direction(self.direction, owner=f"metric {self.name!r}")

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return {"name": self.name, "unit": self.unit, "direction": self.direction}


@dataclass(frozen=True)
class Measurement:
    """One measured, finite value with its unit and direction.

    Raises:
        ValueError: If the value is infinite or not a number. An evaluation that cannot produce a number has failed, and
            a violated limit is a state: neither is a value.
    """

    value: float
    unit: str
    direction: Direction

    def __post_init__(self) -> None:
        check_direction(self.direction, owner="a measurement")
        if not math.isfinite(self.value):
            raise ValueError(
                f"a measurement must be finite, got {self.value}; "
                "finish the trial as FAILED or INFEASIBLE instead of recording a stand-in value"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"value": self.value, "unit": self.unit, "direction": self.direction}


def _measurements_from(data: Mapping[str, Any]) -> dict[str, Measurement]:
    return {name: Measurement(**item) for name, item in data.items()}


def _check_version(data: Mapping[str, Any], *, kind: str) -> None:
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"format_version of a {kind} must be {FORMAT_VERSION}, got {version!r}; "
            "read it with the release that wrote it"
        )


class _ReadOnlyMappings:
    """Makes the mapping fields of a frozen dataclass read-only without losing pickling."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Mapping):
                object.__setattr__(self, item.name, MappingProxyType(dict(value)))

    def __getstate__(self) -> dict[str, Any]:
        return {key: dict(value) if isinstance(value, Mapping) else value for key, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            object.__setattr__(self, key, MappingProxyType(value) if isinstance(value, dict) else value)


@dataclass(frozen=True, kw_only=True)
class Outcome(_ReadOnlyMappings):
    """What one evaluation produced, before it is attached to its trial.

    Args:
        state: One of the finished states.
        measurements: Everything measured, objectives and costs alike.
        provenance: Facts learnt while evaluating (weights digest, calibration batches, device ...).
        error: The traceback or reason of a failed evaluation.
        finished: Seconds since the epoch, or ``None`` to let the store set it.

    Raises:
        ValueError: If the state is ``RUNNING``.
    """

    state: TrialState
    measurements: Mapping[str, Measurement] = field(default_factory=dict, hash=False)
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    error: str | None = None
    finished: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "state", TrialState(self.state))
        if not self.state.finished:
            raise ValueError("state of an outcome must be COMPLETE, INFEASIBLE or FAILED, got RUNNING")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with its format version."""
        return {
            "format_version": FORMAT_VERSION,
            "state": self.state.value,
            "measurements": {name: item.to_dict() for name, item in self.measurements.items()},
            "provenance": dict(self.provenance),
            "error": self.error,
            "finished": self.finished,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outcome:
        """Rebuild an outcome from :meth:`to_dict`.

        Raises:
            ValueError: If the format version is not understood.
        """
        _check_version(data, kind="outcome")
        return cls(
            state=TrialState(data["state"]),
            measurements=_measurements_from(data["measurements"]),
            provenance=data["provenance"],
            error=data["error"],
            finished=data["finished"],
        )


@dataclass(frozen=True, kw_only=True)
class Trial(_ReadOnlyMappings):
    """One evaluated (or running) candidate with everything needed to trust, repeat or continue it.

    Args:
        number: Position in the study; unique, but not gap-free.
        architecture: Choice name to candidate, active choices only.
        arch_id: Digest of the canonical architecture.
        state: Where the trial is in its life.
        measurements: Values by metric name; empty while running.
        seed: Seed of the evaluation.
        started: Seconds since the epoch.
        finished: Seconds since the epoch, ``None`` while running.
        provenance: Where the weights and the numbers come from.
        error: Reason of a failure.
        attempt: How many attempts lost their process before this one.
        worker: Identity of the process that claimed the trial.
    """

    number: int
    architecture: Mapping[str, Candidate] = field(hash=False)
    arch_id: str
    state: TrialState
    measurements: Mapping[str, Measurement] = field(default_factory=dict, hash=False)
    seed: int = 0
    started: float = 0.0
    finished: float | None = None
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    error: str | None = None
    attempt: int = 0
    worker: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "state", TrialState(self.state))

    def value(self, metric: str) -> float:
        """Return the measured value of ``metric``.

        Raises:
            KeyError: If the trial has no such measurement.
        """
        try:
            return self.measurements[metric].value
        except KeyError:
            known = ", ".join(sorted(self.measurements)) or "none"
            raise KeyError(
                f"trial {self.number} ({self.state}) has no measurement {metric!r}; it has: {known}"
            ) from None

    def outcome(self) -> Outcome:
        """Return the outcome of a finished trial.

        Raises:
            ValueError: If the trial is still running.
        """
        if not self.state.finished:
            raise ValueError(f"trial {self.number} must be finished to have an outcome, it is RUNNING")
        return Outcome(
            state=self.state,
            measurements=self.measurements,
            provenance=self.provenance,
            error=self.error,
            finished=self.finished,
        )

    def with_outcome(self, outcome: Outcome) -> Trial:
        """Return this trial finished by ``outcome``; provenance of both is kept, the outcome's winning."""
        return replace(
            self,
            state=outcome.state,
            measurements=outcome.measurements,
            provenance={**self.provenance, **outcome.provenance},
            error=outcome.error,
            finished=outcome.finished,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with its format version."""
        return {
            "format_version": FORMAT_VERSION,
            "number": self.number,
            "architecture": dict(self.architecture),
            "arch_id": self.arch_id,
            "state": self.state.value,
            "measurements": {name: item.to_dict() for name, item in self.measurements.items()},
            "seed": self.seed,
            "started": self.started,
            "finished": self.finished,
            "provenance": dict(self.provenance),
            "error": self.error,
            "attempt": self.attempt,
            "worker": self.worker,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Rebuild a trial from :meth:`to_dict`.

        Raises:
            ValueError: If the format version is not understood or a field is missing or unknown.
        """
        _check_version(data, kind="trial")
        names = {item.name for item in fields(cls)}
        given = set(data) - {"format_version"}
        if given != names:
            raise ValueError(
                f"a trial must have exactly the fields {sorted(names)}; "
                f"missing {sorted(names - given)}, unknown {sorted(given - names)}"
            )
        values = {name: data[name] for name in names}
        values["measurements"] = _measurements_from(data["measurements"])
        return cls(**values)

    def to_json(self) -> str:
        """Return the trial as one line of JSON; equal trials give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Trial:
        """Rebuild a trial from :meth:`to_json`.

        Raises:
            ValueError: If the text is no JSON object or not a trial of a known format version.
        """
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"a trial must be a JSON object, got {type(data).__name__}")
        return cls.from_dict(data)
