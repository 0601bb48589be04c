"""``nas zoo``: many small networks over many tasks, to learn the distribution of trained weights from."""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from nas.commands.boundary import UsageError
from nas.commands.export import spelt_out
from nas.commands.sections import build_sections, read_yaml
from nas.commands.silence import silenced
from nas.commands.tables import table
from nas.data.module import ImageDataModule
from nas.progress import Progress
from nas.zoo import ClassSubsets, Rotations, ZooRecipe, ZooRequest, ZooTasks, build_zoo
from search_spaces import SearchSpace
from trials import Tracker, TrackingUnavailableError, tracking_uri
from trials.tracking import Point

__all__ = ["zoo"]

_SHOWN = 12


def zoo(
    config: str,
    *,
    out: str = "zoo",
    architecture: str = "smallest",
    rotations: list[float] = [],  # noqa: B006 - only read
    ways: int | None = None,
    subsets: int = 60,
    classes: list[int] | None = None,
    networks: int = 12,
    steps: int = 250,
    batch: int = 64,
    lr: float = 5e-3,
    shared_start: bool = False,
    workers: int = 2,
    study: str = "zoo",
    tracked: bool = True,
    seed: int = 0,
) -> None:
    """Train a zoo of small networks over variations of one data set.

    Stopped in any way, the same command goes on where it was.

    Args:
        config: the YAML file of an experiment; its `model.init_args.space` and `data` are read.
        out: folder to write: new, empty, or of the same zoo.
        architecture: of the networks, a JSON object of choices, or one of smallest, middle and largest.
        rotations: one task for each of these angles in degrees, all images turned by it.
        ways: one task for each of some choices of so many classes; instead of rotations.
        subsets: number of these choices.
        classes: to choose from; all by default.
        networks: of each task.
        steps: of training each network.
        batch: examples of a step.
        lr: learning rate of Adam.
        shared_start: all networks start from the same weights; they need no alignment then.
        workers: processes.
        study: experiment in MLflow.
        tracked: keep a record in MLflow; false for none.
        seed: of weights, batches and choices.

    Raises:
        UsageError: the configuration or the tasks cannot be used.
        ZooFileError: `out` holds another zoo.
        ZooError: tasks failed.
    """
    if bool(rotations) == (ways is not None):
        raise UsageError("nas zoo needs its tasks: either --rotations '[0, 15, 30]' or --ways 3, not both")
    with silenced():
        space, data = _read(Path(config))
        chosen = spelt_out(architecture, space)
        if chosen is None:
            raise UsageError(
                f"--architecture must be a JSON object of choices, or smallest, middle or largest; got {architecture!r}"
            )
        tasks: ZooTasks
        if ways is None:
            tasks = Rotations(rotations)
        else:
            tasks = ClassSubsets(ways, subsets, of=range(data.num_classes) if classes is None else classes, seed=seed)
        recipe = ZooRecipe(networks, steps, batch, lr, shared_start, seed)
        request = ZooRequest(space, chosen, data, tasks, recipe)
        shown = Progress("zoo", len(tasks), "tasks")
        record = _Record(request, study if tracked else None)
        rows: dict[int, Mapping[str, Any]] = {}

        def finished(task: int, about: Mapping[str, Any]) -> None:
            rows[task] = about
            record.add(task, about)
            shown.update(len(rows), f"accuracy {100 * statistics.fmean(about['scores']):.1f} %")

        try:
            trained = build_zoo(request, out, workers=workers, progress=finished)
        except BaseException:
            record.end("FAILED")
            raise
        shown.close()
        record.end("FINISHED")
    _show(rows, trained, Path(out), networks)


def _read(path: Path) -> tuple[SearchSpace, ImageDataModule]:
    found = build_sections(read_yaml(path), {"model.init_args.space": SearchSpace, "data": L.LightningDataModule})
    missing = [key for key in ("model.init_args.space", "data") if key not in found]
    if missing:
        raise UsageError(f"{path} must have {' and '.join(missing)}; see configs/digits.yaml")
    space, data = found["model.init_args.space"], found["data"]
    if not isinstance(data, ImageDataModule):
        raise UsageError(f"data of {path} must be labelled images, such as nas.ImageData; got {type(data).__name__}")
    return space, data


class _Record:
    """The run of a zoo in MLflow, the same one when the zoo is continued; MLflow being away costs a warning."""

    def __init__(self, request: ZooRequest, study: str | None) -> None:
        self.tracker: Tracker | None = None
        self.run = ""
        if study is None:
            return
        tags = {"nas.kind": "zoo", "nas.zoo": request.digest}
        try:
            tracker = Tracker(tracking_uri(), study)
            known = tracker.runs(tags)
            self.run = known[0].run_id if known else tracker.start_run(f"zoo of {len(request.tasks)} tasks", tags=tags)
            if known:
                tracker.reopen_run(self.run)
            else:
                tracker.log_config(self.run, json.dumps(request.to_json(), indent=2), "zoo.json")
            self.tracker = tracker
        except TrackingUnavailableError as error:
            print(f"warning: not recorded in MLflow, but nothing is lost: {error}", file=sys.stderr)

    def add(self, task: int, about: Mapping[str, Any]) -> None:
        scores = about["scores"]
        values = {"accuracy_mean": statistics.fmean(scores), "accuracy_min": min(scores), "accuracy_max": max(scores)}
        self._try(
            lambda tracker: tracker.log(self.run, points=[Point(k, v, time.time(), task) for k, v in values.items()])
        )

    def end(self, status: str) -> None:
        self._try(lambda tracker: tracker.end_run(self.run, status))

    def _try(self, work: Any) -> None:
        if self.tracker is None:
            return
        try:
            work(self.tracker)
        except TrackingUnavailableError as error:
            self.tracker = None
            print(f"warning: not recorded in MLflow, but nothing is lost: {error}", file=sys.stderr)


def _show(rows: Mapping[int, Mapping[str, Any]], trained: int, out: Path, networks: int) -> None:
    lines = [
        [
            str(task),
            ", ".join(f"{key} {value}" for key, value in about["description"].items()),
            f"{100 * statistics.fmean(about['scores']):.2f} %",
            f"{100 * min(about['scores']):.2f} %",
        ]
        for task, about in sorted(rows.items())
    ]
    print(f"\n{table(['task', 'what', 'accuracy, mean', 'lowest'], lines[:_SHOWN])}")
    if len(lines) > _SHOWN:
        print(f"... and {len(lines) - _SHOWN} more")
    mean = statistics.fmean(score for about in rows.values() for score in about["scores"])
    print(f"\n[zoo] {len(rows) * networks} networks of {len(rows)} tasks in {out}, {trained} tasks trained now")
    print(f"[zoo] validation accuracy on their own tasks {100 * mean:.2f} %")
