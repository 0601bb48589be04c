"""Reports say what the trials say, in every form, for any number of objectives."""

import csv
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nas.report import write_report
from nas.reporting import summarise
from nas.reporting.page import page
from nas.reporting.panels import Ink, panels
from trials import Limit, Measurement, Metric, StudySpec, Trial, TrialState, hypervolume, non_dominated

METRICS = (
    Metric("accuracy", "fraction", "maximize"),
    Metric("params", "1", "minimize"),
    Metric("latency", "ms", "minimize"),
    Metric("loss", "nats", "minimize"),
)
CHOICES = {"depth": (1, 2), "layer1.width": (8, 16), "op": ("conv", "sep<3>"), "se": (False, True)}


def spec(objectives: int = 2, **more) -> StudySpec:
    return StudySpec("digits", METRICS[:objectives], CHOICES, "0" * 16, limits=(Limit("params", 900, "max"),), **more)


def trial(number: int, state: TrialState = TrialState.COMPLETE, error: str | None = None, **values: float) -> Trial:
    units = {metric.name: metric for metric in METRICS}
    architecture = {"depth": 1 + number % 2, "op": CHOICES["op"][number // 2 % 2], "se": number % 3 == 0}
    if architecture["depth"] == 2:
        architecture["layer1.width"] = 8 if number % 4 == 1 else 16
    return Trial(
        number=number,
        architecture=architecture,
        arch_id=f"{number:016x}",
        state=state,
        measurements={n: Measurement(v, units[n].unit, units[n].direction) for n, v in values.items()},
        seed=number + 7,
        started=1.7e9 + number,
        finished=None if state is TrialState.RUNNING else 1.7e9 + number + 0.25,
        provenance={"weights": "shared:abc"},
        error=error,
    )


def study() -> list[Trial]:
    rng = np.random.default_rng(0)
    done = [
        trial(n, accuracy=a, params=float(p), latency=t, loss=1 - a)
        for n, (a, p, t) in enumerate(zip(rng.random(12), rng.integers(20, 900, 12), rng.random(12), strict=True))
    ]
    return [
        *done,
        trial(12, TrialState.INFEASIBLE, params=1000.0),
        trial(13, TrialState.FAILED, "Traceback ...\nRuntimeError: <b>no</b>", params=500.0),
        trial(14, TrialState.RUNNING),
    ]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_trials_csv_holds_every_trial_exactly(tmp_path):
    trials = study()
    found = rows(write_report(spec(), trials[::-1], tmp_path)["trials.csv"])
    assert len(found) == len(trials)
    for row, expected in zip(found, trials, strict=True):
        assert int(row["number"]) == expected.number
        assert row["state"] == expected.state
        assert row["arch_id"] == expected.arch_id
        chosen = {name: row[f"arch/{name}"] for name in CHOICES if row[f"arch/{name}"]}
        assert chosen == {name: str(value) for name, value in expected.architecture.items()}
        measured = {m.name: float(row[f"metric/{m.name}"]) for m in METRICS if row[f"metric/{m.name}"]}
        assert measured == {name: item.value for name, item in expected.measurements.items()}
        assert int(row["seed"]) == expected.seed
        assert float(row["started"]) == expected.started
        assert (float(row["finished"]) if row["finished"] else None) == expected.finished
        assert row["error"] == (expected.error or "")
        assert json.loads(row["provenance"]) == {"weights": "shared:abc"}


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_front_holds_the_non_dominated_complete_trials_with_units(tmp_path, objectives):
    files = write_report(spec(objectives), study(), tmp_path)
    complete = [t for t in study() if t.state is TrialState.COMPLETE]
    metrics = METRICS[:objectives]
    points = [[t.value(m.name) for m in metrics] for t in complete]
    kept = non_dominated(points, [m.direction for m in metrics])
    expected = {t.number for t, keep in zip(complete, kept, strict=True) if keep}
    front = json.loads(files["front.json"].read_text())
    assert {entry["number"] for entry in front["front"]} == expected
    assert {int(row["number"]) for row in rows(files["front.csv"])} == expected
    for entry in front["front"]:
        source = complete[entry["number"]]
        assert entry["architecture"] == dict(source.architecture)
        assert entry["measurements"] == {name: item.to_dict() for name, item in source.measurements.items()}
    accuracies = [entry["measurements"]["accuracy"]["value"] for entry in front["front"]]
    assert accuracies == sorted(accuracies, reverse=True)
    with Image.open(files["pareto.png"]) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").resize((64, 64)).getcolors(64 * 64)) > 20


def test_of_equal_trials_the_first_is_on_the_front():
    trials = [trial(n, accuracy=0.9, params=100.0) for n in (3, 1, 2)]
    assert [t.number for t in summarise(spec(), trials).front] == [1]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), st.integers(1, 8), st.floats(0.1, 9)),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_hypervolume_never_falls_and_is_that_of_all_trials_so_far(values, objectives):
    trials = [trial(n, accuracy=a, params=float(p), latency=t) for n, (a, p, t) in enumerate(values)]
    summary = summarise(spec(objectives), trials)
    metrics = METRICS[:objectives]
    points = np.array([[t.value(m.name) for m in metrics] for t in trials])
    volumes = [entry.hypervolume for entry in summary.progress]
    assert volumes == sorted(volumes)
    expected = [
        hypervolume(points[: n + 1], summary.reference, [m.direction for m in metrics]) for n in range(len(trials))
    ]
    assert volumes == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert all(0 < entry.share <= 1 + 1e-9 for entry in summary.progress)


def test_reference_is_the_nadir_a_tenth_further_out_or_the_study_s_own():
    trials = [trial(0, accuracy=0.5, params=100.0), trial(1, accuracy=0.9, params=300.0)]
    assert summarise(spec(), trials).reference == pytest.approx((0.46, 320.0))
    # (0.04 + 0.4) x 20 for the large one, plus 0.04 x 200 for the small one alone
    assert summarise(spec(), trials).progress[-1].hypervolume == pytest.approx(0.44 * 20 + 0.04 * 200)
    assert summarise(spec(reference=(0.0, 1000.0)), trials).reference == (0.0, 1000.0)


def test_hypervolume_csv_starts_at_the_first_complete_trial(tmp_path):
    trials = [trial(0, TrialState.FAILED, "x"), trial(1, accuracy=0.5, params=9.0), trial(2, TrialState.FAILED, "x")]
    found = rows(write_report(spec(), trials, tmp_path)["hypervolume.csv"])
    assert [int(row["number"]) for row in found] == [1, 2]
    assert found[0]["hypervolume"] == found[1]["hypervolume"]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def tips(text: str) -> dict[str, str]:
    found = re.search(r'<script type="application/json" id="trials">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def drawn(text: str, key: str) -> ElementTree.Element:
    found = re.search(rf'<svg[^>]* id="{key}".*?</svg>', text, re.DOTALL)
    assert found is not None, key
    return ElementTree.fromstring(found[0])


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_page_is_self_contained_and_names_every_trial(objectives):
    text = page(summarise(spec(objectives), study()))
    assert len(text) < 200_000
    assert not re.search(r"https?://|\bsrc\s*=|<link\b|@import|\burl\(", text)
    assert "<b>no</b>" not in text
    assert "RuntimeError: &lt;b&gt;no&lt;/b&gt;" in text
    assert "max_params: 1,000 against 900" in text
    said = tips(text)
    assert said.keys() == {str(one.number) for one in study()}
    for one in study()[:12]:
        assert f"accuracy: {100 * one.value('accuracy'):.2f} %" in said[str(one.number)]
        assert f"se={one.architecture['se']}" in said[str(one.number)]
    for key in ("pareto", "hypervolume", "choices"):
        assert len(drawn(text, key)) > 10


def test_dots_lie_where_the_scales_say_and_carry_their_trial():
    summary = summarise(spec(), study())
    text = page(summary)
    dots = {
        dot.get("data-trial"): dot for dot in drawn(text, "pareto").iter("circle") if dot.get("data-trial") is not None
    }
    assert dots.keys() == {str(n) for n in range(14)}  # the running one has no cost to be drawn at
    done = study()[:12]
    (panel,) = panels(summary)
    for place, axis, sign in (("cx", panel.x, 1), ("cy", panel.y, -1)):
        name = "params" if place == "cx" else "accuracy"
        places = [float(dots[str(one.number)].get(place, "nan")) for one in done]
        values = [math.log(one.value(name)) if axis.log else one.value(name) for one in done]
        low, high = values.index(min(values)), values.index(max(values))
        assert sign * (places[high] - places[low]) > 100
        for value, found in zip(values, places, strict=True):
            share = (value - values[low]) / (values[high] - values[low])
            assert found == pytest.approx(places[low] + share * (places[high] - places[low]), abs=0.05)
    lowest = max(float(dots[str(n)].get("cy", "nan")) for n in range(12))
    assert float(dots["12"].get("cy", "nan")) > lowest  # no accuracy: apart, below the panel
    front = {int(number) for number, dot in dots.items() if "front" in dot.get("class", "")}
    assert front == {t.number for t in summarise(spec(), study()).front}


def test_parallel_lines_of_one_candidate_lie_side_by_side_the_best_highest():
    summary = summarise(spec(), study())
    lines = [path for path in drawn(page(summary), "choices").iter("path") if path.get("data-heights")]
    heights = {
        int(path.get("data-trial", "")): [float(h) for h in path.get("data-heights", "").split(",")] for path in lines
    }
    assert heights.keys() == set(range(12))
    axis = list(CHOICES).index("op")  # categorical, and every trial has it
    by_candidate: dict[object, list[tuple[float, float]]] = {}
    for one in study()[:12]:
        by_candidate.setdefault(one.architecture["op"], []).append((one.value("accuracy"), heights[one.number][axis]))
    bands = []
    for placed in by_candidate.values():
        ordered = [height for _, height in sorted(placed)]
        assert ordered == sorted(ordered, reverse=True)
        assert len(set(ordered)) == len(ordered)
        bands.append((min(ordered), max(ordered)))
    (_, upper), (lower, _) = sorted(bands)
    assert upper < lower


def test_best_trial_is_orange_and_drawn_on_top():
    summary = summarise(spec(), study())
    lines = [path for path in drawn(page(summary), "choices").iter("path") if path.get("data-heights")]
    assert lines[-1].get("data-trial") == str(summary.front[0].number)
    assert lines[-1].get("stroke") == Ink.FRONT


def test_a_large_study_stays_small_and_draws_its_best():
    rng = np.random.default_rng(0)
    trials = [trial(n, accuracy=float(a), params=float(n % 97)) for n, a in enumerate(rng.random(1500))]
    text = page(summarise(spec(), trials))
    lines = [path for path in drawn(text, "choices").iter("path") if path.get("data-heights")]
    shown = {int(path.get("data-trial", "")) for path in lines}
    assert len(shown) == 1000
    assert shown == {t.number for t in sorted(trials, key=lambda t: t.value("accuracy"))[500:]}


def test_equal_studies_give_equal_files(tmp_path):
    first = write_report(spec(3), study(), tmp_path / "a")
    second = write_report(spec(3), study()[::-1], tmp_path / "b")
    assert list(first) == [
        "pareto.html",
        "pareto.png",
        "front.csv",
        "trials.csv",
        "front.json",
        "hypervolume.csv",
    ]
    for name in first:
        assert first[name].read_bytes() == second[name].read_bytes()


@pytest.mark.parametrize(
    ("trials", "said"),
    [
        ([], "has no trials yet. Run `nas search`"),
        (study()[12:], "no COMPLETE trial (1 RUNNING, 1 INFEASIBLE, 1 FAILED)"),
        ([study()[12]], "Broken limits: max_params by 1."),
        ([study()[13]], "read the errors of the failed trials"),
    ],
)
def test_study_without_a_complete_trial_says_so(tmp_path, trials, said):
    assert said in summarise(spec(), trials).message
    files = write_report(spec(), trials, tmp_path)
    assert "has no " in files["pareto.html"].read_text()
    assert json.loads(files["front.json"].read_text())["front"] == []
    assert len(rows(files["trials.csv"])) == len(trials)
    with Image.open(files["pareto.png"]) as image:
        assert image.width > 500


def test_single_trial_and_constant_objectives_are_drawn(tmp_path):
    for trials in ([trial(0, accuracy=0.5, params=0.0)], [trial(n, accuracy=0.5, params=7.0) for n in range(3)]):
        assert write_report(spec(), trials, tmp_path)["pareto.png"].stat().st_size > 1000


def test_old_report_is_replaced_and_nothing_else_is_left(tmp_path):
    write_report(spec(), study(), tmp_path)
    files = write_report(spec(), study()[:3], tmp_path)
    assert len(rows(files["trials.csv"])) == 3
    assert {path.name for path in tmp_path.iterdir()} == set(files)


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"report folder must be writable .* give another with --out: .*file"):
        write_report(spec(), study(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == ""
