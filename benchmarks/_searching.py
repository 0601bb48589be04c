"""A search whose evaluations cost nothing, for benchmarks of everything around them.

``python -m benchmarks._searching FOLDER TRIALS PAUSE`` runs or continues the study in ``FOLDER`` with tracking on,
every evaluation sleeping ``PAUSE`` seconds and leaving a line in ``FOLDER/evaluated.log``.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.controllers import Controller, Problem, RandomController
from nas.evaluation import Evaluate, Screen
from nas.objectives import Evaluation, Objective
from nas.search import Search, SearchResult
from search_spaces import Architecture, Choice, SearchSpace
from trials import Metric, SerialExecutor, StudySpec, TrialStore
from trials.mirror import Mirror, MirrorReport

STUDY = "benchmark"
EXPERIMENT = "benchmark"


class TwelveChoices(SearchSpace):
    """Twelve choices of four candidates: 16.8 million architectures of one linear layer."""

    choices = tuple(Choice(f"layer{number}.width", (8, 16, 32, 64)) for number in range(12))

    def build(self, architecture: Architecture) -> nn.Module:
        """Return a layer of the first width."""
        return nn.Linear(architecture.integer("layer0.width"), 1)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return what the layer takes."""
        return (torch.zeros(batch_size, architecture.integer("layer0.width")),)


class Constant(Objective):
    """The same accuracy for every architecture, after a pause."""

    metrics = (Metric("accuracy", "fraction", "maximize"),)

    def __init__(self, pause: float = 0.0, log: Path | None = None) -> None:
        self.pause = pause
        self.log = log

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Sleep, leave a line, return one half."""
        if self.pause:
            time.sleep(self.pause)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{architecture.arch_id} {os.getpid()}\n")
        return Evaluation({"accuracy": 0.5})


def tracking(folder: Path) -> str:
    """Address of the MLflow database of a benchmark."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def search(
    folder: Path,
    trials: int,
    objective: Objective,
    *,
    make: Callable[[Problem], Controller] = RandomController,
    seed: int = 0,
) -> tuple[SearchResult, MirrorReport, float]:
    """Run or continue the study in ``folder`` with tracking on.

    Returns:
        The result, how the mirror ended, and the seconds that the search itself took.
    """
    space = TwelveChoices()
    problem = Problem(space, objective.metrics, (), seed)
    spec = StudySpec(
        name=STUDY,
        objectives=problem.objectives,
        choices={choice.name: choice.candidates for choice in space.choices},
        space_digest=space.digest,
    )
    url = str(folder / "studies.journal")
    with TrialStore(url, spec, runs=folder / "runs") as store:
        mirror = Mirror(url, STUDY, tracking_uri=tracking(folder), experiment=EXPERIMENT, log=folder / "mirror.log")
        searching = Search(
            problem,
            make(problem),
            screen=Screen(space, [], ()),
            store=store,
            executor=SerialExecutor(Evaluate(objective)),
        )
        start = time.perf_counter()
        result = searching.run(trials)
        seconds = time.perf_counter() - start
        return result, mirror.close(timeout=600), seconds


if __name__ == "__main__":
    target, budget, wait = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    ended, report, _ = search(
        target, budget, Constant(wait, target / "evaluated.log"), seed=int(sys.argv[4]) if len(sys.argv) > 4 else 0
    )
    print(ended.reason, len(ended.trials), report)
    sys.exit(0 if report.complete else 1)
