"""Weights on request: their values, their provenance, and requests that are refused."""

import contextlib
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hypernets import Bits, Categorical, ChunkedHyperNetwork, Field, digest, read_provenance
from nas import ConditionedNetwork, Effect, GenerationError, InputNoise, Request
from nas.__main__ import main
from nas.addresses import Located
from nas.commands.boundary import UsageError
from nas.commands.generate import pairs
from nas.generation import ConditionMaker, SizeMaker, open_weight_maker
from nas.hypernetworks import save_conditioned
from nas.standalone import score
from search_spaces import MLPSpace
from supernets import Classification, GeneratedWeights, ImplicitWeights, SharedWeights, Supernet, save

SMALL = functools.partial(ChunkedHyperNetwork, hidden=(4, 8), chunk=32)


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


class Marked(Effect):
    """A condition without meaning in training, of any field."""

    def __init__(self, field: Field) -> None:
        self._field = field

    @property
    def field(self) -> Field:
        return self._field


class Data(L.LightningDataModule):
    def loader(self, count: int) -> DataLoader:
        inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
        return DataLoader(TensorDataset(inputs, torch.arange(count) % 3), batch_size=8)

    def train_dataloader(self) -> DataLoader:
        return self.loader(16)

    def val_dataloader(self) -> DataLoader:
        return self.loader(24)

    def test_dataloader(self) -> DataLoader:
        return self.loader(20)


def conditioned(**conditions: Effect) -> ConditionedNetwork:
    return ConditionedNetwork(tiny, Classification(3), conditions or {"noise": InputNoise(2.0)}, hypernet=SMALL).eval()


def generated() -> Supernet:
    space = MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))
    source = functools.partial(GeneratedWeights, hypernet=SMALL)
    return Supernet(space, Classification(3), source=source, calibration=2).eval()


def test_a_condition_gives_its_weights_with_digest_condition_seed_and_evaluation(tmp_path: Path) -> None:
    network, data = conditioned(), Data()
    maker = ConditionMaker(network, data)
    made = maker.write(Request({"noise": 0.0}, seed=7), tmp_path / "a" / "w.safetensors")
    tensors = load_file(made.path)
    expected = {name: value[0] for name, value in network.generator.generate({"noise": 0.0}).items()}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in tensors.items())
    provenance = read_provenance(made.path)
    assert provenance == made.provenance
    assert provenance["hypernetwork"] == digest(network.generator)
    assert (provenance["condition"], provenance["seed"]) == ({"noise": 0.0}, 7)
    plain = tiny()
    plain.load_state_dict(tensors)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        alone = score(plain, network.task, loader)  # without noise the data are as they are
        assert {name: provenance["evaluation"][f"{split}/{name}"] for name in alone} == pytest.approx(alone)
    noisy = maker.write(Request({"noise": 2.0}), tmp_path / "noisy.safetensors")
    assert noisy.provenance["evaluation"] != provenance["evaluation"]


def test_equal_requests_give_equal_bytes_and_nothing_is_scored_without_data(tmp_path: Path) -> None:
    maker = ConditionMaker(conditioned(), None)
    first, second = (maker.write(Request({"noise": 0.5}), tmp_path / name) for name in ("1", "2"))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.provenance["evaluation"] == {}


@pytest.mark.parametrize(
    ("request_", "fields", "message"),
    [
        (Request({"nois": 1}), ("noise", "bits", "code", "task", "nois"), "missing=.*unknown=.'nois'"),
        (Request({"noise": 9, "bits": 2, "task": 0, "code": [0, 0]}), ("noise",), r"noise' must lie in \[0, 2\]"),
        (Request({"noise": 1, "bits": 3, "task": 0, "code": [0, 0]}), ("bits",), r"bits' must be one of \(2, 4\)"),
        (Request({"noise": 1, "bits": 2, "task": 0.5, "code": [0, 0]}), ("task",), "task' must be integers"),
        (Request({"noise": 1, "bits": 2, "task": 0, "code": [0]}), ("code",), r"code' must have shape \(K, 2\)"),
        (
            Request({"noise": "much", "bits": 2, "task": 0, "code": [0, 0]}),
            ("noise",),
            "a number or a list of numbers, got 'much'",
        ),
        (Request(size={"width": 8}), ("width",), "takes conditions, not sizes"),
    ],
    ids=["names", "range", "bits", "category", "shape", "text", "size"],
)
def test_a_wrong_condition_is_refused_with_the_names_of_its_fields(
    request_: Request, fields: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    from hypernets import Unit

    effects = {"task": Marked(Categorical(2)), "bits": Marked(Bits((2, 4))), "code": Marked(Unit(2))}
    maker = ConditionMaker(conditioned(noise=InputNoise(2.0), **effects), None)
    assert set(maker.fields) == {"noise", *effects}
    maker.check(Request({"noise": 1, "bits": 4, "task": 1, "code": [0.5, 1]}))
    with pytest.raises(GenerationError, match=message) as caught:
        maker.write(request_, tmp_path / "w")
    assert sorted(caught.value.fields) == sorted(fields)
    assert not list(tmp_path.iterdir())


def test_sizes_give_a_calibrated_network_that_loads_and_scores_as_said(tmp_path: Path) -> None:
    supernet, data = generated(), Data()
    made = SizeMaker(supernet, data).write(Request(size={"depth": 1, "width": 4}), tmp_path / "w.safetensors")
    architecture = supernet.space.architecture({"depth": 1, "layer1.width": 4})
    plain = supernet.space.build(architecture)
    plain.load_state_dict(load_file(made.path))
    assert int(plain.state_dict()["norm1.num_batches_tracked"]) > 0
    assert isinstance(supernet.source, GeneratedWeights)
    provenance: dict[str, Any] = read_provenance(made.path)
    assert provenance["condition"] == dict(architecture)
    assert provenance["arch_id"] == architecture.arch_id
    assert provenance["hypernetwork"] == digest(supernet.source.generator)
    alone = score(plain, supernet.task, data.test_dataloader())
    assert {name: provenance["evaluation"][f"test/{name}"] for name in alone} == pytest.approx(alone)
    unscored = SizeMaker(supernet, data).write(Request(size={"width": 4}), tmp_path / "2", evaluate=False)
    assert unscored.provenance["evaluation"] == {}


def test_a_particular_choice_wins_over_all_of_its_kind_and_the_rest_is_largest() -> None:
    maker = SizeMaker(generated(), Data())
    chosen = maker.architecture(Request(size={"layer2.width": 8, "width": 4}))
    assert dict(chosen) == {"depth": 2, "layer1.width": 4, "layer2.width": 8}
    assert maker.fields["layer1.width"] == "4, 8"
    with pytest.raises(
        GenerationError, match=r"layer1.width must be one of \(4, 8\), got 5; layer2.*; depht is no choice"
    ) as found:
        maker.check(Request(size={"width": 5, "depht": 1}))
    assert set(found.value.fields) == {"width", "depht"}
    with pytest.raises(GenerationError, match="takes sizes, not conditions"):
        maker.check(Request({"noise": 1.0}))


def test_implicit_weights_give_sizes_between_the_candidates(tmp_path: Path) -> None:
    space = MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))
    supernet = Supernet(space, Classification(3), source=lambda given: ImplicitWeights(given, width=4))
    maker = SizeMaker(supernet, Data())
    made = maker.write(Request(size={"width": 5, "depth": 1}), tmp_path / "w.safetensors")
    assert load_file(made.path)["head.weight"].shape == (3, 5)
    assert made.provenance["condition"] == {"depth": 1, "layer1.width": 5}
    assert 0 <= made.provenance["evaluation"]["test/accuracy"] <= 1
    with pytest.raises(GenerationError, match=r"must lie in \[4, 8\], the sizes that were trained, got 9") as found:
        maker.check(Request(size={"width": 9}))
    assert found.value.fields == ("width",)


def test_stored_weights_are_exported_not_generated(tmp_path: Path) -> None:
    shared = Supernet(MLPSpace(6, 3, widths=(4, 8), depths=(1,)), Classification(3), source=SharedWeights)
    folder = save(shared, tmp_path / "shared")
    with pytest.raises(GenerationError, match=r"has supernets.SharedWeights, which stores them; use `nas export"):
        open_weight_maker(Located(str(folder), folder), data=Data())
    hyper = save_conditioned(conditioned(), tmp_path / "hyper")
    assert isinstance(open_weight_maker(Located(str(hyper), hyper), trust=["tests"]), ConditionMaker)


def test_pairs_are_names_and_values() -> None:
    assert pairs("a=1,b.c=[0.5,2],d=x", "condition") == {"a": 1, "b.c": [0.5, 2], "d": "x"}
    for text in ("a", "a=", "=1", "a=1,a=2", ""):
        with pytest.raises(UsageError, match="--size must read NAME=VALUE"):
            pairs(text, "size")


CONFIG = """
seed_everything: 0
trainer: {accelerator: cpu, max_epochs: 1}
model:
  class_path: nas.ConditionedNetwork
  init_args:
    builder:
      class_path: search_spaces.MLPSpace
      init_args: {in_features: 64, num_classes: 10, widths: [8], depths: [1], batch_norm: false}
    task: {class_path: supernets.Classification, init_args: {num_classes: 10}}
    conditions:
      noise: {class_path: nas.InputNoise, init_args: {high: 1.0}}
    hypernet: {class_path: hypernets.ChunkedHyperNetwork, init_args: {hidden: [4, 8], chunk: 64}}
data: {class_path: nas.data.DigitsData}
search: {study: small}
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("conditions")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    (folder / "small.yaml").write_text(CONFIG)
    torch.set_num_threads(1)
    with contextlib.chdir(folder):
        assert main(["fit", "-c", "small.yaml"]) == 0
        yield folder


@pytest.mark.filterwarnings("default", r"error:\s*Unable to serialize")  # or the kept configuration is not whole
def test_fit_registers_a_hypernetwork_and_generate_takes_it_from_there(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "models:/small-hypernetwork@champion"
    assert main(["generate", address, "--condition", "noise=0.25", "--out", "w.safetensors"]) == 0
    text = capsys.readouterr().out
    assert "test/accuracy" in text
    assert "wrote w.safetensors" in text
    provenance = read_provenance("w.safetensors")
    card = json.loads(Path("runs/small/fit-1/hypernetwork/hypernetwork.json").read_text())
    assert provenance["hypernetwork"] == card["digest"]
    assert provenance["condition"] == {"noise": 0.25}
    assert main(["generate", address, "--condition", "noise=0.25"]) == 0  # the default file
    assert Path("generated.safetensors").read_bytes() == Path("w.safetensors").read_bytes()
    for wrong, message in (
        (["--condition", "noise=0.25", "--out", "w.safetensors"], "--out w.safetensors exists"),
        (["--out", "x"], "either --condition NAME=VALUE or --size"),
        (["--condition", "loud=1", "--out", "x"], "missing=['noise'], unknown=['loud']"),
    ):
        assert main(["generate", address, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert not Path("x").exists()


@pytest.mark.filterwarnings("default")
def test_an_interrupted_fit_of_a_hypernetwork_goes_on_from_its_checkpoint(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--trainer.max_epochs", "2", "--trainer.logger", "false"]
    assert main(["fit", "-c", "small.yaml", "--ckpt_path", "runs/small/fit-1/last.ckpt", *more]) == 0
    output = capsys.readouterr()
    assert "34/34 steps" in output.err
    assert "saved to runs/small/fit-2/hypernetwork" in output.out


def test_a_hypernetwork_is_validated_and_tested_from_its_files(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, split in (("validate", "val"), ("test", "test")):
        for address in ("models:/small-hypernetwork@champion", "runs/small/fit-1/hypernetwork"):
            assert main([verb, "-c", "small.yaml", "--ckpt_path", address]) == 0
            assert f"{split}/accuracy" in capsys.readouterr().out
    assert main(["test", "--ckpt_path", "runs/small/fit-1/hypernetwork"]) == 0  # its files name the data


def test_examples_and_counts_are_for_data_sets(tmp_path: Path) -> None:
    for maker, asked in (
        (ConditionMaker(conditioned(), None), Request({"noise": 1.0}, examples=3)),
        (SizeMaker(generated(), Data()), Request(size={"width": 4}, count=2)),
    ):
        with pytest.raises(
            GenerationError, match=r"(examples|count) are for hypernetworks that sample weights for a data"
        ):
            maker.write(asked, tmp_path / "w")
