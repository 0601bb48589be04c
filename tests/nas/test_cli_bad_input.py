"""Bad input: one message that names the field and the fix, exit code 2, nothing lost or half-written."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
import torch

from nas.__main__ import main
from nas.cli import NASCLI
from nas.commands.boundary import UsageError
from nas.data import DigitsData
from search_spaces import MLPSpace, SearchSpace
from supernets import Classification, SharedWeights, Supernet, WeightSource, save

_SPEC = importlib.util.spec_from_file_location("commands_fixture", Path(__file__).with_name("commands_fixture.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
experiment = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(experiment)

ROOT = Path(__file__).resolve().parents[2]
SPACE = MLPSpace(64, 10, widths=(8, 16, 32), depths=(1, 2))
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def supernet(here: Path) -> Path:
    """An untrained supernet that knows its data."""
    net = Supernet(SPACE, Classification(10), calibration=2)
    return save(net, here / "net", data=DigitsData())


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with exit code 2 and one line on stderr; return the line."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("trials: 6", "trails: 6", "search.trails is not an option; did you mean trials?"),
        ("widths: [8, 16, 32]", "widht: [8]", "model.space: widht is not an option of search_spaces.MLPSpace"),
        ("nas.data.DigitsData", "nas.data.DigtsData", "data: nas.data has no DigtsData; did you mean DigitsData?"),
        ("max_epochs: 2", "max_epoch: 2", "trainer.max_epoch is not an option; did you mean max_epochs?"),
        ("trials: 6", "trials: 0", "search.trials must be >= 1, got 0"),
        ("trials: 6", "trials: many", "search.trials"),
        ("widths: [8, 16, 32]", "widths: [0, 8]", "error: model.space: widths must be at least 1"),
        ("n_random: 1", "n_random: -1", "error: model.rule: SandwichRule.n_random must be >= 0, got -1"),
        ("trials: 6", "limits: {big_params: 3}", "a limit must be named max_<metric> or min_<metric>"),
        ("\nmodel:", "\nmodle:", "modle is not an option; did you mean model?"),
    ],
)
def test_a_mistake_in_any_section_is_found_by_fit(
    old: str, new: str, expected: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment.write_config(here, (old, new))
    line = refused(["fit", "-c", config], capsys)
    assert expected in line
    assert "Does not validate" not in line
    assert {path.name for path in here.iterdir()} == {"small.yaml"}


def test_search_finds_the_same_mistakes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment.write_config(here, ("widths: [8, 16, 32]", "widht: [8]"))
    message = refused(["search", "-c", config, "--ckpt_path", "nowhere"], capsys)
    assert "model.space: widht is not an option of search_spaces.MLPSpace; did you mean widths?" in message


def test_missing_sections_and_checkpoints_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "fit needs the section model and data" in refused(["fit"], capsys)
    config = experiment.write_config(here)
    assert "search needs --ckpt_path" in refused(["search", "-c", config], capsys)
    assert "validate needs --ckpt_path" in refused(["validate", "-c", config], capsys)


def test_abbreviated_options_are_not_guessed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment.write_config(here)
    assert "--trainer.max_epoch is not an option" in refused(["fit", "-c", config, "--trainer.max_epoch", "1"], capsys)


@pytest.mark.parametrize("command", ["search", "sample", "export"])
def test_a_checkpoint_that_is_not_there(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--ckpt_path", "lost.ckpt"] if command == "search" else ["lost.ckpt"]
    extra = ["--architecture", "smallest"] if command == "export" else []
    assert "checkpoint lost.ckpt does not exist; give the path that `nas fit` printed" in refused(
        [command, *where, *extra], capsys
    )


def test_damaged_checkpoints(supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "cut.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    assert "cut.ckpt cannot be read, it is damaged or truncated" in refused(["sample", "cut.ckpt"], capsys)
    torch.save({"state_dict": {}}, here / "foreign.ckpt")
    assert "foreign.ckpt is not a checkpoint of a supernet" in refused(["sample", "foreign.ckpt"], capsys)
    weights = supernet / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "not a complete saved supernet" in refused(["sample", str(supernet)], capsys)
    assert not (here / "subnetwork").exists()


def test_a_checkpoint_of_another_space(supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment.write_config(here, ("depths: [1, 2]", "depths: [1, 2, 3]"))
    message = refused(["search", "-c", config, "--ckpt_path", str(supernet)], capsys)
    assert "was trained on space" in message
    assert "use the YAML it was trained with" in message
    assert not (here / "studies.journal").exists()


def test_a_limit_that_nothing_meets_says_what_is_reachable(
    supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = "max_params=10 cannot be met: the smallest subnetwork has 618 params"
    config = experiment.write_config(here, ("trials: 6", "limits: {max_params: 10}"))
    assert expected in refused(["search", "-c", config, "--ckpt_path", str(supernet)], capsys)
    assert expected in refused(["sample", str(supernet), "--max_params", "10"], capsys)
    assert main(["profile", "-c", config]) == 2
    assert f"not satisfiable: {expected}" in capsys.readouterr().out
    assert main(["profile", "-c", experiment.write_config(here), "--max_params", "1e3"]) == 0
    assert "satisfiable: max_params=1000" in capsys.readouterr().out


def test_an_accuracy_that_nothing_reaches(supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["sample", str(supernet), "--min_accuracy", "0.999"], capsys)
    assert "subnetworks tried keeps min_accuracy=0.999; the best has accuracy" in message
    assert not (here / "subnetwork").exists()


def test_a_choice_outside_the_space(supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = json.dumps({"depth": 1, "layer1.width": 9})
    message = refused(["export", str(supernet), "--architecture", given], capsys)
    assert "architecture['layer1.width'] must be one of (8, 16, 32), got 9" in message
    assert "'beef' fits 0 of 0 trials" in refused(["export", str(supernet), "--architecture", "beef"], capsys)


def test_an_output_folder_that_is_taken_or_cannot_be_made(
    supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "mine.txt").write_text("keep")
    arguments = ["export", str(supernet), "--architecture", "smallest", "--out"]
    assert "taken is not empty; choose another folder" in refused([*arguments, "taken"], capsys)
    assert "the output must be a folder" in refused([*arguments, "taken/mine.txt"], capsys)
    assert (here / "taken" / "mine.txt").read_text() == "keep"
    config = experiment.write_config(here)
    fit = ["fit", "-c", config, "--trainer.logger", "false", "--trainer.default_root_dir", "taken/mine.txt"]
    assert "trainer.default_root_dir must be a writable folder" in refused(fit, capsys)


def test_a_data_folder_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = "class_path: nas.data.DigitsData"
    config = experiment.write_config(here, (old, "class_path: nas.data.ImageData\n  init_args: {path: nowhere}"))
    message = refused(["fit", "-c", config, "--trainer.logger", "false"], capsys)
    assert "nowhere" in message


def test_mlflow_that_cannot_be_written_stops_a_fit_before_it_begins(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/file/mlflow.db")
    message = refused(["fit", "-c", experiment.write_config(here)], capsys)
    assert message.startswith("error: trainer.logger: MLflow must be reachable and writable")
    assert "--trainer.logger false" in message
    assert not (here / "runs").exists()


def test_mlflow_that_goes_away_costs_a_search_nothing(
    supernet: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here}/file/mlflow.db")
    config = experiment.write_config(here, ("trials: 6", "trials: 2"))
    assert main(["search", "-c", config, "--ckpt_path", str(supernet)]) == 0
    captured = capsys.readouterr()
    assert "2 complete" in captured.out
    assert "warning: MLflow is not complete" in captured.err
    assert "nas report small --storage studies.journal --resync" in captured.err


def test_a_study_of_other_weights_is_not_mixed(supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Supernet(SPACE, Classification(10), source=_reseeded, calibration=2)
    save(other, here / "other")
    config = experiment.write_config(here, ("trials: 6", "trials: 2"))
    common = ["-c", config, "--trainer.logger", "false", "--ckpt_path"]
    assert main(["search", *common, str(supernet)]) == 0
    message = refused(["search", *common, "other"], capsys)
    assert "study 'small' exists and asks another question (what is evaluated: stored shared:" in message
    assert "use another study name" in message


def _reseeded(space: SearchSpace) -> WeightSource:
    return SharedWeights(space, seed=1)


def test_a_study_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "studies.journal" in refused(["report", "nothing"], capsys)


def test_a_checkpoint_without_data_needs_some(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Supernet(SPACE, Classification(10), calibration=2), here / "bare")
    assert "--data CONFIG.yaml" in refused(["sample", "bare"], capsys)
    arguments = ["export", "bare", "--architecture", "smallest", "--data", experiment.write_config(here)]
    assert main(arguments) == 0
    assert Path("subnetwork/model.safetensors").exists()


@pytest.mark.parametrize("name", ["digits_conditions", "digits_zoo", "tinyshakespeare_mos"])
def test_a_configuration_parses_and_prints_itself(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / f"{name}.yaml"
    assert main(["fit", "-c", str(config), "--print_config"]) == 0
    first = capsys.readouterr().out
    (here / "again.yaml").write_text(first)
    assert main(["search", "-c", "again.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out.replace("ckpt_path: null\n", "") == first.replace("ckpt_path: null\n", "")
    profile = ["profile", "-c", str(config), "--samples", "2"]
    if not any(f"class_path: {name}" in first for name in ("supernets.Supernet", "nas.ZooDiffusion")):  # no space
        assert "must say model.init_args.space" in refused(profile, capsys)
        return
    assert main(profile) == 0
    assert "architectures" in capsys.readouterr().out


def test_the_quickstart_uses_the_configuration_of_the_repository() -> None:
    assert (ROOT / "nas" / "digits.yaml").read_text() == (ROOT / "configs" / "digits.yaml").read_text()


def test_the_parser_raises_where_it_is_used_as_a_library() -> None:
    with pytest.raises(UsageError, match="fit needs the section"):
        NASCLI(["fit"])


def test_what_comes_next_names_a_storage_that_is_not_the_usual_one(
    supernet: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment.write_config(here)
    elsewhere = ["--search.storage", "elsewhere.journal", "--search.trials", "2", "--trainer.logger", "false"]
    assert main(["search", "-c", config, "--ckpt_path", str(supernet), *elsewhere]) == 0
    following = shlex.split(capsys.readouterr().out.rpartition("Next:")[2])
    assert main([*following[1:], "--formats", '["safetensors"]']) == 0
    assert "best of 2 trials in elsewhere.journal" in capsys.readouterr().out
