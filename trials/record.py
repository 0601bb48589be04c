"""What MLflow shows of a study, as a function of its store: one parent run, one child run for each trial."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence

from trials.pareto import hypervolume, non_dominated
from trials.store import TrialStore
from trials.study import StudySpec
from trials.tracking import Point, TrackedRun, Tracker
from trials.trial import Trial, TrialState
from trials.urls import redact

__all__ = ["StudyRecord"]

_LOST = "LOST"
_STATUSES = {
    TrialState.COMPLETE.value: "FINISHED",
    TrialState.INFEASIBLE.value: "FINISHED",
    TrialState.FAILED.value: "FAILED",
    _LOST: "KILLED",
}
_YOUNG_S = 2.0
_REFERENCE_AFTER = 10
_CURVE = "evaluations"


class StudyRecord:
    """Brings the runs of one study up to date, again and again.

    Args:
        store: The study.
        tracker: The experiment that gets the runs.
    """

    def __init__(self, store: TrialStore, tracker: Tracker) -> None:
        self.store = store
        self.tracker = tracker
        self.run_id = self._parent()
        self._children: dict[int, str] = {}
        self._states: dict[int, str] = {}
        self._find_children()
        self._curve = _Curve(store.spec)
        self._logged_until = tracker.last_step(self.run_id, _CURVE)
        self._seen = -1

    def update(self, *, allowed: Callable[[], bool] = lambda: True, ended: str = "") -> bool:
        """Write what changed since the last call.

        Args:
            allowed: Asked before each trial; ``False`` stops early.
            ended: Identity of a worker whose running trials will not finish.

        Returns:
            Whether it came to the end.

        Raises:
            TrackingUnavailableError: If MLflow cannot be written; nothing is lost, a later record continues.
        """
        trials = {trial.number: trial for trial in self.store.trials()}
        for trial in trials.values():
            if not allowed():
                return False
            self._bring(trial, ended)
        for number, state in list(self._states.items()):
            if state == TrialState.RUNNING and number not in trials:
                self._lose(number)
        self._extend_curve(list(trials.values()))
        return True

    def close(self, *, status: str) -> None:
        """End the parent run."""
        self.tracker.end_run(self.run_id, status)

    def _parent(self) -> str:
        spec = self.store.spec
        tags = {"nas.kind": "search", "nas.study": spec.name, "nas.token": self.store.outcomes.token}
        found = self.tracker.runs(tags)
        if found:
            self.tracker.reopen_run(found[0].run_id)
            return found[0].run_id
        about = {"nas.store": redact(self.store.url), "mlflow.note.content": _note(self.store)}
        run_id = self.tracker.start_run(spec.name, tags={**tags, **about})
        self.tracker.log(run_id, params=_parent_params(spec))
        return run_id

    def _find_children(self) -> None:
        for run in self.tracker.runs({"mlflow.parentRunId": self.run_id, "nas.kind": "trial"}):
            number = int(run.tags["nas.trial"].rpartition("/")[2])
            if number in self._children:  # two processes mirrored at the same time
                self.tracker.delete_run(run.run_id)
                continue
            self._children[number] = run.run_id
            self._states[number] = _mirrored_state(run)

    def _bring(self, trial: Trial, ended: str) -> None:
        known = self._states.get(trial.number)
        if trial.state.finished:
            if known != trial.state:
                self._finish(trial)
        elif trial.worker == ended or not self.store.alive(trial):
            if known == TrialState.RUNNING:
                self._lose(trial.number)
        elif known is None and time.time() - trial.started > _YOUNG_S:
            self._child(trial)

    def _child(self, trial: Trial) -> str:
        if trial.number not in self._children:
            self._children[trial.number] = self.tracker.start_run(
                f"t{trial.number:04d}-{trial.arch_id[:8]}",
                tags={
                    "nas.kind": "trial",
                    "nas.trial": f"{self.store.spec.name}/{trial.number}",
                    "nas.arch_id": trial.arch_id,
                    "nas.state": TrialState.RUNNING.value,
                    "nas.worker": trial.worker,
                },
                parent=self.run_id,
                started=trial.started,
            )
            self._states[trial.number] = TrialState.RUNNING.value
        return self._children[trial.number]

    def _finish(self, trial: Trial) -> None:
        run_id = self._child(trial)
        finished = trial.started if trial.finished is None else trial.finished
        measured = [Point(name, item.value, finished) for name, item in trial.measurements.items()]
        facts = {f"nas.provenance.{key}": value for key, value in trial.provenance.items()}
        units = {f"nas.unit.{name}": item.unit for name, item in trial.measurements.items()}
        error = {} if trial.error is None else {"nas.error": trial.error}
        self.tracker.log(
            run_id,
            points=[*measured, *_choice_points(self.store.spec, trial, finished)],
            params={f"arch/{name}": value for name, value in trial.architecture.items()}
            | {"trial/seed": trial.seed, "trial/attempt": trial.attempt},
            tags={**facts, **units, **error, "nas.state": trial.state.value},
        )
        self.tracker.end_run(run_id, _STATUSES[trial.state.value], finished=finished)
        self._states[trial.number] = trial.state.value

    def _lose(self, number: int) -> None:
        self.tracker.log(self._children[number], tags={"nas.state": _LOST})
        self.tracker.end_run(self._children[number], _STATUSES[_LOST])
        self._states[number] = _LOST

    def _extend_curve(self, trials: list[Trial]) -> None:
        """Log the curves up to the first trial that still runs; a step never changes once it is logged."""
        points: list[Point] = []
        for trial in sorted(trials, key=lambda trial: trial.number):
            if not trial.state.finished:
                break
            if trial.number <= self._seen:
                continue
            self._seen = trial.number
            values = self._curve.add(trial)
            if self._logged_until is None or trial.number > self._logged_until:
                moment = trial.started if trial.finished is None else trial.finished
                points += [Point(name, value, moment, trial.number) for name, value in values]
        if points:
            self.tracker.log(self.run_id, points=points)


class _Curve:
    """Progress of a study over its trials in order."""

    def __init__(self, spec: StudySpec) -> None:
        self.objectives = spec.objectives
        self.directions = [metric.direction for metric in spec.objectives]
        self._reference = spec.reference
        self._evaluated = 0
        self._infeasible = 0
        self._complete: list[list[float]] = []
        self._front: list[list[float]] = []
        self._volume = 0.0

    def add(self, trial: Trial) -> list[tuple[str, float]]:
        """Take in the next trial and return the curve values at its step."""
        measured = all(metric.name in trial.measurements for metric in self.objectives)
        self._evaluated += trial.state is not TrialState.INFEASIBLE or measured  # else its costs told enough
        self._infeasible += trial.state is TrialState.INFEASIBLE
        if trial.state is TrialState.COMPLETE:
            self._extend_front([trial.value(metric.name) for metric in self.objectives])
        return [(_CURVE, float(self._evaluated)), *self._values()]

    def _extend_front(self, point: list[float]) -> None:
        self._complete.append(point)
        candidates = [*self._front, point]
        mask = non_dominated(candidates, self.directions)
        self._front = [candidate for candidate, kept in zip(candidates, mask, strict=True) if kept]
        first = self._reference is None and len(self._complete) == _REFERENCE_AFTER
        if first:
            columns = zip(*self._complete, strict=True)
            self._reference = tuple(
                _beyond_worst(column, minimize=direction == "minimize")
                for column, direction in zip(columns, self.directions, strict=True)
            )
        if self._reference is not None and (mask[-1] or first):
            self._volume = hypervolume(self._front, self._reference, self.directions)

    def _values(self) -> Iterator[tuple[str, float]]:
        judged = len(self._complete) + self._infeasible
        if judged:
            yield "feasible_fraction", len(self._complete) / judged
        if not self._front:
            return
        for index, metric in enumerate(self.objectives):
            column = [point[index] for point in self._front]
            yield f"best/{metric.name}", min(column) if metric.direction == "minimize" else max(column)
        if len(self.objectives) > 1 and self._reference is not None:
            yield "hypervolume", self._volume


def _beyond_worst(column: Sequence[float], *, minimize: bool) -> float:
    """Return a value a tenth of the spread beyond the worst one, so that the ends of a front count too."""
    margin = 0.1 * ((max(column) - min(column)) or abs(column[0]) or 1.0)
    return max(column) + margin if minimize else min(column) - margin


def _mirrored_state(run: TrackedRun) -> str:
    """Return the trial state that a child run shows; one that was left half written counts as running."""
    state = run.tags.get("nas.state", "")
    return state if run.status == _STATUSES.get(state) else TrialState.RUNNING.value


def _choice_points(spec: StudySpec, trial: Trial, moment: float) -> list[Point]:
    """Return the positions of choices that are no numbers, because parallel coordinates draw numbers only."""
    return [
        Point(f"choice/{name}", float(spec.choices[name].index(value)), moment)
        for name, value in trial.architecture.items()
        if any(isinstance(candidate, bool | str) for candidate in spec.choices[name])
    ]


def _parent_params(spec: StudySpec) -> dict[str, str]:
    return {
        **{f"objective/{metric.name}": f"{metric.direction} [{metric.unit}]" for metric in spec.objectives},
        **{f"limit/{limit.key}": f"{limit.bound:g}" for limit in spec.limits},
        **{f"space/{name}": json.dumps(candidates) for name, candidates in spec.choices.items()},
        **{f"study/{key}": value for key, value in spec.metadata.items() if key != "continue"},
        "space_digest": spec.space_digest,
    }


def _note(store: TrialStore) -> str:
    spec = store.spec
    goals = ", ".join(f"{metric.direction} {metric.name} [{metric.unit}]" for metric in spec.objectives)
    limits = ", ".join(f"{limit.key} = {limit.bound:g}" for limit in spec.limits) or "none"
    lines = [f"Search **{spec.name}**: {goals}. Limits: {limits}. Trials are kept in `{redact(store.url)}`."]
    if "continue" in spec.metadata:
        lines.append(f"Continue with\n\n```\n{spec.metadata['continue']}\n```")
    return "\n\n".join(lines)
