"""``nas grow``: two trained supernets into a wider one, what it prints, and what it refuses before it writes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nas.__main__ import main
from supernets import load
from tests.nas.commands_fixture import write_config

SIZES = "widths: [8, 16, 32], depths: [1, 2]"
NARROW = (SIZES, "widths: [8], depths: [2]")
WIDE = (SIZES, "widths: [8, 16], depths: [2]")
EPOCH = ("max_epochs: 2", "max_epochs: 1")
TEMPLATES = (
    "rule: {class_path",
    "source: {class_path: supernets.TemplateWeights, init_args: {share: layer, templates: 4}}\n    rule: {class_path",
)
OFF = ["--trainer.logger", "false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two narrow networks, trained for an epoch, and the configuration of a wider space."""
    folder = tmp_path_factory.mktemp("growing")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        narrow = write_config(folder, NARROW, TEMPLATES, EPOCH, name="narrow.yaml")
        write_config(folder, WIDE, EPOCH, name="wide.yaml")
        for seed in ("1", "2"):
            options = ["--seed_everything", seed, "--model.init_args.source.init_args.seed", seed]
            assert main(["fit", "-c", narrow, *OFF, *options]) == 0
    return folder


@pytest.fixture
def members(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.chdir(folder)
    return [f"runs/small/fit-{number}/supernet" for number in (1, 2)]


def cells(text: str, name: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return line.removeprefix(name).replace(" %", "").split()


def test_zero_growth_scores_as_the_mean_of_both_and_trains_on(
    members: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = members
    options = ["--second", second, "--architecture", "largest", "--into", "wide.yaml", "--out", "grown"]
    assert main(["grow", first, *options]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "grown, zero") == cells(printed, "mean of both")
    assert len({tuple(cells(printed, name)) for name in ("first", "second", "mean of both")}) > 1
    assert "nas fit -c wide.yaml --ckpt_path grown" in printed
    grown = load("grown")
    supernets = [load(member) for member in members]
    space = grown.space
    assert {choice.name: choice.candidates for choice in space.choices}["layer1.width"] == (8, 16)
    with torch.no_grad():
        hidden = [net.source(net.space.largest())["linear1.weight"] for net in supernets]
        assert torch.equal(grown.source(space.largest())["linear1.weight"], torch.cat(hidden))
    assert main(["fit", "-c", "wide.yaml", *OFF, "--ckpt_path", "grown", "--trainer.max_steps", "1"]) == 0
    assert "[fit] starts from the weights in grown" in capsys.readouterr().out
    latest = max(Path("runs/small").glob("fit-*"), key=lambda path: int(path.name.removeprefix("fit-")))
    trained = load(latest / "supernet")
    before, after = (net.source(space.largest())["linear2.weight"].detach() for net in (grown, trained))
    assert not torch.equal(before, after)
    torch.testing.assert_close(before, after, atol=0.05, rtol=0)


def test_templates_make_the_new_parts(members: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = members
    common = [first, "--second", second, "--architecture", "largest", "--into", "wide.yaml", "--overwrite"]
    assert main(["grow", *common, "--mode", "orthogonal", "--out", "orthogonal"]) == 0
    assert "grown, orthogonal" in capsys.readouterr().out
    source = load("orthogonal").source
    weight = source(source.space.largest())["linear2.weight"].detach()
    assert bool(weight[:8, 8:].any())
    assert main(["grow", *common, "--out", "orthogonal"]) == 0
    weight = (source := load("orthogonal").source)(source.space.largest())["linear2.weight"].detach()
    assert not bool(weight[:8, 8:].any())


def test_one_network_grows_within_its_own_space(
    members: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del members
    config = write_config(folder, WIDE, EPOCH, ("study: small", "study: own"), name="own.yaml")
    assert main(["fit", "-c", config, *OFF]) == 0
    capsys.readouterr()
    assert main(["grow", "runs/own/fit-1/supernet", "--architecture", "smallest", "--out", "own"]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "grown, zero") == cells(printed, "first")
    before, after = load("runs/own/fit-1/supernet"), load("own")
    small = before.space.smallest()
    for name, tensor in before.source(small).items():
        assert torch.equal(after.source(small)[name], tensor)


def test_what_the_rule_has_learned_grows_along(members: list[str], folder: Path) -> None:
    del members
    sandwich = "rule: {class_path: supernets.SandwichRule, init_args: {n_random: 1}}"
    alpha = "rule: {class_path: supernets.DifferentiableRule, init_args: {schedule: single, lr: 0.5}}"
    config = write_config(folder, WIDE, (sandwich, alpha), ("study: small", "study: alpha"), name="alpha.yaml")
    assert main(["fit", "-c", config, *OFF, "--trainer.max_steps", "1"]) == 0
    learned = load("runs/alpha/fit-1/supernet").rule.learned()
    assert any(abs(value) > 0.1 for values in learned.values() for value in values)
    assert main(["grow", "runs/alpha/fit-1/supernet", "--architecture", "smallest", "--out", "alpha"]) == 0
    assert load("alpha").rule.learned() == learned


def test_choices_that_only_the_wider_space_has_are_at_their_smallest_in_the_trained_network(
    members: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del members
    perceptrons = f"class_path: search_spaces.MLPSpace\n      init_args: {{in_features: 64, num_classes: 10, {SIZES}}}"
    for name, widths in (("one", "[4]"), ("two", "[4, 8]")):
        sizes = f"stem: {{widths: {widths}}}, stages: [{{block: residual, widths: {widths}, depths: [1]}}]"
        images = f"{{num_classes: 10, in_channels: 1, resolutions: [8], {sizes}}}"
        convolutions = f"class_path: search_spaces.ConvNetSpace\n      init_args: {images}"
        write_config(folder, (perceptrons, convolutions), EPOCH, ("small", name), name=f"{name}.yaml")
    assert main(["fit", "-c", "one.yaml", *OFF, "--trainer.max_steps", "1"]) == 0
    capsys.readouterr()
    one = "runs/one/fit-1/supernet"
    assert main(["grow", one, "--architecture", "largest", "--into", "two.yaml", "--out", "two"]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "grown, zero") == cells(printed, "first")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architecture", "tallest"], "--architecture must be a JSON object of choices, or smallest"),
        (["--architecture", '{"depth": 2}'], "architecture['layer1.width'] is missing"),
        (["--architecture", "largest", "--to", "huge"], "--to must be a JSON object"),
        (["--architecture", "largest", "--mode", "copy"], "mode"),
        (["--architecture", "largest", "--second_architecture", "largest"], "give --second too"),
        (["--architecture", "largest", "--second", "nowhere"], "checkpoint nowhere does not exist"),
        (["--architecture", "largest", "--into", "lost.yaml"], "the configuration lost.yaml does not exist"),
        (["--architecture", "largest", "--into", "deep.yaml"], "in width alone, but the tensors ['linear3.weight'"),
        (
            ["--architecture", "largest", "--into", "odd.yaml"],
            "architecture['layer1.width'] must be one of (10, 16), got 8",
        ),
        (["--architecture", "largest", "--into", "other.yaml"], "builds linear1.weight of shape (8, 32)"),
        (["--architecture", "largest", "--into", "mixed.yaml"], "use SharedWeights"),
        (["--architecture", "largest", "--out", "wide.yaml"], "--out must be a new or empty folder, wide.yaml is not"),
        (["--architecture", "largest", "--out", "runs"], "--out must be a new or empty folder, runs is not"),
    ],
)
def test_what_cannot_be_grown_is_refused_before_anything_is_written(
    options: list[str], message: str, members: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(folder, (SIZES, "widths: [8, 16], depths: [2, 3]"), name="deep.yaml")
    write_config(folder, (SIZES, "widths: [10, 16], depths: [2]"), name="odd.yaml")
    write_config(
        folder,
        (f"in_features: 64, num_classes: 10, {SIZES}", f"in_features: 32, num_classes: 10, {WIDE[1]}"),
        name="other.yaml",
    )
    write_config(folder, WIDE, TEMPLATES, name="mixed.yaml")
    capsys.readouterr()
    out = [] if "--out" in options else ["--out", "nothing"]
    into = [] if "--into" in options else ["--into", "wide.yaml"]
    assert main(["grow", members[0], *options, *out, *into]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("nothing").exists()


def test_weights_of_another_kind_of_source_are_refused(members: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "-c", "wide.yaml", *OFF, "--ckpt_path", members[0]]) == 2
    assert "was trained on space" in capsys.readouterr().err
    config = write_config(Path(), NARROW, name="plain.yaml")
    assert main(["fit", "-c", config, *OFF, "--ckpt_path", members[0]]) == 2
    assert "do not fit SharedWeights; they were saved by TemplateWeights" in capsys.readouterr().err
