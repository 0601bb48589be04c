"""The two scores of what a differentiable search has found, and the gate between them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from nas import (
    DiscretisationGap,
    DiscretisationGapError,
    Discretised,
    RandomController,
    Recipe,
    SearchSettings,
    SelectedArchitecture,
    open_search,
)
from nas.addresses import Located
from nas.delivery import deliver, describe_delivery
from nas.evaluation import scored_with
from nas.known import known_trials
from supernets import LPGNASRule, NodeClassification, SandwichRule, Supernet, weights_version
from tests.supernets.test_lpgnas import Nodes, space
from trials import StudyNotFoundError, parse_limits


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return Supernet(space(), NodeClassification(3), rule=LPGNASRule(4))


def test_the_gate_fires_above_the_tolerance() -> None:
    DiscretisationGap(0.80, 0.76).check()
    for gap in (DiscretisationGap(0.745, 0.39), DiscretisationGap(0.39, 0.745)):
        with pytest.raises(DiscretisationGapError, match=r"within 5.0 points of itself .* sensitivity table"):
            gap.check()
        gap.check(0.4)


def test_both_scores_of_an_architecture_are_measured(supernet: Supernet) -> None:
    recipe = Recipe(15, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05))
    objective = Discretised(supernet, Nodes(), recipe=recipe)
    evaluation = objective(supernet.space.largest(), seed=0)
    found = evaluation.measurements
    assert found.keys() == {metric.name for metric in objective.metrics}
    batch = Nodes().batch(12, 24)
    untrained = supernet.bind(supernet.space.largest())(*supernet.task.inputs(batch))
    assert found["searched"] == pytest.approx(float((untrained.argmax(1) == batch[2])[12:24].float().mean()))
    assert found["accuracy"] > 0.6
    assert found["gap/discretise"] == pytest.approx(abs(found["accuracy"] - found["searched"]))
    assert objective.gap(supernet.space.largest(), seed=0).size == found["gap/discretise"]
    assert objective(supernet.space.largest(), seed=0) == evaluation
    assert {"weights", "searched"} <= evaluation.provenance.keys()


def test_a_search_must_limit_the_gap(supernet: Supernet) -> None:
    objective = Discretised(supernet, Nodes())
    objective.check(objective.metrics[:1], parse_limits({"max_gap/discretise": 0.05}))
    with pytest.raises(ValueError, match=r"set max_gap/discretise: 0\.05"):
        objective.check(objective.metrics[:1], parse_limits({"min_accuracy": 0.5}))


def test_what_the_rule_has_found_is_the_seed(supernet: Supernet) -> None:
    problem = cast(Any, SimpleNamespace(space=supernet.space))
    assert SelectedArchitecture()(problem, supernet, Nodes()) == [supernet.rule.selected()]
    plain = Supernet(space(), NodeClassification(3), rule=SandwichRule())
    with pytest.raises(ValueError, match="SandwichRule does not; train with LPGNASRule or DifferentiableRule"):
        SelectedArchitecture()(problem, plain, Nodes())


def test_its_trials_are_found_by_the_name_of_their_study(supernet: Supernet, tmp_path: Path) -> None:
    storage, recipe = str(tmp_path / "studies.journal"), Recipe(1)
    settings = SearchSettings(
        study="gated",
        trials=1,
        objectives=["accuracy"],
        limits={"max_gap/discretise": 1.0},
        controller=RandomController,
        objective=lambda net, data: Discretised(net, data, recipe=recipe),
        storage=storage,
    )
    with open_search(supernet, Nodes(), settings, runs=str(tmp_path)) as search:
        (trial,) = search.run(1).trials
    weights = weights_version(supernet.source)
    assert scored_with(trial, alone=True) == weights
    assert scored_with(trial, alone=False) is None
    assert scored_with(replace(trial, provenance={"weights": "scratch:0:1 steps"}), alone=True) is None
    located = Located("net", tmp_path)
    assert known_trials(located, weights=weights, study="gated", storage=storage).trials == (trial,)
    assert not known_trials(located, weights=weights, study=None, storage=storage).trials
    files = {"formats": ["safetensors"], "overwrite": False}
    delivered = deliver(supernet, Nodes(), supernet.space.architecture(trial.architecture), tmp_path / "best", **files)
    lines = describe_delivery(delivered, supernet, searched=trial).splitlines()
    told = [line.rsplit("  ", 1) for line in lines if line.startswith("accuracy, validation")]
    shown = {row.strip(): value.strip() for row, value in told}
    assert shown == {
        "accuracy, validation, trained by itself": f"{100 * trial.value('accuracy'):.2f} %",
        "accuracy, validation, as searched": f"{100 * trial.value('searched'):.2f} %",
        "accuracy, validation, as exported": f"{100 * trial.value('searched'):.2f} %",
    }
    with pytest.raises(StudyNotFoundError, match="no finished trial of these weights"):
        known_trials(located, weights="another", study="gated", storage=storage)
