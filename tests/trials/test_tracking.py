import json
import shutil
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from trials import ModelNotFoundError, Tracker, TrackingLogger, TrackingUnavailableError, tracking_uri
from trials.tracking import tracking_name
from trials.tracking_address import artifact_location, check_tracking

pytestmark = pytest.mark.filterwarnings("ignore")  # those of MLflow, Lightning and their layers are theirs


@pytest.fixture
def uri(empty_mlflow, tmp_path):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "export"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"12")
    (folder / "deep" / "manifest.json").write_text("{}")
    return folder


def test_the_default_is_a_database_in_the_working_directory_with_its_artifacts_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri("sqlite:///deep/m.db") == f"sqlite:///{tmp_path}/deep/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert tracking_uri() == "http://host:5000"
    assert tracking_uri("sqlite:////m.db") == "sqlite:////m.db"
    assert artifact_location("http://host:5000", "x") is None
    assert artifact_location("sqlite:////data/m.db", "my search") == "file:///data/mlartifacts/my_search"


def test_artifacts_and_configuration_lie_beside_the_database(uri, files, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tracker = Tracker(uri, "x")
    run_id = tracker.start_run("r", tags={"nas.kind": "search"})
    tracker.log_artifacts(run_id, files, "pareto")
    tracker.log_config(run_id, "seed: 1\n")
    root = tmp_path / "mlartifacts" / "x" / run_id / "artifacts"
    assert (root / "config.yaml").read_text() == "seed: 1\n"
    assert (root / "pareto" / "deep" / "manifest.json").exists()
    assert list(Path.cwd().iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"the folder to log must exist, got .*nothing"):
        tracker.log_artifacts(run_id, tmp_path / "nothing")


def test_a_folder_becomes_a_registered_model_that_is_found_by_alias_and_version(uri, files, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tracker = Tracker(uri, "x")
    run_id = tracker.start_run("r", tags={})
    assert tracker.register_folder(files, "net", alias="champion", tags={"params": "20"}, run_id=run_id) == 1
    (files / "model.safetensors").write_bytes(b"34")
    assert tracker.register_folder(files, "net", alias=("champion", "pareto-0"), kind="supernet") == 2
    champion, first = tracker.resolve("models:/net@champion"), tracker.resolve("models:/net/1")
    assert (champion.name, champion.version, champion.run_id) == ("net", 2, None)
    assert tracker.present_version("models:/net@champion") == 2
    assert (first.version, first.run_id, first.tags) == (1, run_id, {"params": "20"})
    assert (champion.folder / "model.safetensors").read_bytes() == b"34"
    assert (first.folder / "model.safetensors").read_bytes() == b"12"
    assert (first.folder / "deep" / "manifest.json").read_text() == "{}"
    tracker.tag_version("net", 1, {"latency_ms": "3.2"})
    assert tracker.resolve("models:/net/1").tags == {"params": "20", "latency_ms": "3.2"}
    assert list(Path.cwd().iterdir()) == []
    logged = MlflowClient(uri).search_logged_models([tracker.experiment_id])
    assert {(model.model_type, str(model.status)) for model in logged} == {
        ("subnetwork", "READY"),
        ("supernet", "READY"),
    }


def test_addresses_of_models_that_are_not_there_name_what_is(uri, files):
    tracker = Tracker(uri, "x")
    tracker.register_folder(files, "net", alias="champion")
    with pytest.raises(ValueError, match=r"must read models:/NAME@alias or models:/NAME/3, got 'net'"):
        tracker.resolve("net")
    with pytest.raises(ModelNotFoundError, match=r"models:/nat/1 must be a registered model .* there is: models net"):
        tracker.resolve("models:/nat/1")
    with pytest.raises(ModelNotFoundError, match=r"there is: versions \[1\], aliases \['champion'\]"):
        tracker.resolve("models:/net@champignon")
    with pytest.raises(ModelNotFoundError, match=r"there is: versions \[1\], aliases"):
        tracker.resolve("models:/net/7")
    with pytest.raises(FileNotFoundError, match=r"the folder to register must exist"):
        tracker.register_folder(files / "nothing", "net")


def test_runs_are_found_by_their_tags_and_long_records_are_split(uri):
    tracker = Tracker(uri, "x")
    run_id = tracker.start_run("r", tags={"nas.kind": "trial", "nas.study": "s"}, started=12.5)
    tracker.start_run("other", tags={"nas.kind": "trial"})
    params = {f"arch/{index}": index for index in range(250)}
    tracker.log(run_id, params=params, tags={"odd:name?": "v"})
    assert [run.run_id for run in tracker.runs({"nas.kind": "trial", "nas.study": "s"})] == [run_id]
    run = MlflowClient(uri).get_run(run_id)
    assert len(run.data.params) == 250
    assert run.info.start_time == 12500
    assert run.data.tags["odd_name_"] == "v"
    assert tracker.last_step(run_id, "nothing") is None


def test_two_processes_that_create_an_experiment_at_once_share_it(uri):
    tracker = Tracker(uri, "x")
    create, made = tracker._client.create_experiment, []

    def late(*given, **options):
        made.append(Tracker(uri, "x").experiment_id)
        return create(*given, **options)

    tracker._client.create_experiment = late
    assert [tracker.experiment_id] == made


def test_names_are_made_acceptable():
    assert tracking_name("best/val acc.1-2_3:é?") == "best/val acc.1-2_3_é_"


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db"])
def test_an_mlflow_that_is_not_there_is_one_clear_line(address):
    with pytest.raises(TrackingUnavailableError, match=r"MLflow must be reachable and writable at .*check the address"):
        check_tracking(address)
    with pytest.raises(TrackingUnavailableError, match=r"MLflow must be reachable"):
        Tracker(address)
    with pytest.raises(TrackingUnavailableError, match=r"MLflow must be reachable"):
        TrackingLogger(tracking_uri=address)


def test_looking_whether_mlflow_can_be_written_leaves_no_trace(tmp_path):
    check_tracking(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert (tmp_path / "new" / "mlflow.db").stat().st_size == 0


def fit(logger, tmp_path):
    import lightning
    from torch.utils.data import DataLoader

    class Line(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.save_hyperparameters({"space": {"widths": list(range(400))}, "lr": 0.1, "_instantiator": "x"})

        def training_step(self, batch, _):
            loss = self.layer(batch).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(Line(), DataLoader(torch.ones(4, 1)))
    return trainer


def test_a_fit_is_logged_whole_and_continued(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = TrackingLogger(
        "fits", tracking_uri=uri, run_name="first", tags={"who": "me"}, save_dir=str(tmp_path / "runs")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = fit(logger, tmp_path)
    client = MlflowClient(uri)
    run = client.get_run(logger.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.tags["nas.kind"] == "fit"
    assert run.data.tags["who"] == "me"
    assert run.data.params == {"hp/lr": "0.1", "hp/space/widths": "see hyperparameters.json"}
    kept = client.download_artifacts(logger.run_id, "hyperparameters.json", str(tmp_path))
    assert json.loads(Path(kept).read_text())["space/widths"] == str(list(range(400)))
    assert len(client.get_metric_history(logger.run_id, "loss")) == 4
    assert Path(trainer.checkpoint_callback.best_model_path).is_relative_to(tmp_path / "runs")
    assert str(trainer.log_dir) == str(tmp_path / "runs")
    assert kept
    assert "mlartifacts/fits" in run.info.artifact_uri
    logger.experiment.log_text(logger.run_id, "seed: 1", "config.yaml")
    again = TrackingLogger("fits", tracking_uri=uri, run_id=logger.run_id)
    again.log_hyperparams({"lr": 0.2, "momentum": 0.9})
    params = client.get_run(logger.run_id).data.params
    assert (params["hp/lr"], params["hp/momentum"]) == ("0.1", "0.9")


def test_system_metrics_are_logged_where_asked(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    assert not TrackingLogger("fits", tracking_uri=uri).system_metrics
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    logger = TrackingLogger("fits", tracking_uri=uri, save_dir=str(tmp_path / "runs"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.log_hyperparams({"lr": 0.1})
        client, end = MlflowClient(uri), time.monotonic() + 60
        while not any(name.startswith("system/cpu") for name in client.get_run(logger.run_id).data.metrics):
            assert time.monotonic() < end
            time.sleep(0.1)
        logger.finalize("success")
    assert not [thread for thread in threading.enumerate() if "SystemMetrics" in thread.name]


def test_versions_are_found_by_their_tags(uri, files):
    tracker = Tracker(uri, "versions")
    for number, weights in enumerate(("a", "b", "a")):
        tags = {"nas.weights": weights, "number": str(number)}
        tracker.register_folder(files, "net", tags=tags, description=f"number {number}")
    assert tracker.version_tags("net", {"nas.weights": "a"})["number"] == "2"
    assert tracker.version_tags("net", {"nas.weights": "b"})["number"] == "1"
    assert tracker.version_tags("net", {"nas.weights": "c"}) == {}
    assert MlflowClient(uri, uri).get_model_version("net", "2").description == "number 1"
