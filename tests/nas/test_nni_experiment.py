import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from nas.nni_experiment import _KEEPER, nni_portal, write_nni_experiment
from trials import Limit, Measurement, Metric, StudySpec, Trial, TrialState

SPEC = StudySpec(
    name="digits.v2",
    objectives=(Metric("accuracy", "fraction", "maximize"), Metric("params", "1", "minimize")),
    choices={"width": (8, 16), "act": ("relu", "gelu")},
    space_digest="0" * 16,
    limits=(Limit("params", 150.0, "max"),),
)


def trial(number, state=TrialState.COMPLETE, error=None, **values):
    units = {"accuracy": ("fraction", "maximize"), "params": ("1", "minimize")}
    return Trial(
        number=number,
        architecture={"width": 8 if number % 2 else 16, "act": "relu"},
        arch_id=f"{number:016x}",
        state=state,
        measurements={name: Measurement(value, *units[name]) for name, value in values.items()},
        started=1000.0 + number,
        finished=1000.5 + number if state.finished else None,
        error=error,
    )


TRIALS = (
    trial(0, accuracy=0.9, params=100.0),
    trial(1, TrialState.INFEASIBLE, params=200.0),
    trial(2, TrialState.FAILED, error="out of memory"),
    trial(3, TrialState.RUNNING),
    trial(5, accuracy=0.95, params=120.0),
)


def managers(folder):
    """Processes that were started over ``folder``."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or [])]


def all_end(folder):
    """Wait until there is none of them any more: who has been told to end may still need a moment."""
    deadline = time.monotonic() + 200
    while managers(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_portal_shows_the_trials_and_leaves_no_process_and_no_file_elsewhere(tmp_path, monkeypatch):
    home, folder = tmp_path / "home", tmp_path / "experiments"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    name = write_nni_experiment(SPEC, TRIALS, folder)
    assert name == "digits_v2"
    with nni_portal(folder, name, port=0) as address:

        def get(path):
            with urllib.request.urlopen(f"{address}{path}") as response:
                return response.read()

        jobs = {job["trialJobId"]: job for job in json.loads(get("/api/v1/nni/trial-jobs"))}
        profile = json.loads(get("/api/v1/nni/experiment"))
        listed = json.loads(get("/api/v1/nni/experiment-metadata"))  # without it the pages stay empty
        page = get("/")
        assert managers(folder)
    assert {name: job["status"] for name, job in jobs.items()} == {
        "t0000": "SUCCEEDED",
        "t0001": "EARLY_STOPPED",
        "t0002": "FAILED",
        "t0003": "RUNNING",
        "t0005": "SUCCEEDED",
    }
    final = json.loads(json.loads(jobs["t0005"]["finalMetricData"][0]["data"]))
    assert final == {"default": 0.95, "accuracy": 0.95, "params": 120.0}
    assert json.loads(jobs["t0005"]["hyperParameters"][0])["parameters"] == {"width": 8, "act": "relu"}
    assert jobs["t0002"]["message"] == "out of memory"
    assert (jobs["t0000"]["startTime"], jobs["t0000"]["endTime"]) == (1_000_000, 1_000_500)
    assert profile["params"]["searchSpace"]["width"] == {"_type": "choice", "_value": [8, 16]}
    assert profile["params"]["tuner"]["classArgs"] == {"optimize_mode": "maximize"}
    assert listed["id"] == "digits_v2"
    assert b"<!doctype html>" in page
    all_end(folder)
    assert list(home.iterdir()) == []


KILLED = """
import sys
from nas.nni_experiment import nni_portal
with nni_portal(sys.argv[1], sys.argv[2], port=0):
    print("up", flush=True)
    sys.stdin.read()
"""


def test_the_manager_ends_when_its_owner_is_killed(tmp_path):
    name = write_nni_experiment(SPEC, TRIALS, tmp_path)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path), name]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"up\n"
        found = managers(tmp_path)
        os.kill(owner.pid, signal.SIGKILL)
    assert len(found) >= 2
    all_end(tmp_path)


def test_once_the_manager_has_ended_nothing_waits_to_end_what_has_its_number(tmp_path):
    command = ["sh", "-c", _KEEPER, "sh", "sh", "-c", "exit 7", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as keeper:
        assert keeper.wait() == 7
        all_end(tmp_path)


def test_what_cannot_be_shown_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="has no experiment 'absent'; write one with write_nni_experiment"):
        nni_portal(tmp_path, "absent").__enter__()
    name = write_nni_experiment(SPEC, TRIALS, tmp_path)
    with pytest.raises(FileExistsError, match=r"digits_v2 exists; remove it or name another"):
        write_nni_experiment(SPEC, (), tmp_path)
    with nni_portal(tmp_path, name, port=0) as address:
        port = int(address.rpartition(":")[2])
        with pytest.raises(RuntimeError, match=f"port {port} must be free, and it is taken"):
            nni_portal(tmp_path, name, port=port).__enter__()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"this installation has none; install nni==3.0 from a wheel"):
        nni_portal(tmp_path, name).__enter__()
