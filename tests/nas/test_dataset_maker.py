"""Weights for a data set: sampled from its examples, chosen, calibrated, told apart, and refused where they must be."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from hypernets import DiffusionHyperNetwork, LabelledExamples, Target, digest, read_provenance
from hypernets.diffusion import FlowMatching, PCACodec
from nas import DatasetSampler, DigitsData, GenerationError, Request, load_sampler, open_weight_maker, save_sampler
from nas.__main__ import main
from nas.addresses import Located
from nas.data.module import ImageDataModule, Splits
from nas.data.tensors import ImageSplit
from nas.dataset_maker import DatasetMaker
from nas.samplers import draw_examples, features_of
from nas.trainer import open_trained
from search_spaces import MLPSpace, derive_seed
from supernets import CheckpointError


def sampler(*, resolution: int | None = None, batch_norm: bool = True, classes: int = 10) -> DatasetSampler:
    """Not trained: random networks, which depend on the examples all the same."""
    space = MLPSpace(64, classes, widths=(4, 6), depths=(1,), batch_norm=batch_norm)
    architecture = space.smallest()
    field = LabelledExamples(64 if resolution is None else resolution**2, classes, embedding=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        target = Target.of(space.build(architecture))
        generator = DiffusionHyperNetwork(target, {"few": field}, codec=PCACodec(6), prior=FlowMatching((8,), steps=2))
    return DatasetSampler(space, architecture, generator.eval(), (1, 8, 8), resolution)


class Few(ImageDataModule):
    """Random images."""

    def __init__(self, classes: int = 10, size: int = 8, rare: int = 9) -> None:
        self.classes, self.size, self.rare = classes, size, rare
        super().__init__(
            batch_size=16,
            eval_batch_size=16,
            validation_fraction=0.5,
            crop_padding=0,
            flip=False,
            split_seed=0,
            seed=0,
        )

    def split(self, seed: int, rare: int) -> ImageSplit:
        labels = torch.cat([torch.arange(self.classes).repeat(9), torch.full((rare,), self.classes - 1)])
        labels = labels[(labels != self.classes - 1) | (torch.arange(len(labels)) >= 9 * self.classes)]
        images = torch.randint(
            256, (len(labels), 1, self.size, self.size), generator=torch.Generator().manual_seed(seed)
        )
        return ImageSplit(images.to(torch.uint8), labels)

    def load(self) -> Splits:
        return Splits(self.split(0, self.rare), self.split(1, 9), self.split(2, 9), self.classes)


def accuracy(net: torch.nn.Module, data: ImageDataModule, split: ImageSplit) -> float:
    with torch.no_grad():
        outputs = net.eval()(data.standardization(split.images))
    return float((outputs.argmax(1) == split.labels).float().mean())


@pytest.mark.parametrize("resolution", [None, 4], ids=["all-pixels", "averaged"])
def test_one_sample_is_that_of_the_examples_with_everything_told(resolution: int | None, tmp_path: Path) -> None:
    found, data = sampler(resolution=resolution), DigitsData()
    made = DatasetMaker(found, data).write(Request(seed=3, examples=2), tmp_path / "w")
    tensors, provenance = load_file(made.path), read_provenance(made.path)
    assert provenance == made.provenance
    train = data.splits.train
    places = draw_examples(train.labels, 10, 2, torch.Generator().manual_seed(derive_seed(3, "examples")))
    assert torch.bincount(train.labels[places]).tolist() == [2] * 10
    images = data.standardization(train.images[places])
    features = images if resolution is None else F.avg_pool2d(images, 2)
    rows = torch.cat([features.flatten(1), F.one_hot(train.labels[places], 10).float()], 1)
    expected = found.generator.generate({"few": rows[None]}, generator=torch.Generator().manual_seed(3))
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value[0])
    assert provenance["condition"]["few"] == {
        "shape": [20, rows.shape[1]],
        "sha256": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
    }
    assert provenance["hypernetwork"] == digest(found.generator)
    assert [provenance[name] for name in ("seed", "examples", "count")] == [3, 2, 1]
    net = found.space.build(found.architecture)
    net.load_state_dict(tensors)
    assert int(net.state_dict()["norm1.num_batches_tracked"]) == 8  # calibrated
    for name, split in (("val", data.splits.validation), ("test", data.splits.test)):
        assert provenance["evaluation"][f"{name}/accuracy"] == pytest.approx(accuracy(net, data, split))
    assert provenance["evaluation"].keys() == {"val/accuracy", "test/accuracy"}


def test_of_several_the_best_on_the_validation_split_is_written(tmp_path: Path) -> None:
    found, data = sampler(batch_norm=False), DigitsData()
    made = DatasetMaker(found, data).write(Request(count=6, seed=2), tmp_path / "w")
    provenance = dict(made.provenance)
    train = data.splits.train
    places = draw_examples(train.labels, 10, 5, torch.Generator().manual_seed(derive_seed(2, "examples")))
    features = data.standardization(train.images[places]).flatten(1)
    condition = found.examples.of(features, train.labels[places])
    drawn = found.generator.sample({"few": condition}, 6, generator=torch.Generator().manual_seed(2))
    values: dict[str, list[float]] = {"val": [], "test": []}
    for k in range(6):
        net = found.space.build(found.architecture)
        net.load_state_dict({name: value[k] for name, value in drawn.items()})
        values["val"].append(accuracy(net, data, data.splits.validation))
        values["test"].append(accuracy(net, data, data.splits.test))
    best = values["val"].index(max(values["val"]))
    assert best != 0  # or nothing would be chosen
    assert provenance["chosen"] == best
    tensors = load_file(made.path)
    assert all(torch.equal(tensors[name], value[best]) for name, value in drawn.items())
    assert provenance["evaluation"] == pytest.approx(
        {
            **{f"{name}/accuracy": each[best] for name, each in values.items()},
            **{f"{name}/mean": sum(each) / 6 for name, each in values.items()},
        }
    )
    unscored = DatasetMaker(found, data).write(Request(count=6, seed=2), tmp_path / "2", evaluate=False)
    assert (unscored.provenance["chosen"], unscored.provenance["evaluation"]) == (best, {})


def test_equal_requests_give_equal_bytes_and_other_examples_other_weights(tmp_path: Path) -> None:
    maker = DatasetMaker(sampler(), DigitsData())
    first, second, more = (
        maker.write(Request(examples=count), tmp_path / name).path for name, count in (("1", 5), ("2", None), ("3", 7))
    )
    assert first.read_bytes() == second.read_bytes()
    assert not torch.equal(load_file(first)["head.weight"], load_file(more)["head.weight"])


@pytest.mark.parametrize(
    ("data", "asked", "fields", "message"),
    [
        (Few(classes=4), Request(), ("data",), "must have 10 classes, as the networks of the zoo; these have 4"),
        (Few(size=6), Request(), ("data",), r"of shape \(1, 8, 8\), which is 64 features; these are \(1, 6, 6\)"),
        (Few(rare=3), Request(), ("examples",), r"has \{9: 3\} \(class: examples\); lower --examples"),
        (Few(), Request({"few": 1}), ("few",), "takes no condition; name a YAML file with its `data` section"),
        (Few(), Request(size={"width": 4}), ("width",), "takes no size"),
        (Few(), Request(examples=0, count=-1), ("examples", "count"), "examples and count must be >= 1"),
        (None, Request(), ("data",), "--data data.yaml"),
    ],
    ids=["classes", "pixels", "examples", "condition", "size", "counts", "none"],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    data: Few | None, asked: Request, fields: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        DatasetMaker(sampler(), data).write(asked, tmp_path / "w")
    assert caught.value.fields == fields
    assert not list(tmp_path.iterdir())


def test_as_few_examples_as_there_are_will_do(tmp_path: Path) -> None:
    made = DatasetMaker(sampler(), Few(rare=3)).write(Request(examples=3), tmp_path / "w")
    assert made.provenance["condition"]["few"]["shape"] == [30, 74]


def test_a_saved_sampler_is_the_same_and_damage_is_found(tmp_path: Path) -> None:
    found = sampler(resolution=4)
    folder = save_sampler(found, tmp_path / "saved", data=DigitsData())
    again = load_sampler(folder)
    assert (again.image_shape, again.resolution, dict(again.architecture)) == ((1, 8, 8), 4, dict(found.architecture))
    assert digest(again.generator) == digest(found.generator)
    assert isinstance(open_weight_maker(Located(str(folder), folder)), DatasetMaker)
    card = json.loads((folder / "hypernetwork.json").read_text())
    assert card["data"]["class_path"].endswith("DigitsData")
    for change, message in (
        ({"format_version": 9}, "format version 9"),
        ({"digest": "0"}, "files of two hypernetworks"),
        (
            {"model": card["model"] | {"resolution": 3}},
            r"at resolution 3 have 9 features, but the hypernetwork reads 16",
        ),
        ({"model": card["model"] | {"architecture": {"depth": 1, "layer1.width": 6}}}, "generates for other networks"),
        ({"model": {}}, "is not a complete saved hypernetwork"),
    ):
        (folder / "hypernetwork.json").write_text(json.dumps(card | change))
        with pytest.raises(CheckpointError, match=message):
            load_sampler(folder)


def test_a_sampler_reads_labelled_examples_only() -> None:
    from hypernets import Unit

    good = sampler()
    other = DiffusionHyperNetwork(good.generator.target, {"code": Unit(2)}, codec=PCACodec(6))
    with pytest.raises(ValueError, match="needs LabelledExamples as its only condition"):
        DatasetSampler(good.space, good.architecture, other, (1, 8, 8))
    assert features_of(torch.rand(2, 3, 4, 4), 2).shape == (2, 12)


def test_the_command_samples_for_the_data_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_sampler(sampler(), "saved")
    Path("data.yaml").write_text("data: {class_path: nas.data.DigitsData}\n")
    given = ["generate", "saved", "--data", "data.yaml"]
    assert main([*given, "--count", "2", "--examples", "3", "--out", "w.safetensors"]) == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert read_provenance("w.safetensors")["condition"]["few"]["shape"] == [30, 74]
    for wrong, message in (
        ([*given, "--condition", "few=1"], "takes no condition; name a YAML file"),
        (["generate", "saved"], "name a YAML file with its `data` section: --data data.yaml"),
        ([*given, "--examples", "500"], "500 examples of each class are asked for"),
        ([*given, "--condition", "few=1", "--size", "width=4"], "not both"),
    ):
        assert main([*wrong, "--out", "x"]) == 2
        assert message in capsys.readouterr().err
    assert not Path("x").exists()


def test_one_is_not_validated_but_scored_on_a_data_set(tmp_path: Path) -> None:
    folder = save_sampler(sampler(), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"scored on one of them: nas generate digits --data data.yaml --count 20"
    ):
        open_trained(Located("digits", folder), None, None)
