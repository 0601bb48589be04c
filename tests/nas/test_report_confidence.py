"""The figure of accuracy against calibration error, and the reliability diagram."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

from nas.reporting import summarise
from nas.reporting.confidence import believed, confidence_figure
from nas.reporting.page import page
from trials import Measurement, Metric, StudySpec, Trial, TrialState

ACCURACY = Metric("accuracy", "fraction", "maximize")
SPEC = StudySpec("one", (ACCURACY,), {"a": (1, 2, 3)}, "0" * 16)
BINS = {"raw": [[30, 0.6, 0.5], [70, 0.9, 0.7]], "scaled": [[60, 0.55, 0.5], [40, 0.8, 0.85]]}


def trial(number: int, accuracy: float, *, errors: tuple[float, float] | None = (0.2, 0.05)) -> Trial:
    names = dict(zip(("ece", "ece_scaled"), errors, strict=True)) if errors else {}
    return Trial(
        number=number,
        architecture={"a": number + 1},
        arch_id=f"{number:016x}",
        state=TrialState.COMPLETE,
        measurements={
            "accuracy": Measurement(accuracy, "fraction", "maximize"),
            **{name: Measurement(value, "fraction", "minimize") for name, value in names.items()},
        },
        provenance={"reliability": json.dumps(BINS)} if errors else {},
        started=1.7e9,
        finished=1.7e9 + 1,
    )


def circles(figure: str, look: str) -> list[dict[str, str]]:
    found = [dict(item.attrib) for item in ElementTree.fromstring(figure).iter("circle")]
    return [item for item in found if item["class"] == f"dot {look}"]


def test_each_trial_has_a_point_before_and_one_after_scaling():
    summary = summarise(SPEC, [trial(0, 0.8), trial(1, 0.9), trial(2, 0.7, errors=None)])
    found = believed(summary)
    assert found is not None
    assert [each.number for each in found.trials] == [0, 1]
    figure = confidence_figure(found)
    before, after = ([c for c in circles(figure, look) if "data-trial" in c] for look in ("front second", "front"))
    assert [c["data-trial"] for c in before] == [c["data-trial"] for c in after] == ["0", "1"]
    assert all(float(b["cx"]) > float(a["cx"]) for a, b in zip(after, before, strict=True))
    assert float(before[1]["cy"]) < float(before[0]["cy"])  # more accurate is higher


def test_the_diagram_has_a_dot_for_each_bin_where_confidence_and_accuracy_say():
    found = believed(summarise(SPEC, [trial(0, 0.8), trial(1, 0.9)]))
    assert found is not None
    assert found.shown is not None
    assert found.shown.number == 1  # the most accurate
    dots = [c for c in circles(confidence_figure(found), "front second") if "data-tip" in c]
    assert len(dots) == 2
    x, y = ([float(c[name]) for c in dots] for name in ("cx", "cy"))
    assert abs((x[1] - x[0]) / 410.0 - 0.3) < 1e-3
    assert abs((y[0] - y[1]) / 364.0 - 0.2) < 1e-3
    assert "70 of 100 decisions\nconfidence 90.00 %\nright 70.00 %" in dots[1]["data-tip"]


def test_the_page_has_it_only_where_confidence_was_measured():
    heading = "<h2>Confidence</h2>"
    assert heading in page(summarise(SPEC, [trial(0, 0.8), trial(1, 0.9)]))
    assert heading not in page(summarise(SPEC, [trial(0, 0.8, errors=None), trial(1, 0.9, errors=None)]))
    unbinned = [replace(trial(0, 0.8), provenance={}), replace(trial(1, 0.9), provenance={})]
    text = page(summarise(SPEC, unbinned))
    assert heading in text
    assert not re.search("confidence of trial", text)
