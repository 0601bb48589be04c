"""The README does what it says: its commands run one after another in an empty folder, and its Python does too."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.programs import Done, run_nas, run_script

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PARAMETERS = 20_000


def run(line: str, folder: Path, environment: dict[str, str], scratch: Path) -> Done:
    """Run a line of a shell; one of ``nas`` alone in a process that has its imports done."""
    if line.startswith("nas ") and not set("|&;<>$`*") & set(line):
        return run_nas(line, folder, environment, scratch)
    done = subprocess.run(line, shell=True, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the configuration that the README names, cut to seconds of training."""
    config = yaml.safe_load((ROOT / "configs" / "digits.yaml").read_text())
    config["trainer"] |= {"max_epochs": 1, "check_val_every_n_epoch": 1}
    config["search"] |= {"trials": 6, "limits": {"max_params": PARAMETERS}}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.timeout(600)
def test_commands_and_snippets_run_in_order(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    scratch = tmp_path_factory.mktemp("outputs")
    printed = ""
    for language, text in BLOCKS:
        if language == "bash":
            runs = [(line, run(line, folder, environment, scratch)) for line in text.strip().splitlines()]
        elif language == "python":
            (folder / "snippet.py").write_text(text)
            snippet = folder / "snippet.py"
            runs = [(text, run_script(snippet, folder=folder, environment=environment, scratch=scratch))]
        else:
            continue
        for what, done in runs:
            assert done.returncode == 0, f"{what}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
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
