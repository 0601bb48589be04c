"""What is known of the subnetworks of a supernet: the trials of its searches, here or in MLflow."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.addresses import Located
from nas.evaluation import scored_with
from nas.studies import TRIALS_FILE
from trials import (
    Direction,
    Limit,
    StoreUnavailableError,
    StudyNotFoundError,
    Tracker,
    TrackingUnavailableError,
    Trial,
    TrialState,
    TrialStore,
)

__all__ = ["Known", "best_under", "known_trials", "ranked_under"]


@dataclass(frozen=True)
class Known:
    """Complete trials that were scored with the weights at hand.

    Attributes:
        trials: in no particular order, one per architecture.
        source: where they come from, for people.
    """

    trials: tuple[Trial, ...]
    source: str


def known_trials(located: Located, *, weights: str, study: str | None, storage: str) -> Known:
    """Return the trials of a supernet's searches; of this machine's storage, or else of MLflow.

    Args:
        located: the supernet.
        weights: version of its weights; trials of others are not comparable and left out.
        study: look at this study only; where it is named, trials of :class:`nas.Discretised` count too, whose headline
            is of the same architecture trained by itself, and those of rungs, scored on a part of the data.
        storage: where studies live.

    Raises:
        StudyNotFoundError: ``study`` is given and is neither here nor in MLflow.
    """
    local = _local(storage, study)
    found = _fitting(local, weights, named=study is not None)
    if found:
        return Known(found, f"{storage}")
    remote = _fitting(_remote(located, study), weights, named=study is not None)
    if remote:
        return Known(remote, f"MLflow run {located.tags.get('nas.search.run')}")
    if study is not None:
        raise StudyNotFoundError(
            f"--study {study} has no finished trial of these weights (shared:{weights}) in {storage}; run "
            f"`nas search --search.study {study} --ckpt_path {located.address}`, or correct --study and --storage"
        )
    return Known((), "no search")


def _fitting(trials: Sequence[Trial], weights: str, *, named: bool) -> tuple[Trial, ...]:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return tuple({t.arch_id: t for t in complete if scored_with(t, alone=named) == weights}.values())


def _local(storage: str, study: str | None) -> list[Trial]:
    if "://" not in storage and not Path(storage).exists():
        return []
    try:
        names = [name for name in TrialStore.studies(storage) if study in (None, name)]
        return [trial for name in names for trial in _trials(storage, name)]
    except StoreUnavailableError:
        if study is not None:
            raise
        return []


def _trials(storage: str, study: str) -> Iterator[Trial]:
    with TrialStore.load(storage, study) as store:
        yield from store.trials()


def _remote(located: Located, study: str | None) -> list[Trial]:
    """Read the trials that a search left as an artifact of its MLflow run."""
    run = located.tags.get("nas.search.run")
    if located.tracking is None or run is None or study not in (None, located.tags.get("nas.search.study")):
        return []
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Tracker(located.tracking).fetch(run, f"report/{TRIALS_FILE}", folder)
            return [Trial.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (FileNotFoundError, TrackingUnavailableError):
        return []


def ranked_under(
    trials: Sequence[Trial], limits: Sequence[Limit], metric: str, direction: Direction | None = None
) -> list[Trial]:
    """Return the trials that keep every limit, the best ``metric`` first.

    Of equals the one with the lower loss comes first, which tells them apart where few examples were scored, then the
    smallest. A limit on something that a trial did not measure is not kept.

    Args:
        trials: complete.
        limits: on any measurement.
        metric: that ranks; trials without it are left out.
        direction: which way is better; that of the measurement when left out.
    """
    kept = [
        trial
        for trial in trials
        if metric in trial.measurements
        and all(limit.metric in trial.measurements and limit.holds(trial.value(limit.metric)) for limit in limits)
    ]
    if not kept:
        return []
    sign = 1.0 if (direction or kept[0].measurements[metric].direction) == "minimize" else -1.0

    def rank(trial: Trial) -> tuple[float, float, float, str]:
        loss, params = (trial.value(name) if name in trial.measurements else 0.0 for name in ("loss", "params"))
        return sign * trial.value(metric), loss, params, trial.arch_id

    return sorted(kept, key=rank)


def best_under(trials: Sequence[Trial], limits: Sequence[Limit], headline: str) -> Trial | None:
    """Return the trial with the best headline among those that keep every limit; see :func:`ranked_under`."""
    return next(iter(ranked_under(trials, limits, headline)), None)
