"""What a report says beyond the trials themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nas.reporting.portrait import Anatomy

__all__ = ["Findings"]


@dataclass(frozen=True)
class Findings:
    """Facts about a study that take a model or a computation; each may be missing.

    Attributes:
        importance: objective -> choice -> share of the variance that it explains alone.
        anatomy: layers of trials of the front.
        commands: what a person may want to do next, and the command for it.
    """

    importance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    anatomy: Anatomy | None = None
    commands: tuple[tuple[str, str], ...] = ()
