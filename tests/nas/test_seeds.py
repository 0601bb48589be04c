"""Architectures that are evaluated before the controller is asked."""

import json
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest

from nas.controllers import Problem
from nas.finished import best_of
from nas.objectives import Evaluation, Objective
from nas.seeds import FinishedStudy, KnownArchitectures, Seeds
from nas.settings import SearchSettings, open_search
from search_spaces import MLPSpace
from supernets import Classification, Supernet
from trials import Limit, Measurement, Metric, Trial, TrialState

SPACE = MLPSpace(8, 3, widths=(4, 8, 16), depths=(1, 2))
ACCURACY, PARAMS = Metric("accuracy", "fraction", "maximize"), Metric("params", "1", "minimize")


class Width(Objective):
    metrics = (ACCURACY,)

    def __init__(self, *_: object) -> None:
        self.seen = []

    def __call__(self, architecture, *, seed):
        self.seen.append(architecture)
        return Evaluation({"accuracy": sum(v for k, v in architecture.items() if k.endswith("width")) / 64})


class Counted(Seeds):
    """The largest, counting how often it is asked."""

    calls = 0

    def __call__(self, problem, supernet, data):
        type(self).calls += 1
        return [problem.space.largest(), problem.space.largest()]


def run(tmp_path: Path, name="study", trials=4, space=SPACE, **options):
    objective = Width()
    settings = SearchSettings(
        study=name, trials=trials, storage=str(tmp_path / "s.journal"), objective=lambda *_: objective, **options
    )
    with open_search(Supernet(space, Classification(3)), L.LightningDataModule(), settings, runs=str(tmp_path)) as made:
        return made.run(trials), objective.seen


def test_seeds_are_evaluated_first_and_count_as_trials(tmp_path):
    known = [{"depth": 2, "layer1.width": 8, "layer2.width": 16}, "smallest", "largest", "smallest"]
    result, seen = run(tmp_path, seeds=[KnownArchitectures(known)])
    assert seen[:3] == [SPACE.architecture(known[0]), SPACE.smallest(), SPACE.largest()]
    assert len(seen) == len(result.trials) == 4
    again, seen = run(tmp_path, trials=6, seeds=[KnownArchitectures(known)])
    assert len(seen) == 2
    assert again.trials[:4] == result.trials


def test_a_seed_that_breaks_a_limit_is_not_evaluated(tmp_path):
    _, seen = run(tmp_path, limits={"max_params": 100}, seeds=[KnownArchitectures(["largest", "smallest"])])
    assert SPACE.largest() not in seen
    assert seen[0] == SPACE.smallest()


def test_seeds_are_made_once_for_a_study(tmp_path):
    Counted.calls = 0
    for trials in (2, 4):
        _, seen = run(tmp_path, trials=trials, seeds=[Counted(), KnownArchitectures(["middle"])])
        if trials == 2:
            assert seen == [SPACE.largest(), SPACE.middle()]
    assert Counted.calls == 1


def test_the_front_of_a_finished_study_comes_first(tmp_path):
    old, _ = run(tmp_path, "old", trials=8)
    seeds = [FinishedStudy("old", str(tmp_path / "s.journal"), count=3)]
    new, seen = run(tmp_path, "new", trials=3, seeds=seeds)
    assert {t.arch_id for t in new.trials} <= {t.arch_id for t in old.front}
    assert len(seen) == 3
    tight = min(t.value("params") for t in old.front) + 1
    run(tmp_path, "tight", trials=1, limits={"max_params": tight}, seeds=seeds)
    single, _ = run(tmp_path, "single", trials=1, objectives=["accuracy"], seeds=seeds)
    assert single.trials[0].value("accuracy") == max(t.value("accuracy") for t in old.trials)


def test_other_spaces_and_other_measurements_are_refused(tmp_path):
    run(tmp_path, "old", trials=2)
    seeds = [FinishedStudy("old", str(tmp_path / "s.journal"))]
    wider = MLPSpace(8, 3, widths=(4, 8, 32), depths=(1, 2))
    with pytest.raises(ValueError, match=r"search.seeds: study 'old' must be of the space.*'layer1.width'.*differ"):
        run(tmp_path, "new", space=wider, seeds=seeds)
    with pytest.raises(ValueError, match="it has the same choices, but its digest"):
        run(tmp_path, "new", space=MLPSpace(9, 3, widths=(4, 8, 16), depths=(1, 2)), seeds=seeds)
    problem = Problem(SPACE, (Metric("latency", "s", "minimize"),))
    with pytest.raises(ValueError, match=r"must hold trials that measured \['latency'\], it measured \['accuracy'"):
        seeds[0](problem, SimpleNamespace(), SimpleNamespace())


def test_bad_seeds_are_refused():
    with pytest.raises(ValueError, match="one or more architectures, got none"):
        KnownArchitectures([])
    with pytest.raises(ValueError, match=r"or one of \('smallest', 'middle', 'largest'\), got \['biggest'\]"):
        KnownArchitectures(["biggest"])
    with pytest.raises(ValueError, match="count of FinishedStudy must be 1 or more, got 0"):
        FinishedStudy("old", count=0)
    with pytest.raises(ValueError, match=r"search.seeds: architectures\[1\]: .*'depth'.*9"):
        KnownArchitectures(["smallest", {"depth": 9}])(Problem(SPACE, (ACCURACY,)), SimpleNamespace(), None)


def measured(number, accuracy, params):
    values = {"accuracy": Measurement(accuracy, "fraction", "maximize"), "params": Measurement(params, "1", "minimize")}
    return Trial(
        number=number,
        architecture={},
        arch_id=str(number),
        state=TrialState.COMPLETE,
        measurements=values,
        finished=1.0,
    )


def test_the_best_are_ranked_by_constrained_domination():
    points = [(0.9, 90.0), (0.5, 10.0), (0.7, 40.0), (0.6, 50.0), (0.4, 45.0), (0.99, 300.0), (0.99, 200.0)]
    trials = [measured(i, a, p) for i, (a, p) in enumerate(points)]
    problem = Problem(SPACE, (ACCURACY, PARAMS), (Limit("params", 100.0, "max"),))
    # front 0: trials 0, 1 (ends, infinitely far from others) and 2; front 1: 3; front 2: 4; then the broken ones
    assert [t.number for t in best_of(problem, trials[::-1], 7)] == [0, 1, 2, 3, 4, 6, 5]
    assert [t.number for t in best_of(problem, trials, 2)] == [0, 1]


def test_seeds_are_written_in_yaml():
    from nas.cli import NASParser

    parser = NASParser()
    parser.add_class_arguments(SearchSettings, "search")
    seeds = [
        {"class_path": "nas.KnownArchitectures", "init_args": {"architectures": ["largest", {"depth": 1}]}},
        {"class_path": "nas.FinishedStudy", "init_args": {"study": "old", "count": 3}},
    ]
    made = parser.instantiate(parser.parse_object({"search": {"seeds": seeds}})).search.seeds
    assert json.dumps(made[0].architectures) == '["largest", {"depth": 1}]'
    assert (made[1].study, made[1].count) == ("old", 3)
