"""From one YAML to a trained supernet, a search, MLflow and an exported subnetwork, through the real command line."""

import contextlib
import importlib
import importlib.util
import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from safetensors.torch import load_model

from nas import DigitsData
from nas.__main__ import main
from nas.callbacks import FitProgress
from nas.objectives import Evaluation, WeightSharing
from nas.own_code import options_for
from search_spaces import Architecture
from supernets import load, read_card
from tests.programs import run_code
from trials import Mirror, Tracker, TrackingUnavailableError, TrialState, TrialStore

_SPEC = importlib.util.spec_from_file_location("commands_fixture", Path(__file__).with_name("commands_fixture.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
experiment = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(experiment)

ADDRESS = "models:/small-supernet@champion"
pytestmark = pytest.mark.filterwarnings("default")


@dataclass(frozen=True)
class Done:
    folder: Path
    fit: str
    search: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[Done]:
    """One fit and one search; tests that need the folder are in it."""
    folder = tmp_path_factory.mktemp("experiment")
    experiment.write_config(folder)
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    torch.set_num_threads(1)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mirror.close, "__defaults__", (250.0,))  # of a busy machine
        fit = captured(["fit", "-c", "small.yaml"])
        search = captured(["search", "-c", "small.yaml", "--ckpt_path", ADDRESS])
        yield Done(folder, fit, search)


def captured(arguments: list[str]) -> str:
    import io

    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        assert main(arguments) == 0, stream.getvalue()
    return stream.getvalue()


def test_fit_says_where_the_supernet_is_and_what_comes_next(done: Done) -> None:
    assert "saved to runs/small/fit-1/supernet" in done.fit
    assert f"which is {ADDRESS} now" in done.fit
    assert f"nas search -c small.yaml --ckpt_path {ADDRESS}" in done.fit
    assert (
        load(done.folder / "runs/small/fit-1/supernet").space.size()
        == load(done.folder / "runs/small/fit-1/last.ckpt").space.size()
    )


def test_fit_leaves_its_configuration_and_its_loss_in_mlflow(done: Done) -> None:
    tracker = Tracker(f"sqlite:///{done.folder}/mlflow.db", "small")
    (run,) = tracker.runs({"nas.kind": "fit"})
    assert run.status == "FINISHED"
    text = tracker.fetch(run.run_id, "config.yaml", done.folder).read_text()
    assert yaml.safe_load(text)["search"]["study"] == "small"
    assert tracker.last_step(run.run_id, "train/loss") is not None
    assert tracker.last_step(run.run_id, "val/largest/accuracy") is not None


def test_search_evaluates_its_budget_and_mirrors_it(done: Done) -> None:
    with TrialStore.load("studies.journal", "small") as store:
        trials = store.trials()
    assert len(trials) == 6
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    tracker = Tracker(f"sqlite:///{done.folder}/mlflow.db", "small")
    (parent,) = tracker.runs({"nas.kind": "search"})
    assert parent.status == "FINISHED"
    assert len(tracker.runs({"nas.kind": "trial", "mlflow.parentRunId": parent.run_id})) == 6
    assert tracker.resolve(ADDRESS).tags["nas.search.run"] == parent.run_id
    assert tracker.fetch(parent.run_id, "report/pareto.html", done.folder).stat().st_size > 1000
    kept = yaml.safe_load(tracker.fetch(parent.run_id, "config.yaml", done.folder).read_text())
    assert kept["search"]["study"] == "small"


def test_search_prints_the_front_and_the_files(done: Done) -> None:
    assert "6/6 trials" in done.search
    assert "Pareto front:" in done.search
    for name in ("pareto.html", "pareto.png", "front.csv", "trials.jsonl"):
        assert f"wrote runs/small/report/{name}" in done.search
        assert (done.folder / "runs/small/report" / name).exists()


def test_the_same_search_again_evaluates_nothing_twice(done: Done) -> None:
    again = captured(["search", "-c", "small.yaml", "--ckpt_path", "runs/small/fit-1/supernet"])
    assert "6 complete" in again
    with TrialStore.load("studies.journal", "small") as store:
        assert len(store.trials()) == 6


def test_sample_exports_the_best_known_subnetwork(done: Done) -> None:
    text = captured(["sample", ADDRESS, "--max_params", "2e3", "--out", "tiny"])
    assert "best of 6 trials in studies.journal" in text
    assert re.search(r"registered as models:/small-subnetwork/\d", text)
    manifest = json.loads(Path("tiny/manifest.json").read_text())
    with TrialStore.load("studies.journal", "small") as store:
        fitting = [trial for trial in store.trials() if trial.value("params") <= 2000]
    best = max(fitting, key=lambda trial: trial.value("accuracy"))
    assert manifest["costs"]["params"] <= 2000
    assert manifest["scores"]["val"]["accuracy"] == pytest.approx(best.value("accuracy"))
    resolved = Tracker(f"sqlite:///{done.folder}/mlflow.db").resolve("models:/small-subnetwork@newest")
    assert resolved.tags["nas.supernet"] == "models:/small-supernet/1"
    assert (resolved.folder / "model.safetensors").read_bytes() == Path("tiny/model.safetensors").read_bytes()


def test_mlflow_serves_the_supernet_and_chooses_what_sample_does(done: Done) -> None:
    import mlflow.pyfunc

    with mlflow_of(done.folder):
        served = mlflow.pyfunc.load_model(ADDRESS)
        asked = [{"max_params": 2000}, {"max_params": 10}, {"min_accuracy": 0.0, "max_macs": 1e9}]
        fit, refused, free = served.predict(asked)
    captured(["sample", ADDRESS, "--max_params", "2e3", "--out", "asked", "--formats", '["safetensors"]'])
    manifest = json.loads(Path("asked/manifest.json").read_text())
    assert json.loads(fit.architecture) == manifest["architecture"]
    assert fit.arch_id == manifest["arch_id"]
    assert fit.measurements["params"] == manifest["costs"]["params"]
    assert fit.measurements["accuracy"] == pytest.approx(manifest["scores"]["val"]["accuracy"])
    assert (fit.origin, free.origin) == ("search", "search")
    assert refused.problem.startswith("max_params=10 cannot be met: the smallest subnetwork has")
    assert refused.architecture == ""


@contextlib.contextmanager
def mlflow_of(folder: Path) -> Iterator[None]:
    """Make the database of a folder what MLflow itself looks at."""
    import mlflow

    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_registry_uri(f"sqlite:///{folder}/mlflow.db")
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])


def test_lineage_leads_from_the_subnetwork_over_its_trial_to_the_supernet_and_back(done: Done) -> None:
    captured(["sample", ADDRESS, "--max_params", "2e3", "--out", "traced", "--formats", '["safetensors"]'])
    uri = f"sqlite:///{done.folder}/mlflow.db"
    found = Tracker(uri).resolve("models:/small-subnetwork@newest")
    client = MlflowClient(uri)
    run = client.get_run(found.tags["nas.trial.run"])
    assert run.data.tags["nas.arch_id"] == found.tags["nas.arch_id"]
    assert run.data.tags["nas.subnetwork"] == f"models:/small-subnetwork/{found.version}"
    search = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert search.info.run_id == found.tags["nas.search.run"]
    assert search.data.tags["nas.supernet"] == found.tags["nas.supernet"] == "models:/small-supernet/1"
    (fit,) = Tracker(uri, "small").runs({"nas.kind": "fit"})
    assert search.data.tags["nas.supernet.run"] == fit.run_id


def test_runs_name_their_data_and_the_search_describes_itself(done: Done) -> None:
    client = MlflowClient(f"sqlite:///{done.folder}/mlflow.db")
    tracker = Tracker(f"sqlite:///{done.folder}/mlflow.db", "small")
    digests = set()
    for kind, context in (("fit", "training"), ("search", "validation")):
        (run,) = tracker.runs({"nas.kind": kind})
        (used,) = client.get_run(run.run_id).inputs.dataset_inputs
        assert used.dataset.name == "DigitsData"
        assert json.loads(used.dataset.source)["class_path"] == "nas.DigitsData"
        assert json.loads(used.dataset.profile)["batch_size"] > 0
        assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": context}
        digests.add(used.dataset.digest)
    assert len(digests) == 1
    (search,) = tracker.runs({"nas.kind": "search"})
    note = search.tags["mlflow.note.content"]
    assert f"get-artifact?path=report%2Fpareto.png&run_uuid={search.run_id}" in note
    with TrialStore.load("studies.journal", "small") as store:
        best = max(store.trials(), key=lambda trial: trial.value("accuracy"))
    assert f"{100 * best.value('accuracy'):.2f} %" in note
    assert f"nas sample {ADDRESS} --study small" in note
    kind = client.get_experiment_by_name("small").tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"


def test_registered_supernet_has_a_card(done: Done) -> None:
    version = MlflowClient(f"sqlite:///{done.folder}/mlflow.db").get_model_version("small-supernet", "1")
    assert "Supernet of 12 subnetworks: `MLPSpace`" in version.description
    space = load(done.folder / "runs/small/fit-1/supernet").space
    for end in (space.smallest(), space.largest()):
        params = sum(parameter.numel() for parameter in space.build(end).parameters())
        assert f" {params:,} |" in version.description
    assert re.search(r"accuracy, validation \| \d+\.\d\d % \| \d+\.\d\d % \|", version.description)


def test_report_without_the_supernet_does_without_its_pictures(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.chdir(done.folder):
        assert main(["report", "small", "--out", "whole"]) == 0
        assert 'id="portrait"' in Path("whole/pareto.html").read_text()
        Path("apart").mkdir()
        with contextlib.chdir("apart"):
            assert main(["report", "small", "--storage", "../studies.journal", "--out", "."]) == 0
            assert "note: no pictures of architectures" in capsys.readouterr().err
            assert 'id="portrait"' not in Path("pareto.html").read_text()
            assert main(["report", "small", "--storage", "../studies.journal", "--supernet", "nowhere"]) == 2
            assert "checkpoint nowhere does not exist" in capsys.readouterr().err


def test_two_studies_are_compared(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--search.study", "other", "--search.trials", "3", "--search.seed", "1", "--trainer.logger", "false"]
    captured(["search", "-c", "small.yaml", "--ckpt_path", "runs/small/fit-1/supernet", *more])
    assert main(["report", "--compare", "small", "other"]) == 0
    assert "wrote runs/compare/small-other/compare.html" in capsys.readouterr().out
    found = json.loads(Path("runs/compare/small-other/compare.json").read_text())
    assert [entry["study"] for entry in found["studies"]] == ["small", "other"]
    assert main(["report", "small", "--compare", "none"]) == 2
    assert "study 'none' is not in studies.journal; the studies there are:" in capsys.readouterr().err


def test_sample_finds_the_trials_in_mlflow_where_the_storage_is_not(done: Done) -> None:
    text = captured(
        ["sample", ADDRESS, "--storage", "elsewhere.journal", "--out", "remote", "--formats", '["safetensors"]']
    )
    assert "best of 6 trials in MLflow run" in text


def test_sample_of_an_unsearched_checkpoint_searches_a_little(done: Done) -> None:
    text = captured(
        ["sample", "runs/small/fit-1/last.ckpt", "--storage", "none.journal", "--max_params", "1000", "--out", "quick"]
    )
    assert "was never searched; a quick random search stands in" in text
    assert json.loads(Path("quick/manifest.json").read_text())["costs"]["params"] <= 1000


def test_export_by_json_by_identity_and_by_name_agree(done: Done) -> None:
    with TrialStore.load("studies.journal", "small") as store:
        trial = store.trials()[0]
    spelt = json.dumps(dict(trial.architecture))
    for name, given in (("by-json", spelt), ("by-id", trial.arch_id[:10])):
        captured(["export", "runs/small/fit-1/supernet", "--architecture", given, "--out", name])
    assert Path("by-json/model.safetensors").read_bytes() == Path("by-id/model.safetensors").read_bytes()
    captured(["export", "runs/small/fit-1/supernet", "--architecture", "smallest", "--out", "by-name"])
    assert json.loads(Path("by-name/manifest.json").read_text())["architecture"] == {"depth": 1, "layer1.width": 8}


ALONE = """
import sys
import torch
OURS = ("search_spaces", "hypernets", "supernets", "trials", "nas")
for name in [name for name in sys.modules if name.startswith(tuple(f"{package}." for package in OURS))]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys(OURS))  # which forbids to import them
model = torch.export.load("alone/model.pt2").module()
print(tuple(model(torch.zeros(3, 64)).shape))
"""


def test_an_exported_file_needs_nothing_of_ours(done: Done) -> None:
    captured(["export", ADDRESS, "--architecture", "middle", "--format", "pt2", "--out", "alone"])
    output = run_code(ALONE, folder=Path.cwd(), scratch=Path("outputs"))
    assert output.stdout == "(3, 10)\n", output.stderr


def test_report_writes_and_resyncs(done: Done) -> None:
    text = captured(["report", "small", "--out", "report", "--resync"])
    assert "is complete" in text
    assert Path("report/pareto.png").exists()


def test_validate_takes_everything_from_the_checkpoint(done: Done) -> None:
    text = captured(["validate", "--ckpt_path", "runs/small/fit-1/last.ckpt"])
    assert "val/largest/accuracy" in text


def test_a_second_fit_in_the_same_folder_clashes_with_nothing(done: Done) -> None:
    before = Path("runs/small/fit-1/supernet/weights.safetensors").read_bytes()
    text = captured(
        ["fit", "-c", "small.yaml", "--trainer.max_epochs", "1", "--trainer.logger", "false", "--search.trials=7"]
    )
    assert "nas search -c small.yaml --search.trials=7 --ckpt_path runs/small/fit-2/supernet" in text
    assert "saved to runs/small/fit-2/supernet" in text
    assert "registered" not in text
    assert Path("runs/small/fit-1/supernet/weights.safetensors").read_bytes() == before


def test_fit_continues_from_a_checkpoint(done: Done) -> None:
    text = captured(
        [
            *("fit", "-c", "small.yaml", "--ckpt_path", "runs/small/fit-1/last.ckpt"),
            *("--trainer.max_epochs", "3", "--trainer.logger", "false"),
        ]
    )
    assert "51/51 steps" in text or "66/66 steps" in text


def test_an_interrupted_fit_says_how_to_continue(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: FitProgress, trainer, *_: object) -> None:
        if trainer.global_step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(FitProgress, "on_train_batch_end", interrupt)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(["fit", "-c", "small.yaml", "--trainer.logger", "false"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores Ctrl-C from then on
    match = re.search(r"continue with: nas fit -c small.yaml --ckpt_path (\S+)", capsys.readouterr().err)
    assert match is not None
    assert load(match[1]).space.size() == 12


def test_an_interrupted_search_is_continued_by_the_same_command(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        *("search", "-c", "small.yaml", "--ckpt_path", "runs/small/fit-1/supernet"),
        *("--search.study", "broken", "--search.trials", "4", "--trainer.logger", "false"),
    ]
    evaluate = WeightSharing.__call__
    calls: list[str] = []

    def interrupt(self: WeightSharing, architecture: Architecture, *, seed: int) -> Evaluation:
        calls.append(architecture.arch_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(self, architecture, seed=seed)

    monkeypatch.setattr(WeightSharing, "__call__", interrupt)
    assert main(command) == 130
    output = capsys.readouterr()
    assert "interrupted, nothing is lost (2 complete)" in output.out
    assert "continue with: nas search -c small.yaml" in output.err
    assert main(command) == 0
    assert "4 complete" in capsys.readouterr().out
    assert len(calls) == 5
    assert len(set(calls)) == 4


def test_mlflow_that_goes_away_during_a_fit_costs_the_registration_alone(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []

    def away(*_: object, **__: object) -> int:
        raise TrackingUnavailableError("MLflow must be reachable")

    def broken(self: MlflowClient, run_id: str, metrics: object = (), **_: object) -> None:
        if metrics:
            written.append(metrics)
            raise MlflowException("database is locked")

    monkeypatch.setattr(Tracker, "register_folder", away)
    monkeypatch.setattr(MlflowClient, "log_batch", broken)
    with pytest.warns(UserWarning, match="MLflow has gone away, training goes on without it: database is locked"):
        assert main(["fit", "-c", "small.yaml", "--trainer.max_epochs", "1"]) == 0
    assert len(written) == 1
    output = capsys.readouterr()
    assert "warning: not registered in MLflow, but nothing is lost: MLflow must be reachable" in output.err
    match = re.search(r"--ckpt_path (\S+)", output.out)
    assert match is not None
    assert load(match[1]).space.size() == 12


MODELS = """
import lightning as L
from torch import nn

from nas import DigitsData


class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))


class Data(L.LightningDataModule):
    def __init__(self, batch_size=64, keep=True):
        super().__init__()
        if keep:
            self.save_hyperparameters()
        digits = DigitsData(batch_size=batch_size)
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            setattr(self, name, getattr(digits, name))
"""
OWN = (
    """class_path: search_spaces.MLPSpace
      init_args: {in_features: 64, num_classes: 10, widths: [8, 16, 32], depths: [1, 2]}""",
    """class_path: search_spaces.FactorySpace
      init_args: {builder: their_models.Net, choices: {width: [8, 16]}, input_shape: [1, 8, 8]}""",
)


def test_a_model_beside_the_configuration_is_found_and_trusted_by_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "their_models.py").write_text(MODELS)
    config = experiment.write_config(tmp_path, OWN)
    off = ["--trainer.logger", "false"]
    assert main(["fit", "-c", config, *off, "--data", "their_models.Data", "--data.batch_size", "128"]) == 0
    assert "will not be kept" not in capsys.readouterr().err
    saved = "runs/small/fit-1/supernet"
    assert main(["search", "-c", config, "--data", "their_models.Data", "--ckpt_path", saved, *off]) == 0
    following = capsys.readouterr().out.rpartition("Next:")[2].split()
    assert following[-2:] == ["--trust", "their_models"]
    assert main(["sample", saved, "--out", "tiny"]) == 2
    assert "--trust their_models" in capsys.readouterr().err
    assert not Path("tiny").exists()
    assert main(["sample", saved, "--out", "tiny", "--formats", '["safetensors"]', "--trust", "json,their_models"]) == 0
    manifest = json.loads(Path("tiny/manifest.json").read_text())
    assert manifest["module"] == "their_models.Net"
    model = importlib.import_module("their_models").Net(**manifest["arguments"]).eval()
    load_model(model, "tiny/model.safetensors")
    logits, labels = zip(*((model(images), labels) for images, labels in DigitsData().val_dataloader()), strict=True)
    accuracy = float((torch.cat(logits).argmax(1) == torch.cat(labels)).float().mean())
    assert accuracy == pytest.approx(manifest["scores"]["val"]["accuracy"], abs=1e-6)


def test_data_that_cannot_be_kept_with_the_supernet_is_told_before_training_and_named_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_data.py").write_text(MODELS)
    config = experiment.write_config(tmp_path, tuple(text.replace("their_models", "their_data") for text in OWN))
    own = ["--trainer.logger", "false", "--data", "their_data.Data", "--data.keep", "false"]
    assert main(["fit", "-c", config, *own]) == 0
    assert "the data will not be kept with what is trained: their_data.Data must keep" in capsys.readouterr().err
    assert options_for(read_card("runs/small/fit-1/supernet")) == " --trust their_data --data CONFIG.yaml"
