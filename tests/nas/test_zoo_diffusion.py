"""`nas fit` on a zoo: what is learned and validated, that it goes on and stops, and the three commands together."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from hypernets import digest, read_provenance
from hypernets.diffusion import FlowMatching, PCACodec, load_zoo
from nas import DigitsData, ZooDiffusion, load_sampler
from nas.__main__ import main
from nas.zoo import ClassSubsets, Rotations, ZooRecipe, ZooRequest, build_zoo, rotated
from nas.zoo_examples import ZooExamples
from search_spaces import MLPSpace
from supernets import CheckpointMismatchError

SPACE = MLPSpace(in_features=64, num_classes=10, widths=(6,), depths=(1,), batch_norm=False)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    recipe = ZooRecipe(networks=4, steps=100, shared_start=True)
    request = ZooRequest(SPACE, SPACE.smallest(), DigitsData(), Rotations([0, 90, 180, 270]), recipe)
    build_zoo(request, folder, workers=1)
    return folder


def model(zoo: Path, **options: Any) -> ZooDiffusion:
    given: dict[str, Any] = {
        "codec": PCACodec(8),
        "prior": FlowMatching((32,), steps=3),
        "epoch_steps": 40,
        "batch": 32,
        "drawn": 4,
    }
    made = ZooDiffusion(SPACE, zoo=str(zoo), **(given | options))
    made.learn_from(DigitsData())
    return made


def fit(made: ZooDiffusion, folder: Path, *, epochs: int, checkpoint: Path | None = None) -> L.Trainer:
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
    trainer.fit(made, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)
    return trainer


def test_it_learns_which_networks_belong_to_which_data(zoo: Path, tmp_path: Path) -> None:
    made = model(zoo, lr=5e-3)
    trainer = fit(made, tmp_path, epochs=5)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    scores = load_zoo(zoo).scores
    assert found["val/zoo/accuracy"] == pytest.approx(float(scores.mean()), abs=1e-5)  # all four tasks
    assert found["val/accuracy"] > 0.75 * found["val/zoo/accuracy"]
    assert found["val/shuffled/accuracy"] < 0.6 * found["val/accuracy"]  # upside down
    assert torch.isfinite(torch.tensor(found["train/loss"]))
    sampler = made.sampler
    assert sampler.generator.codec.width == 8
    assert sampler.image_shape == (1, 8, 8)


def test_held_out_tasks_are_validated_and_not_learned(zoo: Path, tmp_path: Path) -> None:
    made = model(zoo, held_out=[1], epoch_steps=2)
    trainer = fit(made, tmp_path, epochs=1)
    known = load_zoo(zoo)
    assert float(trainer.callback_metrics["val/zoo/accuracy"]) == pytest.approx(
        float(known.scores[known.tasks == 1].mean())
    )
    learned = {name: value[known.tasks != 1] for name, value in known.tensors.items()}
    assert torch.allclose(made.generator.residual("head.weight"), learned["head.weight"].mean(0), atol=1e-6)


def test_a_fit_that_goes_on_ends_where_a_whole_one_does(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model(zoo, epoch_steps=4)
    fit(whole, tmp_path, epochs=4)
    first = model(zoo, epoch_steps=4)
    monkeypatch.setattr(first, "configure_optimizers", lambda: half(first, 16))
    trainer = fit(first, tmp_path, epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = model(zoo, epoch_steps=4)
    fit(second, tmp_path, epochs=4, checkpoint=tmp_path / "last.ckpt")
    assert digest(second.generator) == digest(whole.generator) != digest(first.generator)


def half(made: ZooDiffusion, total: int) -> Any:
    """The schedule of a longer fit, as of one that is stopped on its way."""
    optimizer = torch.optim.Adam(made._objective.learned(), made.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / total)) / 2)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_conditions_are_examples_of_the_task(zoo: Path) -> None:
    data = DigitsData()
    options: dict[str, Any] = {"count": 2, "resolution": 4, "held_out": (), "evaluations": 2, "seed": 3}
    found = ZooExamples(load_zoo(zoo), data, **options)
    assert (found.size, found.classes, found.validated) == (16, 10, [0, 2])
    value = found.draw(1, torch.Generator().manual_seed(0))
    assert value.shape == (1, 20, 26)
    assert value[0, :, 16:].sum(0).tolist() == [2] * 10
    images = data.standardization(data.splits.train.images)
    turned = torch.nn.functional.avg_pool2d(rotated(images, 90), 2).flatten(1)
    for row in value[0, :3]:
        nearest = (turned - row[:16]).norm(dim=1).min(0)
        assert nearest.values < 1e-4
        assert data.splits.train.labels[nearest.indices] == row[16:].argmax()
    with pytest.raises(ValueError, match="held_out must leave some of the tasks 0 to 3, got"):
        ZooExamples(load_zoo(zoo), data, **(options | {"held_out": (0, 4)}))
    with pytest.raises(ValueError, match="999 examples of each class are asked for"):
        ZooExamples(load_zoo(zoo), data, **(options | {"count": 999}))


def test_networks_of_different_starts_are_aligned_and_subsets_have_their_classes(tmp_path: Path) -> None:
    recipe = ZooRecipe(networks=5, steps=2)
    tasks = ClassSubsets(3, 2)
    build_zoo(ZooRequest(SPACE, SPACE.smallest(), DigitsData(), tasks, recipe), tmp_path / "zoo", workers=1)
    known = load_zoo(tmp_path / "zoo").tensors["linear1.weight"]
    for aligned, moved in ((None, True), (True, False)):
        made = model(tmp_path / "zoo", aligned=aligned)
        made.setup("fit")
        assert made.sampler.examples.classes == 3
        same = torch.allclose(made.generator.residual("linear1.weight"), known.mean(0), atol=1e-6)
        assert same != moved


def test_what_cannot_be_learned_from_is_refused(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs \['examples', 'resolution'\] >= 1.*'examples': 0"):
        model(zoo, examples=0, resolution=0)
    with pytest.raises(ValueError, match="data must be labelled images"):
        model(zoo).learn_from(L.LightningDataModule())
    with pytest.raises(ValueError, match="call learn_from"):
        ZooDiffusion(SPACE, zoo=str(zoo)).setup("fit")
    other = ZooDiffusion(MLPSpace(64, 10, widths=(7,), depths=(1,)), zoo=str(zoo))
    other.learn_from(DigitsData(split_seed=1))
    with pytest.raises(ValueError, match="made with another space and data; fit with the YAML that `nas zoo` read"):
        other.setup("fit")
    made = model(zoo)
    made.setup("fit")
    with pytest.raises(CheckpointMismatchError, match="trained on another zoo"):
        made.on_load_checkpoint({"zoo": "0"})
    with pytest.raises(ValueError, match="has read no zoo yet"):
        _ = model(zoo).sampler


CONFIG = """
seed_everything: 0
trainer: {accelerator: cpu, max_epochs: 2, logger: false}
model:
  class_path: nas.ZooDiffusion
  init_args:
    space:
      class_path: search_spaces.MLPSpace
      init_args: {in_features: 64, num_classes: 10, widths: [4], depths: [1], batch_norm: true}
    codec: {class_path: hypernets.diffusion.PCACodec, init_args: {width: 3}}
    prior: {class_path: hypernets.diffusion.FlowMatching, init_args: {hidden: [8]}}
    epoch_steps: 3
data: {class_path: nas.data.DigitsData}
search: {study: small}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "small.yaml").write_text(CONFIG)
    threads = torch.get_num_threads()
    with contextlib.chdir(tmp_path):
        yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("default", r"error:\s*Unable to serialize")  # or the kept configuration is not whole
def test_three_commands_lead_from_a_configuration_to_networks_for_other_data(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = ["--rotations", "[30, 60]", "--networks", "3", "--steps", "3", "--workers", "1", "--tracked", "false"]
    assert main(["fit", "-c", "small.yaml"]) == 2
    assert "zoo must be a model zoo" in capsys.readouterr().err
    assert main(["zoo", "-c", "small.yaml", *zoo]) == 0
    assert main(["fit", "-c", "small.yaml"]) == 0
    saved = "runs/small/fit-2/hypernetwork"
    assert f"nas generate {saved} --data data.yaml" in capsys.readouterr().out
    assert (
        main(["fit", "-c", "small.yaml", "--ckpt_path", "runs/small/fit-2/last.ckpt", "--trainer.max_epochs", "3"]) == 0
    )
    output = capsys.readouterr()
    assert "9/9 steps" in output.err
    assert "saved to runs/small/fit-3/hypernetwork" in output.out
    assert main(["generate", saved, "--data", "small.yaml", "--count", "2", "--out", "w.safetensors"]) == 0
    provenance = read_provenance("w.safetensors")
    assert provenance["hypernetwork"] == digest(load_sampler(saved).generator)
    assert provenance["condition"]["data"]["shape"] == [50, 74]
    assert {"val/accuracy", "test/accuracy"} < provenance["evaluation"].keys()
