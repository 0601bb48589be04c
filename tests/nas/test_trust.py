"""Generated weights rank candidates only after they were seen to rank networks that were trained by themselves."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch.utils.data import DataLoader, TensorDataset

from hypernets import ChunkedHyperNetwork
from nas import Evaluation, FromScratch, Objective, Parameters, Recipe, Screen, SearchSettings, WeightSharing
from nas.__main__ import main
from nas.rankings import ranking
from nas.settings import open_search
from nas.trust import TrustGate, TrustReport, UntrustedError, refuse_quick_ranking
from search_spaces import Architecture, MLPSpace
from supernets import (
    Classification,
    GeneratedWeights,
    ProgressiveRule,
    SandwichRule,
    SharedWeights,
    ShrinkingStage,
    Supernet,
    save,
)
from trials import Metric, parse_limits

SMALL = functools.partial(ChunkedHyperNetwork, hidden=(4, 8), chunk=32)
SPACE = MLPSpace(6, 3, widths=(4, 6, 8), depths=(1, 2))


class Data(L.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, torch.arange(16) % 3), batch_size=8)

    val_dataloader = test_dataloader = train_dataloader


GENERATED = functools.partial(GeneratedWeights, hypernet=SMALL)


def supernet(source: Any = GENERATED) -> Supernet:
    return Supernet(SPACE, Classification(3), source=source, calibration=2).eval()


def everything() -> list[Architecture]:
    single = [{"depth": 1, "layer1.width": width} for width in SPACE.widths]
    double = [{"depth": 2, "layer1.width": a, "layer2.width": b} for a in SPACE.widths for b in SPACE.widths]
    return [SPACE.architecture(values) for values in (*single, *double)]


def size(architecture: Architecture) -> float:
    """A truth that every test knows."""
    return sum(float(value) for name, value in architecture.items() if "width" in name)


class Scores(Objective):
    """Scores by a formula, counted."""

    metrics = (Metric("accuracy", "fraction", "maximize"),)
    inherits = True

    def __init__(self, formula: Callable[[Architecture], float], version: str = "1") -> None:
        self.formula, self.version, self.calls = formula, version, 0

    def identity(self) -> str:
        return f"scores:{self.version}"

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        self.calls += 1
        return Evaluation(dict.fromkeys(("accuracy", "loss"), self.formula(architecture)))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Scores:
    """Networks trained by themselves, without the training."""
    truth = Scores(size)
    monkeypatch.setattr("nas.trust.FromScratch", lambda *_, **__: truth)
    return truth


def measure(gate: TrustGate, objective: Objective, path: Path, limits: str = "") -> TrustReport:
    screen = Screen(SPACE, [Parameters(SPACE)], parse_limits({limits: 100.0} if limits else {}))
    return gate(supernet(), Data(), objective, screen, metric="accuracy", seed=0, path=path)


def test_tau_is_kendalls_with_ties_and_the_interval_is_the_bootstraps() -> None:
    generator = np.random.default_rng(1)
    truth, scores = generator.integers(6, size=12), generator.integers(4, size=12)
    found = ranking(truth.tolist(), scores.tolist(), level=0.9, resamples=150, seed=5)
    assert found.tau == pytest.approx(kendalltau(truth, scores).statistic)
    draws = np.random.default_rng(5).integers(12, size=(150, 12))
    taus = [kendalltau(truth[rows], scores[rows]).statistic for rows in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(taus, [0.05, 0.95])))
    assert ranking([1, 2, 3], [3, 2, 1], level=0.9, resamples=100, seed=0).tau == -1
    constant = ranking([1, 2, 3], [5, 5, 5], level=0.9, resamples=100, seed=0)
    assert (constant.tau, constant.low, constant.high) == (0, 0, 0)


def test_scores_that_rank_may_rank_and_are_measured_once(
    alone: Scores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate, objective = TrustGate(baseline="none"), Scores(lambda a: size(a) ** 2)
    report = measure(gate, objective, tmp_path / "trust.json")
    assert report.trusted
    assert report.rankings["GeneratedWeights"].tau == 1
    assert len(set(report.architectures)) == 12 == alone.calls == objective.calls
    text = capsys.readouterr().out
    assert "scores may rank candidates: Kendall tau of GeneratedWeights 1.00" in text
    assert all(arch_id in text for arch_id in report.architectures)
    assert measure(gate, objective, tmp_path / "trust.json") == report
    assert alone.calls == 12
    measure(gate, Scores(size, "other weights"), tmp_path / "trust.json")
    assert alone.calls == 24
    (tmp_path / "trust.json").write_text("{")
    measure(gate, objective, tmp_path / "trust.json")
    assert alone.calls == 36


def test_scores_that_do_not_rank_are_refused_unless_overridden(
    alone: Scores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = Scores(lambda a: int(a.arch_id, 16) % 97 / 97)
    with pytest.raises(UntrustedError, match=r"95 % interval lies above 0: Kendall tau of GeneratedWeights .*over 12"):
        measure(TrustGate(baseline="none"), noise, tmp_path / "trust.json")
    with pytest.raises(UntrustedError, match=r"search\.trust\.override: true"):
        measure(TrustGate(baseline="none"), Scores(lambda a: -size(a)), tmp_path / "reversed.json")
    assert alone.calls == 24
    report = measure(TrustGate(baseline="none", override=True), noise, tmp_path / "trust.json")
    assert not report.trusted
    assert alone.calls == 24  # the override measures nothing again
    assert "search.trust.override is on" in capsys.readouterr().out


def test_shared_weights_stand_beside_them(alone: Scores, tmp_path: Path) -> None:
    shared = supernet(SharedWeights)
    folder = str(save(shared, tmp_path / "shared"))
    report = measure(TrustGate(baseline=folder), Scores(size), tmp_path / "trust.json")
    scored, known = WeightSharing(shared, Data()), {a.arch_id: a for a in everything()}
    expected = [scored(known[arch_id], seed=0).measurements["accuracy"] for arch_id in report.architectures]
    assert report.scores["SharedWeights (baseline)"] == expected
    assert report.rankings["SharedWeights (baseline)"].low <= report.rankings["SharedWeights (baseline)"].tau
    trained = measure(TrustGate(recipe=Recipe(steps=1)), Scores(size), tmp_path / "trained.json")
    assert list(trained.scores) == ["trained alone", "GeneratedWeights", "SharedWeights (baseline)"]
    with pytest.raises(ValueError, match=r"baseline must have shared weights, and .* has GeneratedWeights"):
        measure(TrustGate(baseline=str(save(supernet(), tmp_path / "own"))), Scores(size), tmp_path / "x.json")


@pytest.mark.parametrize(("steps", "used"), [(9, ProgressiveRule), (3, SandwichRule)])
def test_the_baseline_has_a_rule_that_fits_its_steps(
    alone: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, used: type
) -> None:
    rules = []
    monkeypatch.setattr("nas.trust._fitted", lambda net, *_: rules.append(net.rule) or net.eval())
    staged = ProgressiveRule([ShrinkingStage(until=5), ShrinkingStage(elastic={"*": "all"})])
    screen, gate = Screen(SPACE, [], ()), TrustGate(recipe=Recipe(steps=steps), override=True)
    made = Supernet(SPACE, Classification(3), source=GENERATED, rule=staged)
    gate(made, Data(), Scores(size), screen, metric="accuracy", seed=0, path=tmp_path / "trust.json")
    assert [type(rule) for rule in rules] == [used]


def test_networks_are_drawn_within_the_limits_of_the_search(alone: Scores, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs 12 different architectures within the limits, and draws found"):
        measure(TrustGate(baseline="none"), Scores(size), tmp_path / "trust.json", limits="max_params")


@pytest.mark.parametrize(
    "wrong", [{"networks": 11}, {"level": 1.0}, {"resamples": 10}], ids=["networks", "level", "resamples"]
)
def test_too_little_evidence_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"search\.trust needs networks >= 12"):
        TrustGate(**wrong)


def test_a_search_asks_the_gate_for_generated_weights_alone(
    alone: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = Recipe(steps=1)

    def opened(net: Supernet, study: str, objective: Any = WeightSharing) -> dict[str, str]:
        trust = TrustGate(baseline="none", override=True)
        settings = SearchSettings(study=study, objective=objective, objectives=["params", "loss"], trust=trust)
        with open_search(net, Data(), settings) as search:
            return dict(search.store.spec.metadata)

    assert "Kendall tau of GeneratedWeights" in opened(supernet(), "generated")["trust"]
    report = TrustReport.from_json(Path("runs/generated/report/trust.json").read_text())
    assert report.metric == "loss"  # what the search ranks by
    assert "trust" not in opened(supernet(SharedWeights), "shared")
    scratch = functools.partial(FromScratch, recipe=steps)
    assert "trust" not in opened(supernet(), "scratch", scratch)
    assert alone.calls == 12


def test_trials_say_which_hypernetwork_made_the_weights() -> None:
    net = supernet()
    provenance = WeightSharing(net, Data())(SPACE.smallest(), seed=0).provenance
    assert provenance["generator"] == "ChunkedHyperNetwork"
    assert provenance["hypernetwork"] == net.source.provenance()["hypernetwork"]


def test_no_quick_search_ranks_by_generated_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(save(supernet(), tmp_path / "generated"))
    config = tmp_path / "data.yaml"
    config.write_text("data: {class_path: nas.data.DigitsData}\n")
    storage = ["--storage", str(tmp_path / "none.journal"), "--data", str(config)]
    assert main(["sample", folder, *storage, "--out", str(tmp_path / "out")]) == 2
    assert "weights of GeneratedWeights are generated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    refuse_quick_ranking(supernet(SharedWeights))
