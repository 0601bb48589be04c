"""Learning from finished studies, cheap rungs before dear ones, and ending before the budget."""

import itertools
import json
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import lightning as L
import numpy as np
import optuna
import pytest
import torch
from optuna_dashboard import wsgi
from torch.utils.data import DataLoader, TensorDataset

from nas import FromScratch, KnownArchitectures, NoImprovement, Recipe, Rungs, WarmStart, WeightSharing
from nas.controllers import Controller, PredictorController, Problem, RandomController
from nas.finished import best_of
from nas.objectives import Evaluation, Objective
from nas.rungs import stages
from nas.settings import SearchSettings, open_search
from nas.trainer import NASTrainer
from search_spaces import MLPSpace
from supernets import Classification, Supernet
from trials import Measurement, Metric, Trial, TrialState, TrialStore, hypervolume
from trials.storages import open_storage

SPACE = MLPSpace(8, 3, widths=(4, 8, 12, 16), depths=(1, 2))
ACCURACY, PARAMS = Metric("accuracy", "fraction", "maximize"), Metric("params", "1", "minimize")


class Width(Objective):
    """The sum of the widths; at a fidelity, rounded to a coarser number."""

    metrics = (ACCURACY,)

    def __init__(self, *_: object, fidelity: float = 1.0) -> None:
        self.fidelity = fidelity

    def identity(self) -> str:
        return f"width:{self.fidelity:g}"

    def at(self, fidelity: float) -> "Width":
        return Width(fidelity=fidelity)

    def __call__(self, architecture, *, seed):
        total = sum(int(v) for k, v in architecture.items() if k.endswith("width"))
        step = round(8 / self.fidelity) - 7
        return Evaluation({"accuracy": (total // step) * step / 64})


class Told(Controller):
    """Random search that remembers what it was told."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.inner = problem, RandomController(problem)
        self.heard: list[Trial] = []

    def ask(self, count):
        return self.inner.ask(count)

    def tell(self, trials):
        self.heard += trials
        self.inner.tell(trials)


def settings(tmp_path: Path, **options) -> SearchSettings:
    given = {"trials": 4, "objective": Width, "storage": str(tmp_path / "s.journal"), "controller": RandomController}
    return SearchSettings(**{**given, **options})


def searching(tmp_path: Path, space=SPACE, **options):
    given = settings(tmp_path, **options)
    net = Supernet(space, Classification(3))
    return open_search(net, L.LightningDataModule(), given, runs=str(tmp_path / "runs"))


def run(tmp_path: Path, **options):
    with searching(tmp_path, **options) as search:
        return search.run(options.get("trials", 4))


def trained(tmp_path: Path, given: SearchSettings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = NASTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return trainer.search(Supernet(SPACE, Classification(3)), L.LightningDataModule(), settings=given, report=False)


def test_a_controller_is_told_what_another_study_found(tmp_path):
    old = run(tmp_path, study="old", trials=6)
    tight = sorted(t.value("params") for t in old.trials)[2]
    start = [WarmStart("old", str(tmp_path / "s.journal"))]
    options = {"study": "new", "trials": 3, "controller": Told, "limits": {"max_params": tight}}
    with searching(tmp_path, warm_start=start, **options) as search:
        heard = list(search.controller.heard)
        result = search.run(3)
    assert {t.arch_id for t in heard} == {t.arch_id for t in old.trials}
    assert all(t.number < 0 for t in heard)
    broken = {t.arch_id for t in old.trials if t.value("params") > tight}
    assert {t.arch_id for t in heard if t.state is TrialState.INFEASIBLE} == broken
    assert not {t.arch_id for t in heard} & {t.arch_id for t in result.trials}
    assert sum(t.state is TrialState.COMPLETE for t in result.trials) == 3  # the budget is the new study's own


def test_a_told_study_spares_the_random_start(tmp_path):
    run(tmp_path, study="old", trials=12)
    start = [WarmStart("old", str(tmp_path / "s.journal"))]
    cold = run(tmp_path, study="cold", trials=1, controller=PredictorController, seed=3, objectives=["accuracy"])
    warm = run(
        tmp_path,
        study="warm",
        trials=1,
        controller=PredictorController,
        seed=3,
        warm_start=start,
        objectives=["accuracy"],
    )
    assert warm.trials[0].value("accuracy") > cold.trials[0].value("accuracy")


def test_another_space_is_refused_and_leaves_no_study(tmp_path):
    run(tmp_path, study="old", trials=2)
    start = [WarmStart("old", str(tmp_path / "s.journal"))]
    wider = MLPSpace(8, 3, widths=(4, 32), depths=(1, 2))
    with pytest.raises(ValueError, match=r"search.warm_start: study 'old' must be of the space that is searched"):
        run(tmp_path, study="new", space=wider, warm_start=start)
    assert TrialStore.studies(str(tmp_path / "s.journal")) == ("old",)


def test_rungs_promote_the_best_of_the_cheaper_one(tmp_path, monkeypatch):
    given = settings(tmp_path, study="s", trials=2, rungs=Rungs([0.25, 0.5], eta=2))
    result = trained(tmp_path, given, monkeypatch)
    problem = Problem(SPACE, (ACCURACY, PARAMS))
    rungs = [TrialStore.load(given.storage, name) for name in ("s.rung1", "s.rung2", "s")]
    assert [store.spec.subject for store in rungs] == ["width:0.25", "width:0.5", "width:1"]
    assert [len(store.trials()) for store in rungs] == [8, 4, 2]
    for lower, upper in itertools.pairwise(rungs):
        promoted = best_of(problem, lower.trials(), len(upper.trials()))
        assert [t.arch_id for t in upper.trials()] == [t.arch_id for t in promoted]
    assert [t.arch_id for t in result.trials] == [t.arch_id for t in rungs[-1].trials()]
    again = trained(tmp_path, given, monkeypatch)
    assert again.trials == result.trials
    assert [len(store.trials()) for store in rungs] == [8, 4, 2]


def test_the_stages_of_a_search():
    known = [KnownArchitectures(["largest"])]
    given = SearchSettings(study="s", trials=5, seeds=known, warm_start=[WarmStart("old")], rungs=Rungs([0.1], eta=2.5))
    first, last = stages(given)
    assert (first.study, first.trials, first.seeds, first.warm_start) == ("s.rung1", 13, known, given.warm_start)
    assert (last.study, last.trials, last.warm_start, last.rungs) == ("s", 5, (), None)
    assert last.objective is given.objective
    assert (last.seeds[0].study, last.seeds[0].count) == ("s.rung1", 5)
    assert stages(last) == [last]


class Data(L.LightningDataModule):
    def _loader(self, count):
        inputs = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
        return DataLoader(TensorDataset(inputs, torch.arange(count) % 3), batch_size=4)

    def train_dataloader(self):
        return self._loader(16)

    def val_dataloader(self):
        return self._loader(40)

    test_dataloader = val_dataloader


def test_objectives_have_cheaper_versions(tmp_path):
    net, data = Supernet(SPACE, Classification(3)), Data()
    shared = WeightSharing(net, data, calibration=2)
    third = shared.at(0.3)
    scored, whole = third.batches()[1], shared.batches()[1]
    assert len(whole) == 10
    assert [int(next(i for i, b in enumerate(whole) if torch.equal(a[0], b[0]))) for a in scored] == [0, 3, 6]
    assert third.identity() == shared.identity() + ":0.3 of the batches"
    assert third.calibration == 2
    third.require_share(data)
    shared.require_share(data)
    for fidelity, is_ in ((0.05, "none"), (0.95, "all")):
        given = settings(tmp_path, objective=lambda n, d, f=fidelity: WeightSharing(n, d).at(f))
        refused = pytest.raises(
            ValueError, match=f"{fidelity} of 10 scored batches is {is_}; lower data.eval_batch_size"
        )
        with refused, open_search(net, data, given, runs=str(tmp_path)):
            pass
    scratch = FromScratch(net, data, recipe=Recipe(steps=50))
    assert scratch.at(0.1).recipe.steps == 5
    assert scratch.at(0.001).identity() == "scratch:1:val:8"
    with pytest.raises(ValueError, match=r"fraction must be above 0 and at most 1, got 1.5"):
        WeightSharing(net, data, fraction=1.5)

    class Fixed(Objective):
        metrics = (ACCURACY,)

        def __call__(self, architecture, *, seed):
            return Evaluation({"accuracy": 0.5})

    with pytest.raises(ValueError, match=r"search.rungs: Fixed has no cheaper evaluation"):
        Fixed().at(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fidelities": []}, r"fidelities must rise and lie between 0 and 1, got \[\]"),
        ({"fidelities": [0.5, 0.2]}, "fidelities must rise"),
        ({"fidelities": [0.5, 1.0]}, "fidelities must rise and lie between 0 and 1"),
        ({"fidelities": [0.5], "eta": 1}, "eta must be above 1, got 1"),
    ],
)
def test_bad_rungs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Rungs(**options)


def done(number, accuracy, params=1.0, state=TrialState.COMPLETE):
    values = {"accuracy": Measurement(accuracy, "fraction", "maximize"), "params": Measurement(params, "1", "minimize")}
    return Trial(
        number=number, architecture={}, arch_id=str(number), state=state, measurements=values, finished=float(number)
    )


def test_a_search_without_improvement_may_end():
    problem = Problem(SPACE, (ACCURACY,))
    rising = [done(i, v) for i, v in enumerate((0.0, 0.5, 1.0, 0.2, 0.9, 1.0))]
    stop = NoImprovement(patience=3, tolerance=0.0)
    assert [stop(problem, rising[:n]) for n in range(7)] == [False] * 6 + [True]
    assert NoImprovement(patience=4, tolerance=0.5)(problem, rising)
    assert not NoImprovement(patience=4, tolerance=0.49)(problem, rising)
    failed = [done(10 + i, 0.0, state=TrialState.INFEASIBLE) for i in range(9)]
    assert not stop(problem, rising[:5] + failed)


def test_improvement_of_several_objectives_is_hypervolume():
    problem = Problem(SPACE, (ACCURACY, PARAMS))
    points = [(0.2, 10.0), (0.6, 30.0), (0.4, 20.0), (0.5, 12.0)]
    trials = [done(i, a, p) for i, (a, p) in enumerate(points)]
    scaled = np.array([((0.6 - a) / 0.4, (p - 10) / 20) for a, p in points])
    gain = hypervolume(scaled, [1.1, 1.1]) - hypervolume(scaled[:2], [1.1, 1.1])
    assert NoImprovement(2, gain + 1e-9)(problem, trials)
    assert not NoImprovement(2, gain - 1e-9)(problem, trials)


def test_a_converged_search_says_so_and_stays_so(tmp_path):
    options = {"trials": 12, "stopping": NoImprovement(3, 10.0)}
    result = run(tmp_path, **options)
    assert (result.reason, len(result.trials)) == ("converged", 4)
    assert run(tmp_path, **options).trials == result.trials
    assert run(tmp_path, trials=6).reason == "budget"


@pytest.mark.parametrize("options", [{"patience": 0}, {"tolerance": -1.0}])
def test_bad_stopping_is_refused(options):
    with pytest.raises(ValueError, match="needs patience >= 1 and tolerance >= 0, got"):
        NoImprovement(**options)


def test_the_dashboard_of_optuna_lists_our_trials(tmp_path):
    result = run(tmp_path, study="digits", limits={"max_params": 200.0})
    storage = open_storage(str(tmp_path / "s.journal"))
    app = wsgi(storage)
    (study,) = optuna.get_all_study_summaries(storage)

    def get(path):
        status = []
        environ = {"PATH_INFO": path, "QUERY_STRING": "after=0"}
        setup_testing_defaults(environ)
        body = b"".join(app(environ, lambda code, *_: status.append(code)))
        assert status == ["200 OK"]
        return json.loads(body)

    assert [item["study_name"] for item in get("/api/studies")["study_summaries"]] == ["digits"]
    shown = get(f"/api/studies/{study._study_id}")["trials"]
    assert len(shown) == len(result.trials)
    complete = [item for item in shown if item["state"] == "Complete"]
    assert sorted(item["values"][0] for item in complete) == sorted(
        t.value("accuracy") for t in result.trials if t.state is TrialState.COMPLETE
    )


@pytest.mark.parametrize(
    ("arguments", "field"), [({"steps": 0}, "steps"), ({"clip": 0.0}, "clip"), ({"clip": -1}, "clip")]
)
def test_a_recipe_out_of_range_is_refused(arguments: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=rf"Recipe\.{field} must be .*, got {arguments[field]}"):
        Recipe(**arguments)
