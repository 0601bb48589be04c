import json
import os
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from mlflow import MlflowClient
from processes import has_ended, until
from studies import arch_id, architectures, begin, complete, outcome, spec

from trials import (
    Measurement,
    Mirror,
    Outcome,
    Tracker,
    TrackingUnavailableError,
    TrialState,
    TrialStore,
    hypervolume,
    mirror_study,
)
from trials.tracking import Point

pytestmark = pytest.mark.filterwarnings("ignore")  # those of MLflow and its layers are theirs

EXPERIMENT = "weightloom"


@pytest.fixture
def uri(empty_mlflow, tmp_path):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine needs its time to begin a mirror."""
    monkeypatch.setattr(Mirror.close, "__defaults__", (250.0,))


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "s.journal")


def runs(uri, kind="trial"):
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = client.search_runs([experiment.experiment_id], f"tags.`nas.kind` = '{kind}'") if experiment else []
    return sorted(found, key=lambda run: int(run.data.tags.get("nas.trial", "/0").rpartition("/")[2]))


def states(uri):
    return [(run.info.status, run.data.tags["nas.state"]) for run in runs(uri)]


def a_mixed_study(url, runs_folder):
    with TrialStore(url, spec(), runs=runs_folder) as store:
        for architecture in architectures()[:11]:
            complete(store, architecture)
        complete(store, {"width": 32, "depth": 2})
        failing = begin(store, architectures()[11])
        store.finish(failing.with_outcome(Outcome(state=TrialState.FAILED, error="Traceback: no such width")))
    return store


def test_the_record_shows_every_trial_once_however_often_it_is_written(url, uri, tmp_path):
    store = a_mixed_study(url, tmp_path)
    first = mirror_study(url, "study", uri, EXPERIMENT, once=True)
    again = mirror_study(url, "study", uri, EXPERIMENT, once=True)
    assert first.complete
    assert again == first
    children = runs(uri)
    assert [run.data.tags["nas.trial"] for run in children] == [f"study/{number}" for number in range(13)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {first.run_id}
    assert states(uri) == [("FINISHED", "COMPLETE")] * 11 + [("FINISHED", "INFEASIBLE"), ("FAILED", "FAILED")]
    child, trial = children[5], store.get(5)
    assert child.data.params["arch/operation"] == trial.architecture["operation"]
    assert child.data.params["trial/seed"] == "1"
    assert child.data.metrics == {
        "accuracy": trial.value("accuracy"),
        "params": trial.value("params"),
        "choice/operation": 1.0,
        "choice/bias": 1.0,
    }
    assert child.data.tags["nas.arch_id"] == arch_id(trial.architecture)
    assert child.data.tags["nas.provenance.weights"] == "w1"
    assert child.info.start_time == int(trial.started * 1000)
    assert child.info.end_time == int(trial.finished * 1000)
    assert children[12].data.metrics == {"choice/operation": 0.0, "choice/bias": 1.0}
    assert children[12].data.tags["nas.error"] == "Traceback: no such width"


def test_the_parent_shows_progress_over_trials_and_how_to_continue(url, uri, tmp_path):
    store = a_mixed_study(url, tmp_path)
    with TrialStore(url, spec(), runs=tmp_path) as screening:
        screened = {"width": 32, "depth": 1}
        costs = Outcome(state=TrialState.INFEASIBLE, measurements={"params": Measurement(1e6, "1", "minimize")})
        screening.record(screened, arch_id(screened), costs, seed=1)
    report = mirror_study(url, "study", uri, EXPERIMENT, once=True)
    client = MlflowClient(uri)
    parent = client.get_run(report.run_id)
    assert parent.info.status == "FINISHED"
    assert "Continue with\n\n```\nnas search -c x.yaml\n```" in parent.data.tags["mlflow.note.content"]
    assert parent.data.params["objective/accuracy"] == "maximize [1]"
    assert parent.data.params["limit/max_params"] == "100"
    assert parent.data.params["space/width"] == "[8, 16, 32]"
    best = client.get_metric_history(report.run_id, "best/accuracy")
    measured = [trial.value("accuracy") for trial in store.trials()[:11]]
    assert [entry.step for entry in best] == list(range(14))
    assert [entry.value for entry in best[:11]] == [max(measured[: count + 1]) for count in range(11)]
    assert [entry.value for entry in client.get_metric_history(report.run_id, "evaluations")] == [*range(1, 14), 13]
    assert parent.data.metrics["feasible_fraction"] == pytest.approx(11 / 13)
    volumes = client.get_metric_history(report.run_id, "hypervolume")
    first_ten = [[trial.value("accuracy"), trial.value("params")] for trial in store.trials()[:10]]
    worst = [min(a for a, _ in first_ten), max(p for _, p in first_ten)]
    span = [max(a for a, _ in first_ten) - worst[0], worst[1] - min(p for _, p in first_ten)]
    reference = [worst[0] - 0.1 * span[0], worst[1] + 0.1 * span[1]]
    assert volumes[0].step == 9
    assert volumes[0].value == pytest.approx(hypervolume(first_ten, reference, ["maximize", "minimize"]))


def test_no_infinite_value_reaches_mlflow(uri):
    tracker = Tracker(uri, EXPERIMENT)
    run_id = tracker.start_run("r", tags={})
    tracker.log(run_id, points=[Point(name, float(name), 1.0) for name in ("inf", "-inf", "nan", "2")])
    assert MlflowClient(uri).get_run(run_id).data.metrics == {"2": 2.0}


def test_half_written_and_doubled_children_are_mended(url, uri, tmp_path):
    a_mixed_study(url, tmp_path)
    report = mirror_study(url, "study", uri, EXPERIMENT, once=True)
    client = MlflowClient(uri)
    client.update_run(runs(uri)[2].info.run_id, status="RUNNING")
    tags = {"nas.kind": "trial", "nas.trial": "study/4", "nas.state": "RUNNING", "mlflow.parentRunId": report.run_id}
    client.create_run(runs(uri)[0].info.experiment_id, tags=tags)
    mirror_study(url, "study", uri, EXPERIMENT, once=True)
    assert len(runs(uri)) == 13
    assert "RUNNING" not in {status for status, _ in states(uri)}


def test_a_live_search_is_followed_and_drained(url, uri, tmp_path):
    with TrialStore(url, spec(), runs=tmp_path) as store:
        with Mirror(url, "study", tracking_uri=uri, log=tmp_path / "mirror.log") as following:
            running = begin(store, architectures()[0])
            complete(store, architectures()[1])
            until(lambda: states(uri) == [("RUNNING", "RUNNING"), ("FINISHED", "COMPLETE")])
            assert not mirror_study(url, "study", uri, EXPERIMENT, once=True).complete
            store.finish(running.with_outcome(outcome(architectures()[0])))
            left = begin(store, architectures()[2])
        report = following.close()
    assert report.complete
    assert states(uri)[:2] == [("FINISHED", "COMPLETE")] * 2
    assert ("RUNNING", "RUNNING") not in states(uri)
    assert left.number == 2
    assert MlflowClient(uri).get_run(report.run_id).info.status == "FINISHED"


SEARCH = """
import sys
from studies import *
from trials import Mirror
url, runs, uri = sys.argv[1:]
store = TrialStore(url, spec(), runs=runs)
following = Mirror(url, "study", tracking_uri=uri)
complete(store, architectures()[0])
begin(store, architectures()[1])
print(following._process.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_search_leaves_no_running_run_and_is_continued(url, uri, tmp_path, here, root):
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{here}"}
    command = [sys.executable, "-c", SEARCH, url, str(tmp_path), uri]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as search:
        follower = psutil.Process(int(search.stdout.readline()))
        until(lambda: states(uri) == [("FINISHED", "COMPLETE"), ("RUNNING", "RUNNING")])
        search.kill()
    until(lambda: has_ended(follower))
    assert states(uri) == [("FINISHED", "COMPLETE"), ("KILLED", "LOST")]
    parents = runs(uri, "search")
    assert [run.info.status for run in parents] == ["KILLED"]
    with TrialStore(url, spec(), runs=tmp_path) as store:
        complete(store, dict(store.interrupted()[0].architecture))
    report = mirror_study(url, "study", uri, EXPERIMENT, once=True)
    assert report.run_id == parents[0].info.run_id
    assert states(uri) == [("FINISHED", "COMPLETE"), ("KILLED", "LOST"), ("FINISHED", "COMPLETE")]
    assert [run.info.status for run in runs(uri, "search")] == ["FINISHED"]


def test_mlflow_away_costs_nothing_and_is_made_up_for(url, uri, tmp_path):
    (tmp_path / "away").write_text("not a database, nor a folder")
    with TrialStore(url, spec(), runs=tmp_path) as store:
        following = Mirror(url, "study", tracking_uri=f"sqlite:///{tmp_path}/away/mlflow.db")
        for architecture in architectures()[:3]:
            complete(store, architecture)
        report = following.close()
    assert not report.complete
    assert "MLflow must be reachable and writable" in report.reason
    assert mirror_study(url, "study", uri, EXPERIMENT, once=True).complete
    assert states(uri) == [("FINISHED", "COMPLETE")] * 3


def test_asking_for_the_record_alone_says_why_it_cannot_be_written(url, tmp_path):
    a_mixed_study(url, tmp_path)
    (tmp_path / "mlflow.db").write_text("this is not a database " * 100)
    with pytest.raises(TrackingUnavailableError, match=r"reachable and writable at sqlite.*file is not a database"):
        mirror_study(url, "study", f"sqlite:///{tmp_path}/mlflow.db", EXPERIMENT, once=True)


def test_a_mirror_that_cannot_start_says_so(url, tmp_path):
    report = Mirror(url, "study", tracking_uri=f"sqlite:///{tmp_path}/m.db").close()
    assert not report.complete
    assert "s.journal does not exist" in report.reason


def test_of_two_mirrors_one_writes_and_the_other_takes_over(url, uri, tmp_path):
    with TrialStore(url, spec(), runs=tmp_path) as store:
        first = Mirror(url, "study", tracking_uri=uri)
        complete(store, architectures()[0])
        until(lambda: len(states(uri)) == 1)
        second = Mirror(url, "study", tracking_uri=uri)
        complete(store, architectures()[1])
        assert first.close().complete
        complete(store, architectures()[2])
        until(lambda: len(states(uri)) == 3)
        assert second.close().complete
    assert states(uri) == [("FINISHED", "COMPLETE")] * 3
    assert len(runs(uri, "search")) == 1


def test_a_rival_that_wrote_at_the_same_time_is_seen_before_anything_is_written(url, uri, tmp_path, monkeypatch):
    store = a_mixed_study(url, tmp_path)

    def slow(*given):
        store.set_note("mirror", f"elsewhere:1:0.00|{time.time()}")
        return Tracker(*given)

    monkeypatch.setattr("trials.mirror.Tracker", slow)
    report = mirror_study(url, "study", uri, EXPERIMENT, once=True)
    assert (report.complete, report.reason) == (
        False,
        "process elsewhere:1:0.00 is writing the record of study 'study'",
    )
    assert runs(uri, "search") == []


def test_a_slow_mirror_is_stopped_in_time(url, uri, tmp_path):
    a_mixed_study(url, tmp_path)
    following = Mirror(url, "study", tracking_uri=uri)
    report = following.close(timeout=0.05)
    assert (report.complete, report.reason) == (False, "MLflow did not take everything within 0.05 s")
    assert following.close() == report


def test_measurements_carry_their_unit(url, uri, tmp_path):
    with TrialStore(url, spec(), runs=tmp_path) as store:
        latency = Measurement(1.5, "ms", "minimize")
        result = outcome(architectures()[0])
        complete(store, architectures()[0], measurements={**result.measurements, "latency": latency})
    mirror_study(url, "study", uri, EXPERIMENT, once=True)
    assert runs(uri)[0].data.tags["nas.unit.latency"] == "ms"
    assert json.loads(runs(uri, "search")[0].data.params["space/bias"]) == [False, True]
