"""``nas report``: what a study found, as a page, a picture and tables."""

from pathlib import Path

from nas.commands.boundary import UsageError
from nas.commands.silence import silenced
from nas.report import write_report
from nas.reporting import summarise
from nas.studies import RUNS, front_table, write_trials
from trials import StudyNotFoundError, Tracker, TrialStore, tracking_uri

__all__ = ["report"]


def report(
    study: str,
    *,
    storage: str = "studies.journal",
    out: str | None = None,
    resync: bool = False,
    uri: str | None = None,
) -> None:
    """Write the Pareto report of a study.

    Args:
        study: name of the study.
        storage: where studies live: a journal file, or an Optuna database URL.
        out: folder to write; runs/STUDY/report by default.
        resync: also bring the record in MLflow up to date.
        uri: MLflow for that; MLFLOW_TRACKING_URI or mlflow.db here by default.

    Raises:
        StudyNotFoundError: there is no such study.
        StoreUnavailableError: there is no such storage.
        TrackingUnavailableError: MLflow cannot be written.
    """
    with silenced():
        try:
            store = TrialStore.load(storage, study)
        except StudyNotFoundError as error:
            names = ", ".join(TrialStore.studies(storage)) or "none"
            raise UsageError(f"study {study!r} is not in {storage}; the studies there are: {names}") from error
        with store:
            trials = store.trials()
            folder = RUNS / study / "report" if out is None else Path(out)
            files = [*write_report(store.spec, trials, folder).values(), write_trials(trials, folder)]
            best = summarise(store.spec, trials).front
            if best:
                print(front_table(store.spec.objectives, best))
            else:
                print(f"study {study} has no complete trial yet")
            for path in files:
                print(f"  wrote {path}")
        if resync:
            _resync(study, storage, folder, tracking_uri(uri))


def _resync(study: str, storage: str, folder: Path, uri: str) -> None:
    from trials import mirror_study

    outcome = mirror_study(storage, study, uri, study, once=True)
    if not outcome.complete or outcome.run_id is None:
        raise UsageError(f"--resync could not complete the record of study {study!r}: {outcome.reason}")
    Tracker(uri, study).log_artifacts(outcome.run_id, folder, "report")
    print(f"  MLflow: run {outcome.run_id} of experiment {study} in {uri} is complete")
