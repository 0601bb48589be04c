"""Calibration errors as measurements of a search: who is scored, who fits the temperature, and what is refused."""

import functools
import json
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hypernets import ChunkedHyperNetwork
from nas import Confidence, SearchSettings, WeightSharing, open_search
from nas.delivery import deliver, describe_delivery
from search_spaces import FactorySpace, MLPSpace
from supernets import Classification, GeneratedWeights, SpeakerVerification, Supernet, fit_temperature, reliability
from trials import Measurement, StudyMismatchError, Trial, TrialState

NAMES = {
    *("ece", "ece_adaptive", "nll", "brier", "temperature"),
    *("ece_scaled", "ece_adaptive_scaled", "nll_scaled", "brier_scaled"),
}


class Data(L.LightningDataModule):
    """Rows whose label is the place of their largest feature, most of the time."""

    def _loader(self, seed: int, count: int) -> DataLoader:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(count, 3, generator=generator)
        labels = (inputs + 0.5 * torch.randn(count, 3, generator=generator)).argmax(1)
        return DataLoader(TensorDataset(inputs, labels), batch_size=32)

    def train_dataloader(self):
        return self._loader(0, 64)

    def val_dataloader(self):
        return self._loader(1, 200)

    def test_dataloader(self):
        return self._loader(2, 100)


def supernet() -> Supernet:
    return Supernet(MLPSpace(3, 3, widths=(4, 8), depths=(1,)), Classification(3), calibration=2)


def logits_of(net: Supernet, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    objective = WeightSharing(net, Data(), split=split)
    module = objective.module(net.space.largest())
    with torch.no_grad():
        outputs = [(module(images), labels) for images, labels in objective.batches()[1]]
    return torch.cat([logits for logits, _ in outputs]), torch.cat([labels for _, labels in outputs])


def test_it_adds_its_measurements_and_leaves_the_others_as_they_are():
    net = supernet()
    plain = WeightSharing(net, Data())(net.space.largest(), seed=0)
    objective = WeightSharing(net, Data(), confidence=Confidence())
    found = objective(net.space.largest(), seed=0)
    assert found.measurements.keys() - plain.measurements.keys() == NAMES == {m.name for m in Confidence.metrics}
    assert {name: found.measurements[name] for name in plain.measurements} == plain.measurements
    assert {metric.name for metric in objective.metrics} == found.measurements.keys()
    assert objective.metrics[0].name == "accuracy"
    assert objective(net.space.largest(), seed=1).measurements == found.measurements


def test_the_test_split_is_scored_with_the_temperature_of_the_validation_split():
    net = supernet()
    found = WeightSharing(net, Data(), split="test", confidence=Confidence(bins=10))(net.space.largest(), seed=0)
    temperature = fit_temperature(*logits_of(net, "val"))
    logits, labels = logits_of(net, "test")
    assert found.measurements["temperature"] == pytest.approx(temperature, rel=1e-6)
    for name, divisor in (("ece", 1.0), ("ece_scaled", temperature)):
        expected = reliability(torch.softmax(logits / divisor, 1), labels, bins=10).error
        assert found.measurements[name] == pytest.approx(expected, abs=1e-6)
    assert found.provenance["temperature_split"].startswith("200 decisions beside 100 scored, ")
    bins = json.loads(found.provenance["reliability"])
    assert sum(count for count, _, _ in bins["raw"]) == sum(count for count, _, _ in bins["scaled"]) == 100


def test_what_fits_the_temperature_is_not_scored(monkeypatch):
    net, seen = supernet(), []
    decisions = Classification.decisions

    def numbered(self, outputs, batch):
        told = decisions(self, outputs, batch)
        seen.append(batch[0])
        return told

    monkeypatch.setattr(Classification, "decisions", numbered)
    listener = Confidence(share=0.3).listener(net.task, 7)
    scored = WeightSharing(net, Data()).batches()[1]
    for number, (images, labels) in enumerate(scored):
        listener(number, images, (images, labels))  # the inputs stand for logits, so that each row can be known again
    parts = [torch.cat([rows for rows, _ in part]) for part in (listener._fitting, listener._scored)]
    assert len(parts[0]) + len(parts[1]) == 200
    assert 30 < len(parts[0]) < 90
    assert not set(map(tuple, parts[0].tolist())) & set(map(tuple, parts[1].tolist()))


def test_memory_is_bounded_by_the_most_decisions():
    net = supernet()
    found = WeightSharing(net, Data(), confidence=Confidence(most=70))(net.space.largest(), seed=0)
    fitting, scored = map(int, (found.provenance["temperature_split"].split()[i] for i in (0, 3)))
    assert 60 < fitting + scored <= 70
    assert fitting
    assert scored


def open_with(folder: Path, objectives, limits=None, **options):
    settings = SearchSettings(
        storage=str(folder / "studies.journal"),
        objectives=objectives,
        limits=limits or {},
        objective=lambda net, data: WeightSharing(net, data, confidence=Confidence(**options)),
    )
    return open_search(supernet(), Data(), settings, runs=str(folder / "runs"))


@pytest.mark.parametrize("objectives", [["ece"], ["ece_scaled", "params"], ["temperature", "ece_adaptive"]])
def test_a_calibration_error_alone_is_no_goal(tmp_path: Path, objectives):
    with (
        pytest.raises(ValueError, match=r"must not rest on .* guesses and says so .* min_accuracy say"),
        open_with(tmp_path, objectives),
    ):
        pass
    assert not (tmp_path / "studies.journal").exists()


@pytest.mark.parametrize(
    ("objectives", "limits"),
    [(["ece_scaled", "accuracy"], {}), (["nll_scaled"], {"max_ece": 0.9}), (["ece"], {"min_accuracy": 0.0})],
    ids=["two", "likelihood", "limited"],
)
def test_it_is_an_objective_or_a_limit_beside_what_is_right(tmp_path: Path, objectives, limits):
    with open_with(tmp_path, objectives, limits) as search:
        result = search.run(2)
    assert [trial.state for trial in result.trials] == ["COMPLETE"] * 2
    assert all(0 <= trial.value("ece_scaled") <= 1 for trial in result.trials)


def test_generated_weights_are_trusted_by_what_every_network_measures(tmp_path: Path):
    asked = []

    def gate(*given, metric, **more):
        asked.append(metric)
        return "trusted"

    hypernet = functools.partial(ChunkedHyperNetwork, hidden=(4,), chunk=16)
    source = functools.partial(GeneratedWeights, hypernet=hypernet)
    net = Supernet(MLPSpace(3, 3, widths=(4, 8), depths=(1,)), Classification(3), source=source, calibration=2)
    settings = SearchSettings(
        storage=str(tmp_path / "studies.journal"),
        objectives=["nll_scaled", "loss"],
        objective=lambda net, data: WeightSharing(net, data, confidence=Confidence()),
        trust=gate,
    )
    with open_search(net, Data(), settings, runs=str(tmp_path / "runs")):
        assert asked == ["loss"]


def test_what_is_handed_out_comes_with_its_temperature(tmp_path: Path):
    net = supernet()
    delivered = deliver(net, Data(), net.space.largest(), tmp_path / "best", formats=["safetensors"], overwrite=False)
    measured = {"accuracy": Measurement(0.5, "fraction", "maximize"), "temperature": Measurement(1.25, "1", "minimize")}
    largest = net.space.largest()
    trial = Trial(
        number=0,
        architecture=dict(largest),
        arch_id=largest.arch_id,
        state=TrialState.COMPLETE,
        measurements=measured,
        started=0.0,
        finished=1.0,
    )
    assert re.search(r"divide its logits by \(temperature\) +1.25\n", describe_delivery(delivered, net, searched=trial))
    assert "temperature" not in describe_delivery(delivered, net)


def test_a_study_has_one_temperature_split(tmp_path: Path):
    with open_with(tmp_path, ["accuracy"]) as search:
        search.run(1)
    with (
        pytest.raises(StudyMismatchError, match=r"asks another question .*by seed 0.*by seed 1"),
        open_with(tmp_path, ["accuracy"], seed=1),
    ):
        pass


class Softmaxed(torch.nn.Module):
    """A network that ends in probabilities."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, width)
        self.head = torch.nn.Linear(width, 3)

    def forward(self, x):
        return torch.softmax(self.head(torch.relu(self.layer(x))), 1)


def test_a_network_that_ends_in_probabilities_is_refused():
    net = Supernet(FactorySpace(Softmaxed, {"width": [2, 4]}, input_shape=(3,)), Classification(3))
    with pytest.raises(ValueError, match="are probabilities already; end the network with its last linear layer"):
        WeightSharing(net, Data(), confidence=Confidence())(net.space.largest(), seed=0)


def test_too_few_examples_and_tasks_without_classes_are_refused():
    net = supernet()
    listener = Confidence().listener(net.task, 1)
    listener(0, torch.tensor([[1.0, 2.0, 0.5]]), (None, torch.tensor([1])))
    with pytest.raises(ValueError, match=r"needs examples to fit .* got (0 and 1|1 and 0) decisions"):
        listener.results()
    with pytest.raises(ValueError, match="chooses among classes with known labels, got SpeakerVerification"):
        Confidence().check_task(SpeakerVerification())


@pytest.mark.parametrize("given", [{"bins": 0}, {"share": 1.0}, {"share": 0.0}, {"most": 1}])
def test_arguments_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match="Confidence needs bins >= 1"):
        Confidence(**given)
