"""`nas zoo`: what the tasks are, what is trained, and that it goes on where it was stopped."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hypernets.diffusion import ZooFileError, load_zoo
from nas import DigitsData
from nas.__main__ import main
from nas.zoo import (
    ClassSubsets,
    Rotations,
    ZooError,
    ZooRecipe,
    ZooRequest,
    accuracies,
    build_zoo,
    rotated,
    starts,
    subset,
    train_many,
)
from search_spaces import MLPSpace
from tests.nas.commands_fixture import write_config
from trials.tracking import Point, TrackedRun

SPACE = MLPSpace(in_features=64, num_classes=10, widths=[4], depths=[1])


def request(*, tasks=None, **recipe):
    return ZooRequest(
        SPACE,
        SPACE.smallest(),
        DigitsData(),
        Rotations([0, 90]) if tasks is None else tasks,
        ZooRecipe(**{"networks": 2, "steps": 3, **recipe}),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_rotations_turn_counter_clockwise() -> None:
    images = torch.rand(2, 1, 5, 5)
    torch.testing.assert_close(rotated(images, 90), images.rot90(1, (2, 3)), rtol=1e-4, atol=1e-5)
    tasks = Rotations([0, 90])
    labels = torch.tensor([3, 4])
    inputs, kept = tasks.data(1, images, labels)
    torch.testing.assert_close(inputs, images.rot90(1, (2, 3)), rtol=1e-4, atol=1e-5)
    assert torch.equal(kept, labels)
    assert (len(tasks), tasks.classes(7), tasks.describe(1)) == (2, 7, {"angle": 90})


def test_subsets_take_some_classes_in_an_order_of_their_own() -> None:
    tasks = ClassSubsets(3, 20, of=[1, 2, 5, 7], seed=3)
    assert len({tuple(tasks.describe(task)["classes"]) for task in range(20)}) == len(tasks) == 20
    labels = torch.tensor([1, 2, 5, 7, 0, 1])
    inputs, moved = subset(torch.arange(6.0), labels, [7, 1])
    assert inputs.tolist() == [0.0, 3.0, 5.0]
    assert moved.tolist() == [1, 0, 1]
    chosen = tasks.describe(4)["classes"]
    inputs, moved = tasks.data(4, torch.arange(6.0), labels)
    assert [chosen[label] for label in moved.tolist()] == [labels[int(place)] for place in inputs]
    assert ClassSubsets(3, 20, of=[1, 2, 5, 7], seed=3).subsets == tasks.subsets
    with pytest.raises(ValueError, match="number of ordered choices"):
        ClassSubsets(3, 25, of=[1, 2, 5, 7])
    with pytest.raises(ValueError, match="the data set has 6 classes, tasks ask for class 7"):
        tasks.classes(6)


def test_networks_trained_together_are_those_trained_alone() -> None:
    """Against one network at a time in plain PyTorch, on the same batches."""
    module = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    begun = starts(module, 2, shared=False, seed=4)
    inputs, labels = torch.randn(40, 6), torch.randint(3, (40,))
    together = train_many(module, begun, inputs, labels, steps=4, batch=8, lr=0.01, seed=9)
    for k in range(2):
        own = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        own.load_state_dict({name: value[k] for name, value in begun.items()}, strict=False)
        descent = torch.optim.Adam(own.parameters(), 0.01)
        generator = torch.Generator().manual_seed(9)
        for _ in range(4):
            chosen = torch.randint(40, (2, 8), generator=generator)[k]
            descent.zero_grad()
            F.cross_entropy(own(inputs[chosen]), labels[chosen]).backward()
            descent.step()
        for name, value in own.named_parameters():
            torch.testing.assert_close(together[name][k], value.detach(), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    several = train_many(
        module,
        begun,
        torch.stack([inputs.flip(0), inputs]),
        torch.stack([labels.flip(0), labels]),
        of=torch.tensor([1, 1]),
        steps=4,
        batch=8,
        lr=0.01,
        seed=9,
    )
    assert all(torch.equal(value, together[name]) for name, value in several.items())
    found = accuracies(module, together, inputs, labels, calibration=[inputs])
    own.train()
    own[1].momentum = None
    own[1].reset_running_stats()
    own(inputs)
    assert found[1].item() == pytest.approx((own.eval()(inputs).argmax(1) == labels).float().mean().item())


def test_shared_starts_are_one_start() -> None:
    module = nn.Linear(3, 2)
    alike, apart = (starts(module, 3, shared=shared, seed=1)["weight"] for shared in (True, False))
    assert torch.equal(alike[0], alike[2])
    assert torch.equal(alike[0], apart[0])
    assert (apart[0] != apart[1]).any()


def test_a_zoo_is_read_back_with_its_tasks_and_scores(tmp_path: Path) -> None:
    assert build_zoo(request(steps=60), tmp_path, workers=1) == 2
    zoo = load_zoo(tmp_path)
    module = SPACE.build(SPACE.smallest())
    assert {name: tuple(value.shape) for name, value in zoo.tensors.items()} == {
        name: (4, *value.shape) for name, value in module.named_parameters()
    }
    assert zoo.tasks.tolist() == [0, 0, 1, 1]
    assert zoo.descriptions == ({"angle": 0}, {"angle": 90})
    assert zoo.about["recipe"]["steps"] == 60
    assert (zoo.scores > 0.3).all()  # ten classes, four hidden units
    assert len(zoo.tensors["head.weight"].flatten(1).unique(dim=0)) == 4


def test_a_stopped_zoo_goes_on_and_ends_with_the_same_files(tmp_path: Path) -> None:
    build_zoo(request(), tmp_path / "whole", workers=1)
    build_zoo(request(), tmp_path / "part", workers=1)
    (tmp_path / "part" / "task-00000.safetensors").unlink()
    (tmp_path / "part" / "task-00001.safetensors").write_bytes(b"half")
    with pytest.raises(ZooFileError, match="lacks 2 of 2 tasks; repeat the command"):
        load_zoo(tmp_path / "part")
    seen: list[int] = []
    assert build_zoo(request(), tmp_path / "part", workers=1, progress=lambda task, about: seen.append(task)) == 2
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    before = contents(tmp_path / "part")
    assert build_zoo(request(), tmp_path / "part", workers=1, progress=lambda task, about: seen.append(task)) == 0
    assert seen == [0, 1, 0, 1]
    assert contents(tmp_path / "part") == before


def test_another_zoo_is_not_mixed_in(tmp_path: Path) -> None:
    build_zoo(request(), tmp_path, workers=1)
    before = contents(tmp_path)
    with pytest.raises(ZooFileError, match="it holds one that was made otherwise"):
        build_zoo(request(steps=4), tmp_path, workers=1)
    assert contents(tmp_path) == before


def test_what_cannot_be_trained_is_told(tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=r"2 of 2 tasks failed, task 0 with: .*weights are not finite after 3 steps"):
        build_zoo(request(lr=3e37), tmp_path, workers=1)
    with pytest.raises(ZooFileError, match="lacks 2 of 2 tasks"):
        load_zoo(tmp_path)
    with pytest.raises(ValueError, match="networks must be positive, got 0"):
        ZooRecipe(networks=0)
    narrow = MLPSpace(in_features=64, num_classes=2, widths=[4], depths=[1])
    asked = ZooRequest(narrow, narrow.smallest(), DigitsData(), ClassSubsets(3, 2), ZooRecipe())
    with pytest.raises(ValueError, match="an output for each of 3 classes of a task, they have 2"):
        build_zoo(asked, tmp_path / "new", workers=1)


class Recorder:
    """In place of MLflow: the calls that the command makes."""

    kept: ClassVar[dict[str, Any]] = {}

    def __init__(self, uri: str, experiment: str) -> None:
        assert experiment == "zoo"

    def runs(self, tags: Mapping[str, str]) -> list[TrackedRun]:
        return [TrackedRun("7", "FINISHED", tags)] if self.kept.get("tags") == tags else []

    def start_run(self, name: str, *, tags: Mapping[str, str]) -> str:
        self.kept.update(tags=tags, points=[], status=[])
        return "7"

    def reopen_run(self, run_id: str) -> None:
        self.kept["status"].append("RUNNING")

    def log_config(self, run_id: str, text: str, file: str) -> None:
        self.kept[file] = json.loads(text)

    def log(self, run_id: str, *, points: Iterable[Point]) -> None:
        self.kept["points"] += [(point.name, point.step) for point in points]

    def end_run(self, run_id: str, status: str) -> None:
        self.kept["status"].append(status)


def test_the_command_trains_records_and_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas.commands.zoo.Tracker", Recorder)
    monkeypatch.setattr(Recorder, "kept", {})
    config = write_config(tmp_path)
    options = ["--ways", "3", "--subsets", "2", "--networks", "2", "--steps", "3", "--workers", "1"]
    assert main(["zoo", "-c", config, *options]) == 0
    assert "4 networks of 2 tasks in zoo, 2 tasks trained now" in capsys.readouterr().out
    assert [len(each["classes"]) for each in load_zoo("zoo").descriptions] == [3, 3]
    assert Recorder.kept["zoo.json"]["recipe"]["steps"] == 3
    assert {("accuracy_mean", 0), ("accuracy_mean", 1)} < set(Recorder.kept["points"])
    assert main(["zoo", "-c", config, *options]) == 0
    assert "0 tasks trained now" in capsys.readouterr().out
    assert Recorder.kept["status"] == ["FINISHED", "RUNNING", "FINISHED"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs its tasks: either --rotations"),
        (["--rotations", "[0]", "--ways", "2"], "not both"),
        (["--rotations", "[0]", "--architecture", "tiny"], "smallest, middle or largest"),
        (["--ways", "11"], "2 <= ways <= 10 classes"),
    ],
    ids=["none", "both", "architecture", "ways"],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", "-c", write_config(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "zoo").exists()
