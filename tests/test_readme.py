"""The README does what it says: its commands run one after another in an empty folder, and its Python does too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PARAMETERS = 20_000


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the configuration that the README names, cut to seconds of training."""
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    config["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1}
    config["search"] |= {"trials": 6, "limits": {"max_params": PARAMETERS}}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A shell in which ``nas`` is this source tree."""
    programs = tmp_path_factory.mktemp("bin")
    script = programs / "nas"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nas "$@"\n')
    script.chmod(0o755)
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.timeout(300)
def test_commands_and_snippets_run_in_order(folder: Path, environment: dict[str, str]) -> None:
    printed = ""
    for language, text in BLOCKS:
        if language == "bash":
            for line in text.strip().splitlines():
                printed += run(["sh", "-c", line], folder, environment)
        elif language == "python":
            (folder / "snippet.py").write_text(text)
            printed += run([sys.executable, "snippet.py"], folder, environment)
    assert "torch.Size([5, 10])" in printed
    assert "9 architectures" in printed
    for name in re.findall(r"`(runs/\S+|tiny/\S+)`", README):
        assert (folder / name).exists(), name
    assert (folder / "smallest" / "model.onnx").exists()


def test_every_block_is_run_or_is_output_or_is_the_installation() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python", "sh", "text"}
    [installation] = [text for language, text in BLOCKS if language == "sh"]
    wanted = [line.removeprefix("make ") for line in installation.splitlines() if line.startswith("make ")]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert wanted == ["demo"]
    assert set(wanted) <= set(targets)


def test_links_lead_somewhere() -> None:
    for document in (README, *((ROOT / "docs" / name).read_text() for name in ("concepts.md", "extending.md"))):
        base = ROOT if document is README else ROOT / "docs"
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document):
            assert (base / target).exists(), target


def test_shown_output_is_of_the_commands_as_they_are() -> None:
    """Tables drift: what the README shows must at least name columns and stages that the commands still print."""
    shown = "\n".join(text for language, text in BLOCKS if language == "text")
    for words in ("[fit]", "[search]", "hypervolume", "choice", "accuracy, test, as exported", "parity"):
        assert words in shown
