"""A hypernetwork over conditions: what is trained, what is measured, what is refused."""

import functools
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hypernets import Categorical, ChunkedHyperNetwork, Field
from nas import ConditionedNetwork, Effect, InputNoise, WeightPenalty
from nas.hypernetworks import load_conditioned, save_conditioned
from search_spaces import MLPSpace
from supernets import CheckpointError, Classification

SMALL = functools.partial(ChunkedHyperNetwork, hidden=(8, 16), chunk=32)


def tiny(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


class Inverted(Effect):
    """Condition 1 swaps the labels, so that no single network can be right for both."""

    @property
    def field(self) -> Field:
        return Categorical(2, embedding=4)

    def batch(self, batch: Any, value: Tensor, *, generator: torch.Generator) -> Any:
        inputs, labels = batch
        return inputs, (labels + value) % 2


class Data(L.LightningDataModule):
    def loader(self, count: int, seed: int) -> DataLoader:
        inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=32)

    def train_dataloader(self) -> DataLoader:
        return self.loader(256, 0)

    def val_dataloader(self) -> DataLoader:
        return self.loader(64, 1)

    test_dataloader = val_dataloader


def network(**options: Any) -> ConditionedNetwork:
    given: dict[str, Any] = {"conditions": {"inverted": Inverted()}, "hypernet": SMALL} | options
    conditions = given.pop("conditions")
    return ConditionedNetwork(tiny, Classification(2), conditions, **given)


def fit(model: ConditionedNetwork, folder: Path, epochs: int) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(model, datamodule=Data())
    return trainer


def test_it_learns_a_network_for_every_condition_and_says_that_conditions_matter(tmp_path: Path) -> None:
    optimizer = functools.partial(torch.optim.Adam, lr=0.03)
    trainer = fit(network(optimizer=optimizer, evaluations=4, sets=2), tmp_path, epochs=12)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found["val/accuracy"] > 0.9
    assert found["val/worst/accuracy"] > 0.85
    assert found["val/shuffled/accuracy"] < 0.3
    assert found["val/worst/loss"] >= found["val/loss"] > 0
    assert found["val/generator/spread"] > 0.1


def test_the_loss_is_the_mean_over_conditions_of_task_loss_and_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(conditions={"inverted": Inverted(), "decay": WeightPenalty(1.0, 0.01)}, sets=3)
    values = {"inverted": torch.tensor([0, 1, 1]), "decay": torch.tensor([0.02, 0.5, 1.0])}
    monkeypatch.setattr(model.generator, "draw", lambda count, generator: values)
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    monkeypatch.setattr(ConditionedNetwork, "global_step", 0)
    monkeypatch.setattr(ConditionedNetwork, "global_rank", 0)
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 2
    losses = []
    for k in range(3):
        plain = tiny()
        weights = {name: tensor[k] for name, tensor in model.generator.generate(values).items()}
        plain.load_state_dict(weights)
        swapped = labels if k == 0 else 1 - labels
        squares = sum(float((plain[layer].weight.detach() ** 2).sum()) for layer in (0, 2))
        with torch.no_grad():
            task = F.cross_entropy(plain(inputs), swapped)
        losses.append(float(task) + float(values["decay"][k]) / 2 * squares)
    assert model.training_step((inputs, labels), 0).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_it_starts_from_the_initialisation_of_the_module_and_never_changes_it() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.skeleton.state_dict().items()}
    residual = {name: model.generator.residual(name) for name in before}
    assert all(torch.equal(value, residual[name]) for name, value in before.items())
    assert not any(name.startswith("_skeleton") for name in model.state_dict())
    model({"inverted": 1}, torch.randn(3, 4)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.skeleton.state_dict().items())
    assert model({"inverted": 1}, torch.randn(3, 4)).shape == (3, 2)


def test_validation_meets_every_combination_of_categories() -> None:
    one, two = Inverted(), Inverted()
    found = network(conditions={"one": one, "two": two, "noise": InputNoise(1.0)}, evaluations=4).evaluated()
    assert list(zip(found["one"].tolist(), found["two"].tolist(), strict=True)) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert len(set(found["noise"].tolist())) == 4


def test_noise_has_the_deviation_of_the_condition() -> None:
    effect = InputNoise(2.0)
    inputs, labels = torch.zeros(40_000), torch.zeros(1)
    noisy, same = effect.batch((inputs, labels), torch.tensor(1.5), generator=torch.Generator().manual_seed(0))
    assert noisy.std().item() == pytest.approx(1.5, rel=0.02)
    assert same is labels
    again, _ = effect.batch((inputs, labels), torch.tensor(1.5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)


def norms() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": {}}, "must name at least one effect"),
        ({"sets": 0}, "sets >= 1 and evaluations >= 2, got sets=0"),
        ({"evaluations": 1}, "evaluations=1"),
    ],
    ids=["conditions", "sets", "evaluations"],
)
def test_what_cannot_train_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_batch_norm_and_wrong_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot generate for batch norm \(\['1'\]\).*use GroupNorm"):
        ConditionedNetwork(norms, Classification(3), {"inverted": Inverted()})
    with pytest.raises(ValueError, match="arguments are for builders, not for spaces"):
        ConditionedNetwork(MLPSpace(4, 2), Classification(2), {"inverted": Inverted()}, arguments={"width": 3})
    with pytest.raises(ValueError, match="low must be >= 0, got -1"):
        InputNoise(1.0, low=-1.0)
    with pytest.raises(ValueError, match="low < high"):
        WeightPenalty(1e-5, 1e-3)


def test_a_saved_one_is_the_same_and_damage_or_other_modules_are_found(tmp_path: Path) -> None:
    space = MLPSpace(4, 2, widths=(3, 5), depths=(1,), batch_norm=False)
    model = ConditionedNetwork(space, Classification(2), {"noise": InputNoise(1.0)}, hypernet=SMALL)
    assert model.generator.target.shapes["linear1.weight"] == (5, 4)
    folder = save_conditioned(model, tmp_path / "saved")
    again = load_conditioned(folder).network
    weights, expected = (net.generator.generate({"noise": 0.3}) for net in (again, model))
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert again.skeleton.state_dict().keys() == model.skeleton.state_dict().keys()
    card = (folder / "hypernetwork.json").read_text()
    (folder / "hypernetwork.json").write_text(card.replace('"in_features": 4', '"in_features": 5'))
    with pytest.raises(CheckpointError, match="no longer makes the module that the hypernetwork"):
        load_conditioned(folder)
    (folder / "hypernetwork.json").write_text(card.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="format version 9"):
        load_conditioned(folder)
    with pytest.raises(CheckpointError, match="is not a complete saved hypernetwork"):
        load_conditioned(tmp_path)
    mixed = save_conditioned(model, tmp_path / "mixed")
    other = save_conditioned(network(), tmp_path / "other")
    (mixed / "hypernet.safetensors").write_bytes((other / "hypernet.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="files of two hypernetworks"):
        load_conditioned(mixed)


def test_code_of_others_is_loaded_only_if_trusted(tmp_path: Path) -> None:
    folder = save_conditioned(network(arguments={"width": 7}), tmp_path / "saved")
    with pytest.raises(CheckpointError, match="--trust tests"):
        load_conditioned(folder)
    again = load_conditioned(folder, trust=["tests"]).network
    assert isinstance(again.conditions["inverted"], Effect)
    assert again.generator.target.shapes["0.weight"] == (7, 4)


class Shuffled(Data):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.loader(64, 0).dataset, 32, shuffle=True)


def forgetful(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 2))


def test_a_resumed_training_ends_at_the_same_weights(tmp_path: Path) -> None:
    def train(epochs: int, checkpoint: Path | None = None) -> L.Trainer:
        torch.manual_seed(3)
        torch.rand(5 if checkpoint else 1)  # what a resumed program has drawn by now is another number
        model = ConditionedNetwork(forgetful, Classification(2), {"inverted": Inverted()}, hypernet=SMALL)
        options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, enable_model_summary=False, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(model, datamodule=Shuffled(), ckpt_path=checkpoint, weights_only=bool(checkpoint) or None)
        return trainer

    whole = train(3)
    train(1).save_checkpoint(tmp_path / "one.ckpt")
    resumed = train(3, tmp_path / "one.ckpt")
    assert resumed.global_step == 6
    found, wanted = resumed.lightning_module.state_dict(), whole.lightning_module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
