"""A search and its MLflow mirror in two processes that die by ``kill -9`` at a chosen step of a chosen trial."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage

from benchmarks._searching import EXPERIMENT, STUDY, Constant, TwelveChoices, tracking
from nas.controllers import Problem, RandomController
from nas.evaluation import Evaluate, Screen
from nas.objectives import Evaluation
from nas.search import Search
from search_spaces import Architecture
from trials import OutcomeFolder, SerialExecutor, StudySpec, TrialStore, mirror, record
from trials.entries import TableEntries
from trials.ledger import Ledger
from trials.tracking import Tracker

STEPS = {
    "asked": "proposed, nothing written",
    "begun": "claimed in the store",
    "shown": "RUNNING in MLflow, being evaluated",
    "evaluated": "computed, nothing kept",
    "recorded": "outcome file written",
    "half told": "telling the store, not closed there",
    "told": "closed in the store, outcome file still there",
    "logged": "measurements in MLflow, run not ended",
}
IN_MIRROR = ("shown", "logged")


def die(*_: object) -> None:
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _hook(owner: Any, name: str, at: int, *, before: bool, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Die at the ``at``-th call of a method, before or after it."""
    original, calls = getattr(owner, name), [0]

    def hooked(*arguments: Any, **named: Any) -> Any:
        mine = when(*arguments, **named)
        calls[0] += mine
        if mine and calls[0] == at and before:
            die()
        answer = original(*arguments, **named)
        if mine and calls[0] == at:
            die()
        return answer

    setattr(owner, name, hooked)


def arm(step: str, at: int) -> None:
    """Make this process die at a step of the ``at``-th trial that reaches it."""
    if step == "asked":
        _hook(Ledger, "append", at, before=True)
    elif step == "begun":
        _hook(Ledger, "append", at, before=False)
    elif step == "shown":
        _hook(record.StudyRecord, "_child", at, before=False, when=lambda _, trial: not trial.state.finished)
    elif step == "evaluated":
        _hook(Constant, "__call__", at, before=False)
    elif step == "recorded":
        _hook(OutcomeFolder, "write", at, before=False)
    elif step == "half told":
        _hook(TableEntries, "_told", at, before=True, when=lambda *given: given[-1] is not None)
        _hook(JournalStorage, "set_trial_state_values", at, before=True)
    elif step == "told":
        _hook(Ledger, "close", at, before=False)
    elif step == "logged":
        _hook(Tracker, "end_run", at, before=True)


class Holding(Constant):
    """Evaluates some architectures, and is at the next one until somebody ends the process."""

    def __init__(self, some: int, log: Path) -> None:
        super().__init__(0.0, log)
        self.some = some

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Return one half, or nothing for a very long time."""
        self.some -= 1
        if self.some < 0:
            time.sleep(3600)
        return super().__call__(architecture, seed=seed)


def question() -> tuple[Problem, StudySpec]:
    """The problem, and the specification of its study."""
    space = TwelveChoices()
    problem = Problem(space, Constant.metrics, (), 0)
    choices = {choice.name: choice.candidates for choice in space.choices}
    spec = StudySpec(name=STUDY, objectives=problem.objectives, choices=choices, space_digest=space.digest)
    return problem, spec


def _search(url: str, folder: Path, trials: int, objective: Constant) -> None:
    problem, spec = question()
    with TrialStore(url, spec, runs=folder / "runs", heartbeat_s=0.2, lease_s=5) as store:
        Search(
            problem,
            RandomController(problem),
            screen=Screen(problem.space, [], ()),
            store=store,
            executor=SerialExecutor(Evaluate(objective), record=store.outcomes.write),
        ).run(trials)


def _follow(url: str, folder: Path, listening: int) -> None:
    """Mirror the study until the other end of the pipe is closed."""
    draining = threading.Event()

    def listen() -> None:
        os.read(listening, 1)
        draining.set()

    threading.Thread(target=listen, daemon=True).start()
    mirror._INTERVAL_S, record._YOUNG_S = 0.05, 0.0
    report = mirror.mirror_study(url, STUDY, tracking(folder), EXPERIMENT, once=False, draining=draining)
    if not report.complete:
        raise RuntimeError(report.reason)


def fork(run: Callable[[], None]) -> int:
    """Run a function in a copy of this process, which has imported everything already; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def create(url: str, folder: Path) -> None:
    """Create the study, and the database of MLflow, which MLflow cannot mend when it dies while it makes one."""

    def make() -> None:
        TrialStore(url, question()[1], runs=folder / "runs").close()
        Tracker(tracking(folder), EXPERIMENT)

    os.waitpid(fork(make), 0)


def attempt(url: str, folder: Path, trials: int, *, step: str = "") -> bool:
    """Run or continue the study; where there is a step, both processes die when one of them reaches it.

    Returns:
        Whether a process died there.

    Raises:
        RuntimeError: a process failed for another reason.
    """
    listening, speaking = os.pipe()
    log = folder / "evaluated.log"

    def search() -> None:
        os.close(listening)
        if step and step not in IN_MIRROR:
            arm(step, 2)
        held = {"shown": 0, "logged": 3}.get(step)  # the search waits where the mirror has to get
        _search(url, folder, trials, Constant(0.02, log) if held is None else Holding(held, log))

    def follow() -> None:
        os.close(speaking)
        if step in IN_MIRROR:
            arm(step, 1)
        _follow(url, folder, listening)

    follower = fork(follow)
    searcher = fork(search)
    os.close(listening)
    first, status = os.wait()
    killed = os.WIFSIGNALED(status)
    if killed:
        rest = searcher if first == follower else follower
        os.kill(rest, signal.SIGKILL)
        os.waitpid(rest, 0)
        os.close(speaking)
        return True
    os.close(speaking)
    other = os.waitpid(searcher if first == follower else follower, 0)[1]
    if os.WIFSIGNALED(other):
        return True
    if status or other:
        raise RuntimeError(f"a run ended with {status} and {other}; its message is above")
    return False
