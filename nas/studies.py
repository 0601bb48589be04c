"""One search from the command line: progress, the MLflow mirror, the report, and what to do next."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning as L

from nas.addresses import Located
from nas.commands.tables import amount, table
from nas.evaluation import scored_with
from nas.model_card import log_data
from nas.own_code import options_for
from nas.progress import Progress
from nas.search import Search, SearchResult, front
from nas.settings import SearchSettings, open_search
from supernets import Supernet, read_card
from trials import (
    Metric,
    Mirror,
    StudySpec,
    Tracker,
    TrackingUnavailableError,
    Trial,
    TrialState,
    hypervolume,
    redact,
    write_atomically,
)

__all__ = ["RUNS", "TRIALS_FILE", "describe_search", "front_table", "run_study", "write_trials"]

RUNS = Path("runs")
CONFIG_FILE = "config.yaml"
TRIALS_FILE = "trials.jsonl"
_ROWS = 12


class _Watch:
    """Prints how a search is doing."""

    def __init__(self, settings: SearchSettings) -> None:
        self.progress = Progress("search", settings.trials, "trials")
        self._search: Search | None = None
        self._bounds: dict[str, tuple[float, float]] = {}

    def begin(self, search: Search) -> None:
        """Learn the problem, and the ends of its scale for the hypervolume."""
        self._search = search
        space = search.problem.space
        ends = [search.screen.meter(end) for end in (space.smallest(), space.largest())]
        for metric in search.problem.objectives:
            if metric.unit == "fraction":
                self._bounds[metric.name] = (0.0, 1.0)
            elif metric.name in ends[0] and ends[0][metric.name] != ends[1][metric.name]:
                low, high = sorted(end[metric.name] for end in ends)
                self._bounds[metric.name] = (low, high)
        self(search.store.trials())

    def __call__(self, trials: Sequence[Trial]) -> None:
        """Show the number of evaluated trials and the front."""
        if self._search is None:
            return
        problem = self._search.problem
        evaluated = sum(trial.state.finished and not self._screened(trial) for trial in trials)
        best = front(problem, trials)
        parts = [f"{len(best)} on the front"]
        if len(self._bounds) == len(problem.objectives) and best:
            parts.append(f"hypervolume {self._hypervolume(best, problem.objectives):.3f}")
        if best:
            parts.append(f"best {_describe(best, problem.objectives)}")
        self.progress.update(evaluated, ", ".join(parts))

    def _screened(self, trial: Trial) -> bool:
        """Whether a trial was infeasible by its costs alone, and so never evaluated."""
        assert self._search is not None  # noqa: S101 - called once a search has begun
        return trial.state is TrialState.INFEASIBLE and trial.measurements.keys() <= self._search.screen.metrics.keys()

    def _hypervolume(self, best: Sequence[Trial], objectives: Sequence[Metric]) -> float:
        """Return the dominated share of the box between the ends of every objective's scale, in [0, 1]."""
        points = []
        for trial in best:
            point = []
            for metric in objectives:
                low, high = self._bounds[metric.name]
                share = (trial.value(metric.name) - low) / (high - low)
                point.append(share if metric.direction == "minimize" else 1.0 - share)
            points.append(point)
        return hypervolume(points, [1.0] * len(objectives))


def _describe(best: Sequence[Trial], objectives: Sequence[Metric]) -> str:
    first, *others = objectives
    pick = min if first.direction == "minimize" else max
    trial = pick(best, key=lambda item: item.value(first.name))
    text = amount(trial.value(first.name), first.unit)
    return (
        f"{text} at " + ", ".join(f"{amount(trial.value(metric.name), '1')} {metric.name}" for metric in others)
        if others
        else text
    )


def front_table(objectives: Sequence[Metric], trials: Sequence[Trial]) -> str:
    """Return a table of trials, the objectives first and then whatever else was measured."""
    extra = sorted({name for trial in trials for name in trial.measurements} - {metric.name for metric in objectives})
    names = [*(metric.name for metric in objectives), *extra]
    rows = [
        [
            trial.arch_id,
            str(trial.number),
            *(
                amount(trial.value(name), trial.measurements[name].unit) if name in trial.measurements else ""
                for name in names
            ),
        ]
        for trial in trials
    ]
    return table(["architecture", "trial", *names], rows)


def write_trials(trials: Sequence[Trial], folder: Path) -> Path:
    """Write every trial as one line of JSON, from which `nas sample` picks the best under a limit."""
    path = folder / TRIALS_FILE
    write_atomically(path, "".join(trial.to_json() + "\n" for trial in trials))
    return path


@contextmanager
def _mirrored(settings: SearchSettings, tracking: str | None, folder: Path) -> Iterator[Mirror | None]:
    if tracking is None:
        yield None
        return
    mirror = Mirror(
        settings.storage, settings.study, tracking_uri=tracking, experiment=settings.study, log=folder / "mirror.log"
    )
    with mirror:
        yield mirror


def run_study(
    supernet: Supernet,
    data: L.LightningDataModule,
    settings: SearchSettings,
    *,
    tracking: str | None,
    origin: Located | None,
    command: str,
    config: str = "",
    report: bool = True,
) -> SearchResult:
    """Run or continue the study of ``settings``, print its front, and leave a report.

    Args:
        supernet: trained.
        data: to evaluate on.
        settings: the ``search`` section.
        tracking: MLflow address, or ``None``.
        origin: where the supernet came from; a registered version gets a reference to the search.
        command: how a person continues the study.
        config: the whole configuration, kept beside the report and in MLflow; passwords in addresses are not.
        report: whether to write the report at the end; of several machines, one is enough.

    Raises:
        UnsatisfiableError: no architecture can meet the limits on costs.
        StudyMismatchError: the study exists and asks another question, or has scored other weights.
        ValueError: an objective or a limit names nothing that is measured.
    """
    command, config = redact(command), redact(config)
    watch = _Watch(settings)
    metadata = {"continue": command, "supernet": "" if origin is None else origin.address}
    with open_search(supernet, data, settings, metadata=metadata, progress=watch) as search:
        folder = RUNS / settings.study
        folder.mkdir(parents=True, exist_ok=True)
        if config:
            write_atomically(folder / CONFIG_FILE, config)
        watch.begin(search)
        with _mirrored(settings, tracking, folder) as mirror:
            result = search.run(settings.trials)
            watch.progress.close()
            _announce(result, search.problem.objectives, settings, command)
            shown = redact(settings.storage)
            files = _report(search, result, folder / "report", storage=shown) if report else {}
        if mirror is not None:
            about = search.store.spec, result.trials, data
            _complete(mirror, settings, tracking, folder, origin, about)
    for path in files.values():
        print(f"  wrote {path}")
    if origin is not None and any(scored_with(trial, alone=True) for trial in result.front):
        usual = settings.storage == SearchSettings().storage
        where = f"--study {settings.study}" if usual else f"--study {settings.study} --storage {shlex.quote(shown)}"
        options = f"{where} --out {settings.study}-best{options_for(read_card(origin.path))}"
        print(f"\nNext:\n  nas sample {origin.address} {options}")
    return result


def _announce(result: SearchResult, objectives: Sequence[Metric], settings: SearchSettings, command: str) -> None:
    states = {state: sum(trial.state is state for trial in result.trials) for state in TrialState}
    counts = ", ".join(f"{count} {state.lower()}" for state, count in states.items() if count and state.finished)
    ending = {
        "budget": f"search.trials={settings.trials} evaluations done",
        "exhausted": "the space has no more architectures",
        "converged": "no improvement is expected any more, says search.stopping",
        "interrupted": "interrupted, nothing is lost",
    }[result.reason]
    print(f"[search] study {settings.study}: {ending} ({counts or 'no trials'})")
    if result.reason == "interrupted":
        print(f"[search] continue with: {command}", file=sys.stderr)
    shown = list(result.front)
    if len(shown) > _ROWS:
        step = (len(shown) - 1) / (_ROWS - 1)
        shown = [shown[round(index * step)] for index in range(_ROWS)]
    if shown:
        omitted = "" if len(shown) == len(result.front) else f" ({len(shown)} of {len(result.front)} shown)"
        print(f"\nPareto front{omitted}:\n{front_table(objectives, shown)}\n")
    if states[TrialState.FAILED]:
        failed = [trial for trial in result.trials if trial.state is TrialState.FAILED][-1]
        reason = (failed.error or "").strip().splitlines()
        print(f"[search] trial {failed.number} failed: {reason[-1] if reason else 'for no known reason'}")
        print("[search] failed trials are not begun again; once that is mended, search as another search.study")


def _report(search: Search, result: SearchResult, folder: Path, *, storage: str) -> Mapping[str, Path]:
    if not result.front:
        return {}
    from nas.findings import find  # plotting is heavy, and only needed now
    from nas.report import write_report

    spec = search.store.spec
    findings = find(spec, result.trials, search.problem.space, storage=storage)
    files = dict(write_report(spec, result.trials, folder, findings))
    files["trials_json"] = write_trials(result.trials, folder)
    return files


def _complete(
    mirror: Mirror,
    settings: SearchSettings,
    tracking: str | None,
    folder: Path,
    origin: Located | None,
    about: tuple[StudySpec, Sequence[Trial], L.LightningDataModule],
) -> None:
    """Let the mirror finish, then add report, description and data, and the references of supernet and search."""
    resync = f"nas report {settings.study} --storage {redact(settings.storage)} --resync"
    outcome = mirror.close()
    if not outcome.complete or outcome.run_id is None:
        print(f"warning: MLflow is not complete ({outcome.reason}); complete it with: {resync}", file=sys.stderr)
        return
    try:
        tracker = Tracker(tracking, settings.study)
        if (folder / CONFIG_FILE).exists():
            tracker.log_config(outcome.run_id, (folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if (folder / "report").is_dir():
            tracker.log_artifacts(outcome.run_id, folder / "report", "report")
        spec, trials, data = about
        log_data(tracker, outcome.run_id, data, context="validation")
        tags = {"mlflow.note.content": describe_search(spec, trials, outcome.run_id, storage=redact(settings.storage))}
        if origin is not None and origin.name is not None and origin.version is not None:
            found = {"nas.search.study": settings.study, "nas.search.run": outcome.run_id}
            tracker.tag_version(origin.name, origin.version, found)
            tags |= {
                "nas.supernet": f"models:/{origin.name}/{origin.version}",
                **({} if origin.run_id is None else {"nas.supernet.run": origin.run_id}),
            }
        tracker.log(outcome.run_id, tags=tags)
    except TrackingUnavailableError as error:
        print(f"warning: {error}; complete the record with: {resync}", file=sys.stderr)
        return
    print(f"  MLflow: run {outcome.run_id} of experiment {settings.study} in {tracking}")


def describe_search(spec: StudySpec, trials: Sequence[Trial], run_id: str, *, storage: str) -> str:
    """Return what MLflow shows of a search: chart, front and commands, in Markdown."""
    from nas.findings import commands
    from nas.notes import search_note
    from nas.reporting import summarise

    summary = summarise(spec, trials)
    return search_note(summary, run_id, commands(summary, storage=storage))
