"""What a report can say beyond the trials: importance of choices, layers of the front, commands that lead on."""

import shlex
from collections.abc import Sequence

from nas.addresses import locate
from nas.anatomy import anatomy
from nas.importance import choice_importance
from nas.reporting import Findings, Summary, summarise
from nas.reporting.portrait import Anatomy
from search_spaces import SearchSpace, construct
from supernets import CheckpointError, CheckpointMismatchError, read_card, trusted
from trials import StudySpec, Trial

__all__ = ["commands", "find", "space_of"]

_PORTRAITS = 12


def find(spec: StudySpec, trials: Sequence[Trial], space: SearchSpace | None, *, storage: str) -> Findings:
    """Return what a report can say of a study.

    Args:
        spec: of the study.
        trials: all of its trials.
        space: that was searched; without it no layers are shown.
        storage: where the study lives, for the commands.
    """
    summary = summarise(spec, trials)
    importance = {metric.name: choice_importance(spec, trials, metric.name) for metric in spec.objectives}
    return Findings(
        importance={name: shares for name, shares in importance.items() if shares},
        anatomy=_pictured(space, _spread(summary.front)) if space is not None and summary.front else None,
        commands=commands(summary, storage=storage),
    )


def space_of(address: str, *, digest: str, trust: Sequence[str] = ()) -> SearchSpace:
    """Return the space of a saved supernet; nothing else of it is built.

    Args:
        address: path, or ``models:/NAME@alias``.
        digest: that the space must have.
        trust: packages of the user's own that the file may name.

    Raises:
        CheckpointError: the file cannot be read or names code that is not trusted.
        CheckpointMismatchError: it has another space.
    """
    path = locate(address).path
    card = read_card(path)
    if card["space_digest"] != digest:
        raise CheckpointMismatchError(f"{address} has space {card['space_digest']} now, the study searched {digest}")
    try:
        space = construct(card["model"]["space"], SearchSpace, trusted=trusted(trust))
    except ValueError as error:
        raise CheckpointError(f"space of {path}: {error}") from error
    assert isinstance(space, SearchSpace)  # noqa: S101 - construct has checked
    return space


def _pictured(space: SearchSpace, trials: Sequence[Trial]) -> Anatomy | None:
    """Return the layers, or ``None`` for networks that do not run on the example inputs of their space."""
    try:
        return anatomy(space, trials)
    except ValueError:
        return None


def _spread(front: Sequence[Trial]) -> list[Trial]:
    """Return at most a dozen trials, evenly spread over the front."""
    if len(front) <= _PORTRAITS:
        return list(front)
    step = (len(front) - 1) / (_PORTRAITS - 1)
    return [front[round(index * step)] for index in range(_PORTRAITS)]


def commands(summary: Summary, *, storage: str) -> tuple[tuple[str, str], ...]:
    """Return what a person may want to do next with a study, and the command for it."""
    spec = summary.spec
    place = [] if storage == "studies.journal" else ["--storage", storage]
    found = []
    if "continue" in spec.metadata:
        found.append(("search further", f"{spec.metadata['continue']} --search.trials {_more(len(summary.trials))}"))
    address = spec.metadata.get("supernet", "")
    if address and summary.front:
        best = summary.front[0]
        study = ["--study", spec.name, *place]
        found += [
            ("export the best", shlex.join(["nas", "sample", address, *study, "--out", f"{spec.name}-best"])),
            (
                "export any trial",
                shlex.join(["nas", "export", address, "--architecture", best.arch_id, *study, "--out", "one"]),
            ),
        ]
    found.append(("this report anew", shlex.join(["nas", "report", spec.name, *place])))
    return tuple(found)


def _more(count: int) -> int:
    return max(10, 2 * count)
