"""What a study is about: its objectives, choices and limits, as stored beside its trials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trials.limits import Limit
from trials.trial import FORMAT_VERSION, Candidate, Measurement, Metric, TrialState

__all__ = ["StudyMismatchError", "StudySpec"]

_NAMED = 6  # differences that a message names
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class StudyMismatchError(ValueError):
    """An existing study was opened for another space, other objectives or other limits."""


@dataclass(frozen=True)
class StudySpec:
    """The question that a study answers; it cannot change once the study exists.

    Args:
        name: Name of the study, also that of its folder: letters, digits, ``.``, ``_`` and ``-``.
        objectives: What is optimised, in order.
        choices: Candidates by choice name, in the order of the space.
        space_digest: Digest of the search space.
        limits: Hard limits.
        metadata: Facts for people (how to continue, the command line ...); the first process to open the study decides.
        subject: What the measurements depend on beside the architecture (the digest of the weights, the split ...).
        reference: Worst corner for the hypervolume, one value per objective; found from the first trials when left out.

    Raises:
        ValueError: If the name is no plain name, there is no objective, names repeat, a choice has no candidates, or
            the reference does not match the objectives.
    """

    name: str
    objectives: tuple[Metric, ...]
    choices: Mapping[str, tuple[Candidate, ...]] = field(hash=False)
    space_digest: str
    limits: tuple[Limit, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)
    reference: tuple[float, ...] | None = None
    subject: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                "a study name must be letters, digits, '.', '_' and '-', starting with a letter or digit, "
                f"got {self.name!r}"
            )
        names = [metric.name for metric in self.objectives]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"objectives of study {self.name!r} must be one or more distinct metrics, got {names}")
        empty = [choice for choice, candidates in self.choices.items() if not candidates]
        if empty:
            raise ValueError(f"every choice of study {self.name!r} must have candidates, got none for {empty}")
        if self.reference is not None and len(self.reference) != len(names):
            raise ValueError(f"reference must have one value per objective {names}, got {self.reference}")
        object.__setattr__(self, "choices", {key: tuple(value) for key, value in self.choices.items()})
        object.__setattr__(self, "metadata", dict(self.metadata))

    def check_architecture(self, architecture: Mapping[str, Candidate]) -> None:
        """Raise unless every choice is known and has one of its candidates.

        Raises:
            ValueError: Naming the choice, its candidates and the value.
        """
        for choice, value in architecture.items():
            if choice not in self.choices:
                raise ValueError(f"architecture[{choice!r}] is no choice of study {self.name!r}: {list(self.choices)}")
            if value not in self.choices[choice]:
                raise ValueError(f"architecture[{choice!r}] must be one of {self.choices[choice]}, got {value!r}")

    def judge(self, measurements: Mapping[str, Measurement]) -> TrialState:
        """Return ``INFEASIBLE`` when a measured value breaks a limit, else ``COMPLETE``."""
        broken = any(
            limit.metric in measurements and not limit.holds(measurements[limit.metric].value) for limit in self.limits
        )
        return TrialState.INFEASIBLE if broken else TrialState.COMPLETE

    def check_same(self, other: StudySpec) -> None:
        """Raise unless ``other`` asks the same question; metadata and reference are free to differ.

        Raises:
            StudyMismatchError: Naming the first six differences and the way out.
        """
        differences = [
            f"{what}: stored {mine}, asked for {theirs}"
            for what, mine, theirs in (
                ("objectives", _words(self.objectives), _words(other.objectives)),
                ("limits", _limit_words(self.limits), _limit_words(other.limits)),
                ("what is evaluated", self.subject, other.subject),
                *self._differing_choices(other),
            )
            if mine != theirs
        ]
        if not differences and self.space_digest != other.space_digest:
            differences = [f"space digest: stored {self.space_digest}, asked for {other.space_digest}"]
        if differences:
            more = len(differences) - _NAMED
            shown = differences if more <= 0 else [*differences[:_NAMED], f"and {more} more"]
            raise StudyMismatchError(
                f"study {self.name!r} exists and asks another question ({'; '.join(shown)}); "
                "use another study name, or the configuration that it was started with"
            )

    def _differing_choices(self, other: StudySpec) -> list[tuple[str, object, object]]:
        names = [*self.choices, *(name for name in other.choices if name not in self.choices)]
        return [(f"choice {name}", self.choices.get(name), other.choices.get(name)) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with its format version."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "objectives": [metric.to_dict() for metric in self.objectives],
            "choices": [[name, list(candidates)] for name, candidates in self.choices.items()],
            "space_digest": self.space_digest,
            "limits": [limit.to_dict() for limit in self.limits],
            "metadata": dict(self.metadata),
            "reference": None if self.reference is None else list(self.reference),
            "subject": self.subject,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StudySpec:
        """Rebuild a specification from :meth:`to_dict`.

        Raises:
            ValueError: If the format version is not understood.
        """
        if data.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"format_version of a study must be {FORMAT_VERSION}, got {data.get('format_version')!r}; "
                "read it with the release that wrote it"
            )
        return cls(
            name=data["name"],
            objectives=tuple(Metric(**item) for item in data["objectives"]),
            choices={name: tuple(candidates) for name, candidates in data["choices"]},
            space_digest=data["space_digest"],
            limits=tuple(Limit(**item) for item in data["limits"]),
            metadata=data["metadata"],
            reference=None if data["reference"] is None else tuple(data["reference"]),
            subject=data["subject"],
        )


def _words(metrics: tuple[Metric, ...]) -> str:
    return ", ".join(f"{metric.direction} {metric.name} [{metric.unit}]" for metric in metrics)


def _limit_words(limits: tuple[Limit, ...]) -> str:
    return ", ".join(sorted(f"{limit.key}={limit.bound:g}" for limit in limits)) or "none"
