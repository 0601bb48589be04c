import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials import (
    Limit,
    Measurement,
    Metric,
    Outcome,
    StudyMismatchError,
    StudySpec,
    Trial,
    TrialState,
    parse_limits,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
measurements = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.builds(Measurement, finite, st.text(max_size=3), st.sampled_from(["minimize", "maximize"])),
    max_size=3,
)
trials = st.builds(
    Trial,
    number=st.integers(0, 10**6),
    architecture=st.dictionaries(st.text(max_size=5), st.booleans() | st.integers() | finite | st.text(max_size=4)),
    arch_id=st.text("0123456789abcdef", min_size=16, max_size=16),
    state=st.sampled_from(TrialState),
    measurements=measurements,
    seed=st.integers(0, 2**63 - 1),
    started=finite,
    finished=st.none() | finite,
    provenance=st.dictionaries(st.text(max_size=4), st.text(max_size=4)),
    error=st.none() | st.text(),
    attempt=st.integers(0, 3),
    worker=st.text(max_size=10),
)


@given(trials)
def test_a_trial_survives_json_pickling_and_copying(trial):
    assert Trial.from_json(trial.to_json()) == trial
    assert pickle.loads(pickle.dumps(trial)) == trial
    assert copy.deepcopy(trial) == trial
    assert json.loads(trial.to_json())["format_version"] == 1


@given(measurements, st.sampled_from([TrialState.COMPLETE, TrialState.INFEASIBLE, TrialState.FAILED]))
def test_an_outcome_survives_json(values, state):
    outcome = Outcome(state=state, measurements=values, provenance={"weights": "abc"}, error=None, finished=2.5)
    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome


def a_trial(**changes):
    values = {"number": 3, "architecture": {"width": 8}, "arch_id": "a" * 16, "state": TrialState.RUNNING}
    return Trial(**{**values, **changes})


def test_a_trial_does_not_change_with_what_it_was_made_from():
    architecture = {"width": 8}
    trial = a_trial(architecture=architecture)
    architecture["width"] = 16
    assert trial.architecture["width"] == 8
    with pytest.raises(TypeError):
        trial.architecture["width"] = 16
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(trial)).architecture["width"] = 16


def test_an_outcome_finishes_its_trial_and_adds_provenance():
    trial = a_trial(provenance={"weights": "old", "run": "r1"})
    value = Measurement(0.5, "1", "maximize")
    outcome = Outcome(
        state=TrialState.COMPLETE, measurements={"accuracy": value}, provenance={"weights": "new"}, finished=9.0
    )
    done = trial.with_outcome(outcome)
    assert done.state is TrialState.COMPLETE
    assert done.value("accuracy") == 0.5
    assert done.finished == 9.0
    assert done.provenance == {"weights": "new", "run": "r1"}
    assert trial.state is TrialState.RUNNING


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_measurement_is_never_infinite(value):
    with pytest.raises(ValueError, match=r"must be finite, got .*finish the trial as FAILED or INFEASIBLE"):
        Measurement(value, "1", "maximize")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Metric("", "1", "maximize"), ValueError, "name of a metric must not be empty"),
        (
            lambda: Metric("a", "1", "up"),
            ValueError,
            "direction of metric 'a' must be 'minimize' or 'maximize', got 'up'",
        ),
        (lambda: Outcome(state="RUNNING"), ValueError, "must be COMPLETE, INFEASIBLE or FAILED, got RUNNING"),
        (lambda: a_trial().value("x"), KeyError, r"trial 3 \(RUNNING\) has no measurement 'x'; it has: none"),
        (lambda: Trial.from_json("[]"), ValueError, "a trial must be a JSON object, got list"),
        (lambda: Trial.from_json("{}"), ValueError, "format_version of a trial must be 1, got None"),
        (
            lambda: Trial.from_dict({**a_trial().to_dict(), "colour": 1}),
            ValueError,
            r"missing \[\], unknown \['colour'\]",
        ),
    ],
)
def test_bad_records_are_refused_with_the_reason(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_limits_are_parsed_in_order_and_measure_their_violation():
    limits = parse_limits({"max_params": "2e4", "min_accuracy": 0.9, "max_latency_ms": 3})
    assert limits == (Limit("params", 20000.0, "max"), Limit("accuracy", 0.9, "min"), Limit("latency_ms", 3.0, "max"))
    assert [limit.key for limit in limits] == ["max_params", "min_accuracy", "max_latency_ms"]
    assert limits[0].violation(20500) == 500
    assert limits[1].violation(0.8) == pytest.approx(0.1)
    assert limits[0].holds(20000)
    assert not limits[0].holds(float("nan"))


@pytest.mark.parametrize(
    ("given_limits", "message"),
    [
        ({"params": 3}, "must be named max_<metric> or min_<metric>, got 'params'"),
        ({"max_": 3}, "must be named max_<metric>"),
        ({"max_params": "many"}, "max_params must be a number, got 'many'"),
        ({"max_params": True}, "max_params must be a number, got True"),
        ({"max_params": None}, "max_params must be a number, got None"),
        ({"max_params": float("inf")}, "bound of max_params must be finite, got inf"),
        ({"max_params": 1, "min_params": 2}, "min_params must not exceed max_params, got 2 > 1"),
    ],
)
def test_bad_limits_are_refused_with_the_reason(given_limits, message):
    with pytest.raises(ValueError, match=message):
        parse_limits(given_limits)


def test_a_limit_must_be_made_of_known_parts():
    with pytest.raises(ValueError, match="metric of a limit must not be empty"):
        Limit("", 1.0, "max")
    with pytest.raises(ValueError, match="must be 'max' or 'min', got 'about'"):
        Limit("params", 1.0, "about")


def test_a_study_of_another_space_is_told_in_six_differences():
    def spec(first):
        metric = Metric("accuracy", "fraction", "maximize")
        return StudySpec("s", (metric,), {f"c{i}": (first, 9) for i in range(20)}, space_digest="0")

    with pytest.raises(StudyMismatchError) as refused:
        spec(1).check_same(spec(2))
    assert "choice c5: stored (1, 9), asked for (2, 9); and 14 more); use another study name" in str(refused.value)
