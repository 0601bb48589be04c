"""Retraining one architecture: from the weights of a supernet or from new ones, exported, and not searched."""

import json
from pathlib import Path

import pytest
import torch

from nas.__main__ import main
from supernets import load
from tests.nas.commands_fixture import write_config

EPOCH = ("max_epochs: 2", "max_epochs: 1")
RULE = "rule: {class_path: supernets.SandwichRule, init_args: {n_random: 1}}"
CHOSEN = "{depth: 1, layer1.width: 16, layer2.width: 8}"
SINGLE = f"rule: {{class_path: supernets.SingleRule, init_args: {{architecture: {CHOSEN}}}}}"
OFF = ["--trainer.logger", "false"]


@pytest.mark.filterwarnings("default")
def test_one_architecture_is_trained_on_exported_and_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, EPOCH)
    single = write_config(tmp_path, EPOCH, (RULE, SINGLE), ("study: small", "study: one"), name="one.yaml")
    assert main(["fit", "-c", "small.yaml", *OFF]) == 0
    inherited = load("runs/small/fit-1/supernet")
    assert main(["fit", "-c", single, *OFF, "--ckpt_path", "runs/small/fit-1/supernet"]) == 0
    retrained = load("runs/one/fit-1/supernet")
    chosen = retrained.rule.selected()
    assert chosen is not None
    before, after = inherited.source.stored(), retrained.source.stored()  # type: ignore[operator]
    assert not torch.equal(before["linear1.weight"][:16], after["linear1.weight"][:16])
    printed = capsys.readouterr().out
    assert "starts from the weights in runs/small/fit-1/supernet" in printed
    assert "nas export runs/one/fit-1/supernet --architecture selected" in printed
    assert main(["export", "runs/one/fit-1/supernet", "--architecture", "selected", "--out", "out"]) == 0
    assert json.loads(Path("out/manifest.json").read_text())["architecture"] == dict(chosen)
    capsys.readouterr()
    for command in (
        ["search", "-c", single, "--ckpt_path", "runs/one/fit-1/supernet"],
        ["sample", "runs/one/fit-1/supernet", "--max_params", "9000"],
        ["export", "runs/one/fit-1/supernet", "--architecture", "largest", "--out", "other"],
    ):
        assert main(command) == 2
        assert "SingleRule has trained" in capsys.readouterr().err
    assert not Path("other").exists()
