"""Architectures that a search evaluates before its controller is asked."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import lightning as L

from nas.controllers.base import Problem
from nas.finished import best_of, finished_trials
from search_spaces import Architecture, Candidate, InvalidArchitectureError, describe, import_path
from supernets import Supernet
from trials import StoreUnavailableError, StudyNotFoundError, TrialStore

__all__ = ["FinishedStudy", "KnownArchitectures", "Planting", "Seeds"]


class Seeds(ABC):
    """Gives architectures worth trying first: ordinary trials, which the controller learns from like any other.

    Asked once for a study: the answer is kept with it, so that a search that continues, and every worker, begins with
    the same ones.
    """

    @abstractmethod
    def __call__(self, problem: Problem, supernet: Supernet, data: L.LightningDataModule) -> Sequence[Architecture]:
        """Return architectures of ``problem.space``, those to try first in front.

        Args:
            problem: what is searched for.
            supernet: trained.
            data: what the search evaluates on.
        """


@final
class KnownArchitectures(Seeds):
    """Architectures that are written down.

    Args:
        architectures: each a mapping from choice to candidate, or ``"smallest"``, ``"middle"`` or ``"largest"``.

    Raises:
        ValueError: there is none, or an unknown word.
    """

    def __init__(self, architectures: Sequence[Mapping[str, Candidate] | str]) -> None:
        named = ("smallest", "middle", "largest")
        if not architectures:
            raise ValueError("search.seeds: KnownArchitectures needs one or more architectures, got none")
        unknown = [item for item in architectures if isinstance(item, str) and item not in named]
        if unknown:
            raise ValueError(
                f"search.seeds: architectures must be mappings from choice to candidate, or one of {named}, "
                f"got {unknown}"
            )
        self.architectures = architectures

    def __call__(self, problem: Problem, supernet: Supernet, data: L.LightningDataModule) -> Sequence[Architecture]:
        """Return the architectures in canonical form.

        Raises:
            ValueError: one is not of the space.
        """
        del supernet, data
        space = problem.space
        words = {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}
        found = []
        for number, item in enumerate(self.architectures):
            try:
                found.append(words[item]() if isinstance(item, str) else space.architecture(item))
            except InvalidArchitectureError as error:
                raise ValueError(f"search.seeds: architectures[{number}]: {error}") from error
        return found


@final
class FinishedStudy(Seeds):
    """The best of another study of the same space: its Pareto front, then the front behind it, and so on.

    Trials count by the objectives and limits of the *new* problem, as far as the old study measured them, so the best
    for other limits, or for one of several objectives, can be taken. They are evaluated again: with other weights the
    old values mean little.

    Args:
        study: name of the study.
        storage: where it lives, a journal file or a database URL.
        count: how many to take at most.

    Raises:
        ValueError: ``count`` is not positive.
    """

    def __init__(self, study: str, storage: str = "studies.journal", count: int = 8) -> None:
        if count < 1:
            raise ValueError(f"search.seeds: count of FinishedStudy must be 1 or more, got {count}")
        self.study, self.storage, self.count = study, storage, count

    def __call__(self, problem: Problem, supernet: Supernet, data: L.LightningDataModule) -> Sequence[Architecture]:
        """Return up to ``count`` architectures.

        Raises:
            StoreUnavailableError: there is no such storage.
            StudyNotFoundError: it holds no such study.
            ValueError: the study is of another space, or has measured none of its trials for all objectives.
        """
        del supernet, data
        trials = finished_trials(problem, self.study, self.storage, where="search.seeds")
        return [problem.space.architecture(trial.architecture) for trial in best_of(problem, trials, self.count)]


@final
class Planting:
    """The architectures of all seeds of a search, made or, where the study has them already, read from it.

    Made before the study is created, so that a seed that cannot be made leaves no study behind.

    Args:
        seeds: asked in this order.
        problem: what is searched for.
        supernet: trained.
        data: what the search evaluates on.
        study: name of the study.
        storage: where it lives, or will.

    Raises:
        ValueError: an architecture is not of the space.
    """

    def __init__(
        self,
        seeds: Sequence[Seeds],
        problem: Problem,
        supernet: Supernet,
        data: L.LightningDataModule,
        *,
        study: str,
        storage: str,
    ) -> None:
        self._made: dict[str, list[Architecture]] = {}
        store = _existing(storage, study) if seeds else None
        for given in seeds:
            key = f"seeds.{_digest(given)}"
            note = None if store is None else store.note(key)
            made = given(problem, supernet, data) if note is None else json.loads(note)
            self._made[key] = [problem.space.architecture(values) for values in made]

    def keep(self, store: TrialStore) -> list[Architecture]:
        """Keep the architectures with the study, and return them without repeats."""
        for key, made in self._made.items():
            if store.note(key) is None:
                store.set_note(key, json.dumps([dict(architecture) for architecture in made]))
        return list(dict.fromkeys(architecture for made in self._made.values() for architecture in made))


def _existing(storage: str, study: str) -> TrialStore | None:
    try:
        return TrialStore.load(storage, study)
    except (StoreUnavailableError, StudyNotFoundError):
        return None


def _digest(seeds: Seeds) -> str:
    try:
        text = json.dumps(describe(seeds), sort_keys=True)
    except ValueError:
        text = import_path(type(seeds))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
