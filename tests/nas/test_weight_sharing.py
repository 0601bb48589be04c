"""Scores with the supernet's weights: what must be calibrated, and which weights a study is about."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nas.addresses import Located
from nas.delivery import deliver, manifest_of
from nas.known import known_trials
from nas.objectives import WeightSharing
from nas.settings import SearchSettings, open_search
from nas.trainer import data_of
from search_spaces import ConvNetSpace, FactorySpace, MLPSpace, QuantizedSpace, Stage, Stem
from supernets import (
    CheckpointError,
    Classification,
    QuantizedWeights,
    SharedWeights,
    Supernet,
    UncalibratedError,
    weights_version,
)
from trials import StudyMismatchError


class Data(L.LightningDataModule):
    """``training`` and 8 validation examples of any origin."""

    def __init__(self, training: int = 16) -> None:
        super().__init__()
        self.training = training

    def _loader(self, count: int) -> DataLoader:
        inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
        return DataLoader(TensorDataset(inputs, torch.arange(count) % 3), batch_size=4)

    def train_dataloader(self):
        return self._loader(self.training)

    def val_dataloader(self):
        return self._loader(8)

    test_dataloader = val_dataloader


def supernet(batch_norm: bool = True, seed: int = 0) -> Supernet:
    space = MLPSpace(6, 3, widths=(4, 8), depths=(1, 2), batch_norm=batch_norm)
    return Supernet(space, Classification(3), source=lambda given: SharedWeights(given, seed=seed), calibration=2)


def test_norms_that_no_training_batch_reaches_are_refused():
    given = supernet()
    with pytest.raises(UncalibratedError, match=r"no training batch reached \['norm1'\]; does the training split give"):
        WeightSharing(given, Data(training=0))(given.space.smallest(), seed=0)
    assert WeightSharing(given, Data())(given.space.smallest(), seed=0).measurements.keys() == {"accuracy", "loss"}


def test_networks_without_norms_need_no_training_batch():
    given = supernet(batch_norm=False)
    evaluation = WeightSharing(given, Data(training=0))(given.space.largest(), seed=0)
    assert 0 <= evaluation.measurements["accuracy"] <= 1


@pytest.mark.parametrize("calibration", [0, -3])
def test_calibration_takes_at_least_one_batch(calibration):
    message = rf"calibration must be >= 1 batches, or null for the supernet's, got {calibration}"
    with pytest.raises(ValueError, match=message):
        WeightSharing(supernet(), Data(), calibration=calibration)


@pytest.mark.parametrize("other", ["weights", "split", "calibration"])
def test_a_study_is_about_one_set_of_weights_one_split_and_one_calibration(tmp_path: Path, other: str):
    storage, runs = str(tmp_path / "studies.journal"), str(tmp_path / "runs")

    def open_with(given, **options):
        settings = SearchSettings(
            storage=storage, objective=lambda model, data: WeightSharing(model, data, **options), trials=2
        )
        with open_search(given, Data(), settings, runs=runs) as search:
            search.run(2)

    open_with(supernet())
    open_with(supernet())
    changed = supernet(seed=1) if other == "weights" else supernet()
    changes: dict[str, dict] = {"weights": {}, "split": {"split": "test"}, "calibration": {"calibration": 1}}
    with pytest.raises(
        StudyMismatchError, match=r"'search' exists and asks another question \(what is evaluated: store"
    ):
        open_with(changed, **changes[other])


def test_a_data_module_is_built_from_a_card_only_if_the_card_is_trusted():
    tree = {"class_path": "tests.nas.test_weight_sharing.Data", "init_args": {"training": 4}}
    with pytest.raises(
        CheckpointError, match=r"data of a.ckpt: the file names 'tests.nas.*or name the data module your"
    ):
        data_of({"data": tree}, None, address="a.ckpt")
    given = Data()
    assert data_of({"data": tree}, given, address="a.ckpt") is given
    digits = data_of({"data": {"class_path": "nas.data.DigitsData", "init_args": {}}}, None, address="a.ckpt")
    assert type(digits).__name__ == "DigitsData"


def test_trials_of_a_rung_are_taken_only_where_their_study_is_named(tmp_path: Path):
    given, storage = supernet(), str(tmp_path / "studies.journal")
    weights, located = weights_version(given.source), Located("net", tmp_path)
    for study, fidelity, trials in (("s.rung1", 0.5, 3), ("s", 1.0, 2)):
        settings = SearchSettings(
            study=study, trials=trials, objective=lambda n, d, f=fidelity: WeightSharing(n, d).at(f), storage=storage
        )
        with open_search(given, Data(), settings, runs=str(tmp_path)) as search:
            search.run(trials)
    found = [
        len(known_trials(located, weights=weights, study=s, storage=storage).trials) for s in (None, "s", "s.rung1")
    ]
    assert found == [2, 2, 3]


class Images(Data):
    """Images twice as large as the network resizes them to."""

    def _loader(self, count: int) -> DataLoader:
        inputs = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
        return DataLoader(TensorDataset(inputs, torch.arange(count) % 3), batch_size=4)


def test_a_network_that_resizes_is_exported_for_the_images_that_it_was_scored_on(tmp_path: Path):
    stages = [Stage(widths=(4,), depths=(1,))]
    space = ConvNetSpace(stages, 3, in_channels=1, resolutions=(4,), stem=Stem((4,)))
    net, data = Supernet(space, Classification(3), calibration=2), Images()
    delivered = deliver(net, data, space.largest(), tmp_path / "best", formats=["pt2"], overwrite=False)
    assert delivered.exported.manifest["inputs"] == [{"shape": ["batch", 1, 8, 8], "dtype": "float32"}]
    model = torch.export.load(delivered.exported.files["pt2"]).module()
    with torch.no_grad():
        right = [model(images).argmax(1).eq(labels).sum() for images, labels in data.val_dataloader()]
    assert delivered.scores["val"]["accuracy"] == pytest.approx(float(sum(right)) / 8)


class Masked(nn.Module):
    """Scores that a mask of zeros makes infinite."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3))

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.head(inputs) / mask.amax((1, 2, 3))[:, None]


def unmasked(batch_size: int) -> tuple[torch.Tensor, ...]:
    return torch.ones(batch_size, 4), torch.ones(batch_size, 1, 2, 2)


class Pairs(Classification):
    def inputs(self, batch):
        return batch[:2]


class MaskedData(Data):
    def _loader(self, count: int) -> DataLoader:
        return DataLoader(TensorDataset(torch.randn(count, 4), torch.ones(count, 1, 2, 2), torch.arange(count) % 3), 4)


def test_example_inputs_that_have_the_size_of_the_data_are_those_of_the_user():
    space = FactorySpace(Masked, {"width": [2]}, example_inputs=unmasked)
    examples = WeightSharing(Supernet(space, Pairs(3)), MaskedData()).examples(space.largest(), batch_size=2)
    assert torch.equal(examples[1], torch.ones(2, 1, 2, 2))


def test_the_share_of_a_stream_is_not_checked():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.ones(6), 0)] * 8)

    class Streams(Data):
        def val_dataloader(self):
            return DataLoader(Stream(), batch_size=4)

    WeightSharing(supernet(), Streams(), fraction=0.5).require_share(Streams())


def test_the_manifest_of_a_quantised_network_has_the_arguments_of_the_user():
    space = QuantizedSpace(FactorySpace(Plain, {"width": [2, 4]}, input_shape=(6,)))
    net = Supernet(space, Classification(3), source=QuantizedWeights)
    manifest = manifest_of(net, space.smallest(), {}, weights="0")
    assert manifest["arguments"] == {"width": 2}


class Plain(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(6, width), nn.Linear(width, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_supernet_trained_in_another_precision_is_scored_in_it(dtype):
    net = supernet()
    architecture = net.space.middle()
    assert {tensor.dtype for tensor in WeightSharing(net.to(dtype), Data()).examples(architecture)} == {dtype}
    net = net.float()
    expected = WeightSharing(net, Data())(architecture, seed=0).measurements["loss"]
    given = WeightSharing(net.to(dtype), Data())(architecture, seed=0).measurements["loss"]
    assert given == pytest.approx(expected, rel=0.05)
