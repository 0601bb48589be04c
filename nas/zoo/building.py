"""Building a model zoo: a job for each task, in worker processes, each result a file; repeated, it goes on."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from hypernets.diffusion.zoo import save_index, save_task, tasks_in
from nas.data.module import ImageDataModule
from nas.zoo.tasks import ZooTasks
from nas.zoo.training import accuracies, starts, train_many
from search_spaces import Architecture, SearchSpace, derive_seed, describe
from trials import Executor, ProcessExecutor, SerialExecutor

__all__ = ["ZooError", "ZooRecipe", "ZooRequest", "build_zoo"]


class ZooError(RuntimeError):
    """Networks of a task could not be trained."""


@final
@dataclass(frozen=True)
class ZooRecipe:
    """How the networks are trained: by Adam, on random batches.

    Args:
        networks: of each task.
        steps: of each network.
        batch: examples of a step.
        lr: learning rate.
        shared_start: all networks of all tasks start from the same weights, so that they need no alignment.
        seed: of weights and batches.

    Raises:
        ValueError: a number is not positive.
    """

    networks: int = 12
    steps: int = 250
    batch: int = 64
    lr: float = 5e-3
    shared_start: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("networks", "steps", "batch", "lr"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")


@final
@dataclass(frozen=True)
class ZooRequest:
    """All that decides what a zoo is.

    Attributes:
        space: of the networks.
        architecture: theirs.
        data: a labelled data set of images.
        tasks: its variations.
        recipe: of the training.
    """

    space: SearchSpace
    architecture: Architecture
    data: ImageDataModule
    tasks: ZooTasks
    recipe: ZooRecipe

    def to_json(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {
            "space": describe(self.space),
            "architecture": dict(self.architecture),
            "data": describe(self.data),
            "tasks": describe(self.tasks),
            "recipe": asdict(self.recipe),
        }

    @property
    def digest(self) -> str:
        """Equal for equal requests, in every process."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]


def build_zoo(
    request: ZooRequest,
    folder: str | Path,
    *,
    workers: int = 2,
    progress: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> int:
    """Train all networks that are not there yet.

    Every task is one job and one file, written all or nothing by the process that trained it: after Ctrl-C or
    ``kill -9`` the same call continues with the tasks that are missing, and ends with the same files.

    Args:
        request: what the zoo is.
        folder: new, empty, or of the same request.
        workers: processes; 1 trains in this one.
        progress: called with a task and its scores as soon as it is done, also for those done before.

    Returns:
        How many tasks were trained by this call.

    Raises:
        ZooFileError: the folder holds another zoo.
        ZooError: some tasks failed; the others are there.
        ValueError: tasks do not fit the data, or ``workers`` is below 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    _check_outputs(request)
    digest = request.digest
    done = tasks_in(folder, request=digest)
    save_index(folder, request.to_json(), count=len(request.tasks), request=digest)
    for task, about in sorted(done.items()):
        if progress is not None:
            progress(task, about)
    wanted = [task for task in range(len(request.tasks)) if task not in done]
    if not wanted:
        return 0
    job = _Job(request, Path(folder).absolute(), digest, *_examples(request.data))
    failed: dict[int, str] = {}
    executor: Executor[int, dict[str, Any]]
    executor = SerialExecutor(job) if workers == 1 else ProcessExecutor(job, workers=workers, threads=1)
    with executor:
        for task in wanted:
            executor.submit(task, task)
        for _ in range(len(wanted)):
            for completion in executor.wait():
                if completion.result is None:
                    failed[completion.key] = str(completion.error).strip().splitlines()[-1]
                elif progress is not None:
                    progress(completion.key, completion.result)
    if failed:
        first = min(failed)
        raise ZooError(
            f"{len(failed)} of {len(wanted)} tasks failed, task {first} with: {failed[first]}; the others are in "
            f"{folder}, and the same command tries these again"
        )
    return len(wanted)


@torch.no_grad()
def _check_outputs(request: ZooRequest) -> None:
    needed = request.tasks.classes(request.data.num_classes)
    module = request.space.build(request.architecture).eval()
    found = module(torch.zeros(1, *request.data.image_shape)).shape[-1]
    if found < needed:
        raise ValueError(f"the networks need an output for each of {needed} classes of a task, they have {found}")


@final
@dataclass(frozen=True)
class _Job:
    """Trains the networks of one task and writes them; runs in a worker process."""

    request: ZooRequest
    folder: Path
    digest: str
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]

    def __call__(self, task: int) -> dict[str, Any]:
        recipe, tasks = self.request.recipe, self.request.tasks
        module = self.request.space.build(self.request.architecture)
        own = 0 if recipe.shared_start else 1 + task
        begun = starts(module, recipe.networks, shared=recipe.shared_start, seed=derive_seed(recipe.seed, "start", own))
        inputs, labels = tasks.data(task, *self.train)
        trained = train_many(
            module,
            begun,
            inputs,
            labels,
            steps=recipe.steps,
            batch=recipe.batch,
            lr=recipe.lr,
            seed=derive_seed(recipe.seed, "batches", task),
        )
        batches = torch.split(inputs[: 8 * recipe.batch], recipe.batch)
        scores = accuracies(module, trained, *tasks.data(task, *self.validation), calibration=batches)
        if not all(bool(value.isfinite().all()) for value in trained.values()):
            raise ZooError(f"weights are not finite after {recipe.steps} steps; lower lr, which is {recipe.lr}")
        description = dict(tasks.describe(task))
        save_task(self.folder, task, trained, scores, description=description, request=self.digest)
        return {"task": task, "description": description, "scores": scores.tolist()}


def _examples(data: ImageDataModule) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    parts = (data.splits.train, data.splits.validation)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(parts[0]), generator=generator)
    first, second = ((data.standardization(part.images), part.labels) for part in (parts[0].take(order), parts[1]))
    return first, second
