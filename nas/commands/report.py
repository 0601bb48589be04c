"""``nas report``: what a study found, as a page, a picture and tables."""

import sys
from pathlib import Path

from nas.commands.boundary import UsageError, one_line
from nas.commands.silence import silenced
from nas.commands.trusting import packages
from nas.findings import find, space_of
from nas.report import write_comparison, write_report
from nas.reporting import summarise
from nas.studies import RUNS, describe_search, front_table, write_trials
from search_spaces import SearchSpace
from trials import StudyNotFoundError, StudySpec, Tracker, Trial, TrialStore, tracking_uri

__all__ = ["report"]


def report(
    study: str,
    *,
    compare: str | None = None,
    storage: str = "studies.journal",
    supernet: str | None = None,
    out: str | None = None,
    resync: bool = False,
    uri: str | None = None,
    trust: list[str] | str = [],  # noqa: B006 - only read
) -> None:
    """Write the report of a study, or of two of them side by side.

    Args:
        study: name of the study.
        compare: another study of the same objectives; both go into one page.
        storage: where studies live: a journal file, or an Optuna database URL.
        supernet: what was searched, for the layers of the architectures; what the study says by default.
        out: folder to write; runs/STUDY/report by default, runs/compare/COMPARE-STUDY for two.
        resync: also bring the record in MLflow up to date.
        uri: MLflow for that; MLFLOW_TRACKING_URI or mlflow.db here by default.
        trust: packages of your own that the supernet may name, that of your model say, with commas between.

    Raises:
        StudyNotFoundError: there is no such study.
        StoreUnavailableError: there is no such storage.
        TrackingUnavailableError: MLflow cannot be written.
    """
    with silenced():
        spec, trials = _read(study, storage)
        if compare is not None:
            if resync:
                raise UsageError("--resync completes the record of one study; leave --compare out")
            _compare((compare, *_read(compare, storage)), (study, spec, trials), out)
            return
        folder = RUNS / study / "report" if out is None else Path(out)
        space = _space(spec, supernet, packages(trust))
        findings = find(spec, trials, space, storage=storage)
        files = [*write_report(spec, trials, folder, findings).values(), write_trials(trials, folder)]
        best = summarise(spec, trials).front
        if best:
            print(front_table(spec.objectives, best))
        else:
            print(f"study {study} has no complete trial yet")
        for path in files:
            print(f"  wrote {path}")
        if resync:
            _resync(spec, trials, storage, folder, tracking_uri(uri))


def _read(study: str, storage: str) -> tuple[StudySpec, list[Trial]]:
    try:
        store = TrialStore.load(storage, study)
    except StudyNotFoundError as error:
        names = ", ".join(TrialStore.studies(storage)) or "none"
        raise UsageError(f"study {study!r} is not in {storage}; the studies there are: {names}") from error
    with store:
        return store.spec, store.trials()


def _space(spec: StudySpec, given: str | None, trust: list[str]) -> SearchSpace | None:
    """Return the space of the study; where the supernet is gone the report does without, unless it was asked for."""
    address = given or spec.metadata.get("supernet")
    if not address:
        return None
    try:
        return space_of(address, digest=spec.space_digest, trust=trust)
    except Exception as error:
        if given is not None:
            raise
        print(f"note: no pictures of architectures ({one_line(error)})", file=sys.stderr)
        return None


def _compare(
    first: tuple[str, StudySpec, list[Trial]], second: tuple[str, StudySpec, list[Trial]], out: str | None
) -> None:
    folder = RUNS / "compare" / f"{first[0]}-{second[0]}" if out is None else Path(out)
    for path in write_comparison(first[1:], second[1:], folder).values():
        print(f"  wrote {path}")


def _resync(spec: StudySpec, trials: list[Trial], storage: str, folder: Path, uri: str) -> None:
    from trials import mirror_study

    study = spec.name
    outcome = mirror_study(storage, study, uri, study, once=True)
    if not outcome.complete or outcome.run_id is None:
        raise UsageError(f"--resync could not complete the record of study {study!r}: {outcome.reason}")
    tracker = Tracker(uri, study)
    tracker.log_artifacts(outcome.run_id, folder, "report")
    note = describe_search(spec, trials, outcome.run_id, storage=storage)
    tracker.log(outcome.run_id, tags={"mlflow.note.content": note})
    print(f"  MLflow: run {outcome.run_id} of experiment {study} in {uri} is complete")
