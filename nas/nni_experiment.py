"""A study as an experiment of NNI 3.0, in a folder, and NNI's web portal over it."""

import importlib.util
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from trials import StudySpec, Trial, TrialState

__all__ = ["nni_portal", "write_nni_experiment"]

_PATIENCE = 60.0  # seconds
_TABLES = """
create table TrialJobEvent (
    timestamp integer, trialJobId text, event text, data text, logPath text, sequenceId integer, message text,
    environmentId text);
create index TrialJobEvent_trialJobId on TrialJobEvent(trialJobId);
create index TrialJobEvent_event on TrialJobEvent(event);
create table MetricData (
    timestamp integer, trialJobId text, parameterId text, type text, sequence integer, data text);
create index MetricData_trialJobId on MetricData(trialJobId);
create index MetricData_type on MetricData(type);
create table ExperimentProfile (
    params text, id text, execDuration integer, startTime integer, endTime integer, logDir text,
    nextSequenceId integer, revision integer);
create index ExperimentProfile_id on ExperimentProfile(id);
"""
# Starts a program and ends it when whoever holds the other end of standard input closes it or dies. Once it has ended
# by itself nothing is left, or that would end whatever has its number then.
_KEEPER = (
    'exec 3<&0; "$@" & child=$!; { cat <&3 >/dev/null; kill "$child"; } & watch=$!; '
    'wait "$child"; code=$?; kill "$watch" 2>/dev/null; exit "$code"'
)
_EVENTS = {TrialState.COMPLETE: "SUCCEEDED", TrialState.INFEASIBLE: "EARLY_STOPPED", TrialState.FAILED: "FAILED"}


def write_nni_experiment(spec: StudySpec, trials: Sequence[Trial], folder: str | Path) -> str:
    """Write a study as a finished experiment that NNI 3.0 can show and, by ``nnictl``, export.

    Complete trials are succeeded ones with all their measurements, the first objective as the default metric that NNI
    ranks by; infeasible ones are stopped early, failed ones failed with the reason. NNI knows no limits.

    Args:
        spec: the question of the study.
        trials: of the study, e.g. ``TrialStore.load(storage, name).trials()``.
        folder: NNI's folder of experiments; the experiment is a new folder in it.

    Returns:
        The identifier of the experiment, the study's name with what NNI does not allow replaced.

    Raises:
        FileExistsError: the folder has an experiment of that name; nothing has been written.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", spec.name)[:32]
    home = Path(folder).absolute() / name
    if home.exists():
        raise FileExistsError(f"the experiment needs a folder of its own, and {home} exists; remove it or name another")
    (home / "db").mkdir(parents=True)
    times = [moment for trial in trials for moment in (trial.started, trial.finished) if moment is not None]
    start, end = (_milliseconds(pick(times, default=0.0)) for pick in (min, max))
    profile = (json.dumps(_profile(spec, len(trials), home.parent)), name, (end - start) // 1000, start, end, str(home))
    with closing(sqlite3.connect(home / "db" / "nni.sqlite")) as database, database:
        database.executescript(_TABLES)
        database.execute("insert into ExperimentProfile values (?,?,?,?,?,?,?,?)", (*profile, len(trials), 1))
        for index, trial in enumerate(sorted(trials, key=lambda item: item.number)):
            _insert(database, index, trial, spec)
    return name


@contextmanager
def nni_portal(folder: str | Path, name: str, *, port: int = 8080) -> Iterator[str]:
    """Run NNI's manager over an experiment that :func:`write_nni_experiment` wrote; it ends with the ``with`` block.

    The manager also ends when this process dies. It writes below ``folder`` only. It listens on every network
    interface without a password, and only reads the experiment.

    Args:
        folder: that the experiment was written to.
        name: identifier of the experiment.
        port: of the portal; 0 takes a free one.

    Yields:
        The address of the portal.

    Raises:
        FileNotFoundError: there is no such experiment, or this installation of NNI has no manager.
        RuntimeError: the port is taken, or the manager does not start.
    """
    root = Path(folder).absolute()
    if not (root / name / "db" / "nni.sqlite").is_file():
        raise FileNotFoundError(f"{root} has no experiment {name!r}; write one with write_nni_experiment")
    spec = importlib.util.find_spec("nni_node")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    if not places or not (places[0] / "node").is_file():
        raise FileNotFoundError(
            "NNI's manager is part of its wheels for Linux and macOS, and this installation has none; install nni==3.0 "
            "from a wheel"
        )
    port = _free(port)
    address = f"http://localhost:{port}"
    options = {
        "port": port,
        "experiment-id": name,
        "action": "view",
        "experiments-directory": root,
        "log-level": "warning",
        "python-interpreter": sys.executable,
        "mode": "local",
    }
    command = [str(places[0] / "node"), str(places[0] / "main.js")]
    command += [text for option, value in options.items() for text in (f"--{option}", str(value))]
    log = root / name / "log" / "manager.log"
    log.parent.mkdir(exist_ok=True)
    _register(root, name, port)
    with (
        log.open("wb") as output,
        subprocess.Popen(
            ["sh", "-c", _KEEPER, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=places[0],
            env=os.environ | {"HOME": str(root / name)},
            start_new_session=True,
        ) as keeper,
    ):
        try:
            _await(keeper, address, log)
            _request(address, "POST")
            yield address
        finally:
            with suppress(OSError):
                _request(address, "DELETE")
            assert keeper.stdin is not None  # noqa: S101 - it is a pipe
            keeper.stdin.close()
            try:
                keeper.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(keeper.pid, signal.SIGKILL)


def _register(root: Path, name: str, port: int) -> None:
    """Write NNI's list of experiments, which it keeps in the home folder, into the folder of this one."""
    entry = {
        "id": name,
        "port": port,
        "startTime": _milliseconds(time.time()),
        "endTime": "N/A",
        "status": "INITIALIZED",
        "platform": "local",
        "experimentName": name,
        "tag": [],
        "pid": os.getpid(),
        "webuiUrl": [],
        "logDir": str(root),
        "prefixUrl": None,
    }
    place = root / name / "nni-experiments"
    place.mkdir(exist_ok=True)
    (place / ".experiment").write_text(json.dumps({name: entry}))


def _milliseconds(seconds: float | None) -> int:
    return int(1000 * (seconds or 0.0))


def _profile(spec: StudySpec, trials: int, folder: Path) -> dict[str, Any]:
    """Return the configuration that NNI keeps with an experiment; nothing in it is ever run."""
    command = {"trialCommand": "none", "trialCodeDirectory": "."}
    return {
        "experimentName": spec.name,
        "experimentType": "hpo",
        "searchSpace": {
            name: {"_type": "choice", "_value": list(candidates)} for name, candidates in spec.choices.items()
        },
        "trialConcurrency": 1,
        "maxTrialNumber": max(1, trials),
        "useAnnotation": False,
        "debug": False,
        "logLevel": "warning",
        "experimentWorkingDirectory": str(folder),
        "tuner": {"name": "Customized", "classArgs": {"optimize_mode": spec.objectives[0].direction}},
        "trainingService": {"platform": "local", **command},
        **command,
    }


def _insert(database: sqlite3.Connection, index: int, trial: Trial, spec: StudySpec) -> None:
    job = f"t{trial.number:04d}"
    parameters = {
        "parameter_id": index,
        "parameter_source": "algorithm",
        "parameters": dict(trial.architecture),
        "parameter_index": 0,
    }
    events = [("WAITING", trial.started, json.dumps(parameters)), ("RUNNING", trial.started, None)]
    if trial.state.finished:
        events.append((_EVENTS[trial.state], trial.finished or trial.started, None))
    for event, moment, data in events:
        row = (_milliseconds(moment), job, event, data, None, index, trial.error, None)
        database.execute("insert into TrialJobEvent values (?,?,?,?,?,?,?,?)", row)
    if trial.state is TrialState.COMPLETE:
        values = {name: item.value for name, item in trial.measurements.items()}
        final = json.dumps({"default": trial.value(spec.objectives[0].name)} | values)
        metric = (_milliseconds(trial.finished), job, str(index), "FINAL", 0, json.dumps(final))
        database.execute("insert into MetricData values (?,?,?,?,?,?)", metric)


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RuntimeError(f"port {port} must be free, and it is taken ({error}); give another, or 0") from error
        return int(probe.getsockname()[1])


def _request(address: str, method: str, path: str = "/experiment") -> bytes:
    data = b"{}" if method == "POST" else None
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/api/v1/nni{path}", data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
        body: bytes = response.read()
        return body


def _await(keeper: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            _request(address, "GET", "/check-status")
            return
        except OSError as error:
            if keeper.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(
                    f"NNI's manager does not answer at {address} ({error}); {log} says: {text}"
                ) from error
            time.sleep(0.05)
