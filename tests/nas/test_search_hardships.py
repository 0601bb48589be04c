"""Searches that meet broken costs, odd objectives, sparse limits, stubborn controllers and other processes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import LightningDataModule

from nas import SearchSettings, cli, open_search
from nas.controllers import Controller, Problem, RandomController
from nas.costs import Cost
from nas.data import PlanetoidData
from nas.evaluation import Evaluate, Screen
from nas.objectives import Evaluation, Objective
from nas.search import Search
from nas.studies import run_study
from search_spaces import Architecture, MLPSpace
from supernets import Classification, Supernet
from trials import Completion, Executor, Limit, Metric, SerialExecutor, StudySpec, TrialState, TrialStore

ACCURACY = Metric("accuracy", "fraction", "maximize")
SPACE = MLPSpace(8, 3, widths=tuple(range(2, 34)), depths=(1, 2, 3))


class Width(Cost):
    """Sum of the widths; refuses to measure networks of ``broken`` layers."""

    name = "width"
    unit = "1"
    direction = "minimize"

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __call__(self, architecture, model):
        if architecture["depth"] == self.broken:
            raise RuntimeError("the meter is out of order")
        return float(sum(value for name, value in architecture.items() if name.endswith("width")))


class Table(Objective):
    """Measures what ``measure`` returns or raises."""

    def __init__(self, measure, metrics=(ACCURACY,)) -> None:
        self.measure = measure
        self.metrics = metrics
        self.seen: list[Architecture] = []

    def __call__(self, architecture, *, seed):
        self.seen.append(architecture)
        return Evaluation(self.measure(architecture))


def half(architecture: Architecture) -> Mapping[str, float]:
    return {"accuracy": 0.5}


def problem(limits=(), space=SPACE) -> Problem:
    return Problem(space, (ACCURACY, Metric("width", "1", "minimize")), tuple(limits))


def opened(tmp_path: Path, given: Problem) -> TrialStore:
    spec = StudySpec(
        name="study",
        objectives=given.objectives,
        choices={choice.name: choice.candidates for choice in given.space.choices},
        space_digest=given.space.digest,
        limits=given.limits,
    )
    return TrialStore(str(tmp_path / "studies.journal"), spec, runs=tmp_path / "runs")


def run(tmp_path, objective, budget, *, limits=(), space=SPACE, cost=None, controller=RandomController, executor=None):
    given = problem(limits, space)
    with opened(tmp_path, given) as store:
        search = Search(
            given,
            controller(given),
            screen=Screen(space, [Width() if cost is None else cost], given.limits),
            store=store,
            executor=SerialExecutor(Evaluate(objective, given.limits)) if executor is None else executor,
        )
        result = search.run(budget)
    with opened(tmp_path, given) as store:
        assert store.trials() == list(result.trials), "the study holds what the search reports"
    return result


def states(result) -> list[TrialState]:
    return [trial.state for trial in result.trials]


def test_a_cost_that_raises_fails_its_trial_and_the_search_goes_on(tmp_path):
    objective = Table(half)
    result = run(tmp_path, objective, 8, cost=Width(broken=3))
    assert result.reason == "budget"
    for trial in result.trials:
        failed = trial.architecture["depth"] == 3
        assert trial.state is (TrialState.FAILED if failed else TrialState.COMPLETE)
        assert ("the meter is out of order" in (trial.error or "")) == failed
    assert set(states(result)) == {TrialState.FAILED, TrialState.COMPLETE}
    assert len(objective.seen) == states(result).count(TrialState.COMPLETE)


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), torch.tensor(0.25), np.array(0.25), True])
def test_numbers_of_other_libraries_are_numbers(tmp_path, value):
    result = run(tmp_path, Table(lambda architecture: {"accuracy": value}), 1)
    assert states(result) == [TrialState.COMPLETE]
    measured = result.trials[0].value("accuracy")
    assert type(measured) is float
    assert measured == float(value)


@pytest.mark.parametrize("value", ["good", None, [0.1, 0.2]])
def test_what_is_no_number_fails_its_trial(tmp_path, value):
    result = run(tmp_path, Table(lambda architecture: {"accuracy": value}), 1)
    assert states(result) == [TrialState.FAILED]


def test_a_metric_that_was_promised_and_not_measured_fails_its_trial(tmp_path):
    objective = Table(half, metrics=(ACCURACY, Metric("loss", "nats", "minimize")))
    result = run(tmp_path, objective, 1)
    assert states(result) == [TrialState.FAILED]
    assert "must measure ['accuracy', 'loss'] as finite numbers; missing ['loss']" in result.trials[0].error
    assert result.trials[0].value("width") > 0


def test_an_objective_that_exits_fails_its_trial(tmp_path):
    def leave(architecture: Architecture) -> Mapping[str, float]:
        raise SystemExit(3)

    result = run(tmp_path, Table(leave), 2)
    assert states(result) == [TrialState.FAILED] * 2
    assert "SystemExit: 3" in result.trials[0].error


@pytest.mark.timeout(60)
def test_limits_that_almost_nothing_keeps_end_exhausted(tmp_path):
    objective = Table(half)
    result = run(tmp_path, objective, 50, limits=[Limit("width", 3, "max")])
    assert result.reason == "exhausted"
    assert {tuple(dict(a).items()) for a in objective.seen} == {
        (("depth", 1), ("layer1.width", 2)),
        (("depth", 1), ("layer1.width", 3)),
    }
    assert len(result.trials) < 2000, f"of {SPACE.size()} architectures"


class Repeating(Controller):
    """Has one idea."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def ask(self, count):
        return [self.problem.space.smallest()] * count

    def tell(self, trials):
        pass


@pytest.mark.timeout(60)
def test_a_controller_that_repeats_itself_ends_the_search(tmp_path):
    objective = Table(half)
    result = run(tmp_path, objective, 5, controller=Repeating)
    assert result.reason == "exhausted"
    assert objective.seen == [SPACE.smallest()]


class Overdue(Executor):
    """Gives up on every job, as a pool of processes does after its timeout."""

    slots = 2

    def __init__(self) -> None:
        self.keys: list[int] = []

    def submit(self, key, argument):
        self.keys.append(key)

    def wait(self, timeout=None):
        keys, self.keys = self.keys, []
        return [Completion(key, None, "timed out after 1 s") for key in keys]

    def close(self):
        self.keys = []


def test_a_trial_that_timed_out_keeps_its_costs(tmp_path):
    result = run(tmp_path, Table(half), 3, executor=Overdue())
    assert states(result) == [TrialState.FAILED] * 3
    for trial in result.trials:
        assert trial.error == "timed out after 1 s"
        assert trial.value("width") == Width()(trial.architecture, None)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_is_not_there_is_one_error_and_leaves_no_study(tmp_path, workers):
    supernet = Supernet(SPACE, Classification(3))
    storage = tmp_path / "studies.journal"
    settings = SearchSettings(storage=str(storage), workers=workers)
    data = PlanetoidData(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"), open_search(supernet, data, settings):
        pass
    assert not storage.exists()


def test_a_failure_is_told_beside_the_front(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def measure(architecture: Architecture) -> Mapping[str, float]:
        if architecture["depth"] > 1:
            raise RuntimeError("the disk is full")
        return half(architecture)

    settings = SearchSettings(
        study="mixed", trials=6, controller=RandomController, objective=lambda net, data: Table(measure)
    )
    supernet, data = Supernet(SPACE, Classification(3)), LightningDataModule()
    result = run_study(supernet, data, settings, tracking=None, origin=None, command="nas search", report=False)
    assert {TrialState.FAILED, TrialState.COMPLETE} == set(states(result))
    assert not result.failed
    assert not replace(result, trials=()).failed
    only = tuple(t for t in result.trials if t.state is TrialState.FAILED)
    for ending, code in ((result, 0), (replace(result, trials=only), 1), (replace(result, reason="interrupted"), 130)):
        monkeypatch.setattr(cli, "NASCLI", lambda arguments, ending=ending: SimpleNamespace(result=ending))
        assert cli.run(["search"]) == code
    said = capsys.readouterr().out
    assert "Pareto front" in said
    last = max(trial.number for trial in result.trials if trial.state is TrialState.FAILED)
    assert f"trial {last} failed: RuntimeError: the disk is full" in said


def test_the_budget_is_met_although_another_process_gives_its_trial_back(tmp_path):
    given = problem()
    taken = given.space.largest()
    with opened(tmp_path, given) as other:
        assert other.begin(taken, taken.arch_id, seed=0) is not None

        def measure(architecture: Architecture) -> Mapping[str, float]:
            other.close()
            return {"accuracy": 0.5}

        result = run(tmp_path, Table(measure), 3)
    assert result.reason == "budget"
    assert states(result) == [TrialState.COMPLETE] * 3
