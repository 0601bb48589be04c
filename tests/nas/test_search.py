"""The search loop: what is evaluated, what is recorded, and what survives."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nas.controllers import Problem, RandomController
from nas.costs import Parameters
from nas.evaluation import Evaluate, Screen
from nas.objectives import Evaluation, Objective
from nas.search import Search, front
from search_spaces import Architecture, MLPSpace
from trials import (
    Limit,
    Measurement,
    Metric,
    ProcessExecutor,
    SerialExecutor,
    StudySpec,
    Trial,
    TrialState,
    TrialStore,
)

ACCURACY = Metric("accuracy", "fraction", "maximize")
SPACE = MLPSpace(8, 3, widths=(4, 8, 16), depths=(1, 2))


class Width(Objective):
    """Accuracy grows with the widths; can be told to misbehave."""

    metrics = (ACCURACY,)

    def __init__(self, *, raise_at: int = -1, value: float | None = None, interrupt_at: int = -1) -> None:
        self.raise_at = raise_at
        self.value = value
        self.interrupt_at = interrupt_at
        self.seen: list[Architecture] = []

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        self.seen.append(architecture)
        if len(self.seen) - 1 == self.interrupt_at:
            raise KeyboardInterrupt
        if len(self.seen) - 1 == self.raise_at:
            raise RuntimeError("the training diverged")
        widths = sum(v for name, v in architecture.items() if name.endswith("width"))
        value = float(widths) / 32 if self.value is None else self.value
        return Evaluation({"accuracy": value}, {"weights": "made up"})


def problem(limits=(), space=SPACE, seed=0):
    return Problem(space, (ACCURACY, Metric("params", "1", "minimize")), tuple(limits), seed)


def spec(given, name="study"):
    return StudySpec(
        name=name,
        objectives=given.objectives,
        choices={choice.name: choice.candidates for choice in given.space.choices},
        space_digest=given.space.digest,
        limits=given.limits,
    )


def search(store, given, objective, executor=None, controller=None, progress=None):
    return Search(
        given,
        RandomController(given) if controller is None else controller,
        screen=Screen(given.space, [Parameters(given.space)], given.limits),
        store=store,
        executor=SerialExecutor(Evaluate(objective, given.limits)) if executor is None else executor,
        progress=progress,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "studies.journal")


def opened(url, given):
    return TrialStore(url, spec(given), runs=Path(url).parent / "runs")


def test_a_budget_is_spent_once_and_a_second_run_only_continues(url):
    given, objective = problem(), Width()
    with opened(url, given) as store:
        result = search(store, given, objective).run(5)
    assert result.reason == "budget"
    assert len(result.trials) == len(objective.seen) == 5
    with opened(url, given) as store:
        again = search(store, given, objective).run(5)
        assert len(objective.seen) == 5
        assert again.trials == result.trials
        more = search(store, given, objective).run(8)
    assert len(objective.seen) == len(set(objective.seen)) == 8
    assert more.trials[:5] == result.trials


def test_a_resumed_search_evaluates_what_an_uninterrupted_one_does(url, tmp_path):
    given, whole, parts = problem(), Width(), Width()
    with opened(url, given) as store:
        search(store, given, whole).run(8)
    other = str(tmp_path / "other.journal")
    for budget in (3, 8):
        with opened(other, given) as store:
            search(store, given, parts).run(budget)
    assert parts.seen == whole.seen


def test_a_small_space_ends_exhausted_without_a_repetition(url):
    space = MLPSpace(8, 3, widths=(4, 8, 16), depths=(1,))
    given, objective = problem(space=space), Width()
    with opened(url, given) as store:
        result = search(store, given, objective).run(100)
    assert result.reason == "exhausted"
    assert len(objective.seen) == len(set(objective.seen)) == space.size() == 3


def test_what_breaks_a_limit_on_costs_is_recorded_and_never_evaluated(url):
    given, objective = problem([Limit("params", 150, "max")]), Width()
    with opened(url, given) as store:
        result = search(store, given, objective).run(100)
    count = {a.arch_id: sum(p.numel() for p in SPACE.build(a).parameters()) for a in SPACE.architectures()}
    feasible = {arch_id for arch_id, parameters in count.items() if parameters <= 150}
    assert 0 < len(feasible) < len(count)
    assert {a.arch_id for a in objective.seen} == feasible
    for trial in result.trials:
        expected = TrialState.COMPLETE if trial.arch_id in feasible else TrialState.INFEASIBLE
        assert trial.state is expected
        assert trial.value("params") == count[trial.arch_id]
        assert ("accuracy" in trial.measurements) == (trial.arch_id in feasible)


def test_screened_candidates_do_not_count_against_the_budget(url):
    given, objective = problem([Limit("params", 150, "max")]), Width()
    with opened(url, given) as store:
        search(store, given, objective).run(2)
    assert len(objective.seen) == 2


def test_a_limit_on_the_objective_makes_infeasible_and_counts(url):
    given, objective = problem([Limit("accuracy", 0.3, "min")]), Width()
    with opened(url, given) as store:
        result = search(store, given, objective).run(6)
    assert len(objective.seen) == 6
    for trial in result.trials:
        assert (trial.state is TrialState.COMPLETE) == (trial.value("accuracy") >= 0.3)
    assert any(trial.state is TrialState.INFEASIBLE for trial in result.trials)


def test_a_failing_evaluation_is_data(url):
    given, objective = problem(), Width(raise_at=1)
    with opened(url, given) as store:
        result = search(store, given, objective).run(4)
    states = [trial.state for trial in result.trials]
    assert states.count(TrialState.FAILED) == 1
    assert states.count(TrialState.COMPLETE) == 3
    failed = next(trial for trial in result.trials if trial.state is TrialState.FAILED)
    assert "the training diverged" in failed.error
    assert "params" in failed.measurements


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_a_failure(url, value):
    given = problem()
    with opened(url, given) as store:
        result = search(store, given, Width(value=value)).run(1)
    assert result.trials[0].state is TrialState.FAILED
    assert "finite" in result.trials[0].error


def test_ctrl_c_gives_the_running_trial_back_and_the_next_run_begins_with_it(url):
    given, objective = problem(), Width(interrupt_at=2)
    with opened(url, given) as store:
        result = search(store, given, objective).run(5)
    assert result.reason == "interrupted"
    interrupted = objective.seen[-1]
    objective.interrupt_at = -1
    with opened(url, given) as store:
        final = search(store, given, objective).run(5)
    assert objective.seen[3] == interrupted
    assert len(final.trials) == 5
    assert all(trial.state is TrialState.COMPLETE for trial in final.trials)


def test_two_searches_in_one_study_share_its_history(url):
    given, first, second = problem(), Width(), Width()
    with opened(url, given) as one, opened(url, given) as two:
        mine, theirs = search(one, given, first), search(two, given, second)
        for budget in range(1, 9):
            (mine if budget % 2 else theirs).run(budget)
        trials = one.trials()
    assert len(trials) == 8
    assert len(first.seen) == len(second.seen) == 4
    assert not set(first.seen) & set(second.seen)


class NewestFirst(SerialExecutor):
    """Two jobs at a time, of which the one that began last ends first."""

    def __init__(self, function):
        super().__init__(function)
        self.slots = 2

    def wait(self, timeout=None):
        self._jobs.reverse()
        return super().wait(timeout)


@pytest.mark.parametrize("kind", ["process", "out of order"])
def test_other_executors_find_the_same_values(kind, url, tmp_path):
    given = problem()
    with opened(url, given) as store:
        serial = search(store, given, Width()).run(4)
    with opened(str(tmp_path / "other.journal"), given) as store:
        evaluate = Evaluate(Width())
        with (
            ProcessExecutor(evaluate, workers=1, record=store.outcomes.write)
            if kind == "process"
            else NewestFirst(evaluate)
        ) as executor:
            parallel = search(store, given, Width(), executor=executor).run(4)

    def values(result):
        return {trial.arch_id: trial.value("accuracy") for trial in result.trials}

    assert values(parallel) == values(serial)


def test_progress_sees_every_finished_trial(url):
    counts = []
    given = problem()
    with opened(url, given) as store:
        search(store, given, Width(), progress=lambda trials: counts.append(len(trials))).run(3)
    assert counts == [1, 2, 3]


def test_the_front_is_what_no_complete_trial_dominates():
    def trial(number, state, accuracy, params):
        measurements = {
            "accuracy": Measurement(accuracy, "fraction", "maximize"),
            "params": Measurement(params, "1", "minimize"),
        }
        return Trial(
            number=number, architecture={}, arch_id=str(number), state=TrialState(state), measurements=measurements
        )

    trials = [
        trial(0, "COMPLETE", 0.9, 100),
        trial(1, "COMPLETE", 0.8, 50),
        trial(2, "COMPLETE", 0.7, 60),
        trial(3, "INFEASIBLE", 0.99, 10),
        trial(4, "COMPLETE", 0.9, 100),
    ]
    assert [t.number for t in front(problem(), trials)] == [1, 0]
    assert front(problem(), []) == []


def test_a_draw_within_the_limits_replaces_an_infeasible_storm(url):
    class Stubborn(RandomController):
        """Proposes the largest networks first."""

        def ask(self, count):
            known = {t.arch_id for t in self.told} if hasattr(self, "told") else set()
            ordered = sorted(given.space.architectures(), key=lambda a: -float(given.space.encode(a).sum()))
            return [a for a in ordered if a.arch_id not in known][:count]

        def tell(self, trials):
            self.told = [*getattr(self, "told", []), *trials]

    space = MLPSpace(8, 3, widths=tuple(range(4, 18)), depths=(1, 2))
    small = sum(p.numel() for p in space.build(space.smallest()).parameters())
    given, objective = problem([Limit("params", small + 30, "max")], space=space), Width()
    with opened(url, given) as store:
        search(store, given, objective, controller=Stubborn(given)).run(2)
        assert len(objective.seen) == 2
        assert len(store.trials()) < space.size()


def test_seeds_of_trials_follow_from_the_search_seed_and_the_architecture(url):
    given = problem(seed=7)
    with opened(url, given) as store:
        result = search(store, given, Width()).run(3)
    assert len({trial.seed for trial in result.trials}) == 3
    torch.manual_seed(123)
    with opened(str(Path(url).parent / "b.journal"), given) as store:
        again = search(store, given, Width()).run(3)
    assert [t.seed for t in again.trials] == [t.seed for t in result.trials]


def test_the_controller_hears_every_change_however_the_list_of_trials_shifts():
    given, heard = problem(), []
    controller = SimpleNamespace(tell=lambda trials: heard.append([(t.number, t.state) for t in trials]))
    first, second, third = (
        Trial(number=i, architecture=a, arch_id=a.arch_id, state=TrialState.RUNNING)
        for i, a in enumerate([SPACE.smallest(), SPACE.middle(), SPACE.largest()])
    )
    ended = replace(second, state=TrialState.FAILED, finished=1.0)
    lists = iter([[first, second], [first, second], [ended, third], [ended, third]])
    running = search(SimpleNamespace(trials=lambda: next(lists)), given, Width(), controller=controller)
    for _ in range(4):
        running._listen()
    assert heard == [
        [(0, TrialState.RUNNING), (1, TrialState.RUNNING)],
        [(1, TrialState.FAILED), (2, TrialState.RUNNING)],
    ]
