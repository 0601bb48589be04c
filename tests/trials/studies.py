"""Small studies for tests, and the searches that other processes run on them."""

import hashlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

from trials import Limit, Measurement, Metric, Outcome, StudySpec, TrialState, TrialStore

CHOICES = {"width": (8, 16, 32), "operation": ("conv", "pool"), "depth": (1, 2), "bias": (False, True)}
ACCURACY = Metric("accuracy", "1", "maximize")
PARAMS = Metric("params", "1", "minimize")


def spec(name="study", **changes):
    values = {
        "objectives": (ACCURACY, PARAMS),
        "choices": CHOICES,
        "space_digest": "d1",
        "limits": (Limit("params", 100.0, "max"),),
        "metadata": {"continue": "nas search -c x.yaml"},
    }
    return StudySpec(name, **{**values, **changes})


def architectures():
    """Every architecture of the space, in one order."""
    return [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]


def arch_id(architecture):
    return hashlib.sha256(json.dumps(dict(architecture), sort_keys=True).encode()).hexdigest()[:16]


def outcome(architecture, **changes):
    params = architecture["width"] * architecture["depth"] * 2.0
    values = {
        "state": TrialState.COMPLETE,
        "measurements": {
            "accuracy": Measurement(1 - 1 / params, "1", "maximize"),
            "params": Measurement(params, "1", "minimize"),
        },
        "provenance": {"weights": "w1"},
    }
    return Outcome(**{**values, **changes})


def begin(store, architecture, **changes):
    return store.begin(architecture, arch_id(architecture), **{"seed": 1, **changes})


def complete(store, architecture, **changes):
    trial = begin(store, architecture)
    return trial and store.finish(trial.with_outcome(outcome(architecture, **changes)))


STEPS = ("asked", "begun", "evaluated", "recorded", "stored")


def search(url, runs, *, most=None, dies_at=None, at_trial=0, log=None, reverse=False):
    """Evaluate the whole space by the protocol; die by SIGKILL at a step of a trial."""

    def step(name, count):
        if name == dies_at and count == at_trial:
            os.kill(os.getpid(), signal.SIGKILL)

    with TrialStore(url, spec(), runs=runs) as store:
        waiting = [dict(trial.architecture) for trial in store.interrupted()] + architectures()
        count = 0
        for architecture in reversed(waiting) if reverse else waiting:
            if most is not None and count >= most:
                return
            step("asked", count)
            trial = begin(store, architecture)
            if trial is None:
                continue
            step("begun", count)
            result = outcome(architecture)
            if log is not None:
                with open(log, "a") as file:
                    file.write(f"{trial.arch_id}\n")
            step("evaluated", count)
            store.outcomes.write(trial.number, result)
            step("recorded", count)
            store.finish(trial.with_outcome(result))
            step("stored", count)
            count += 1


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    ready = arguments.pop("ready", None)
    if ready:
        Path(ready).touch()
        while not Path(ready).with_name("go").exists():
            time.sleep(0.001)
    search(**arguments)
