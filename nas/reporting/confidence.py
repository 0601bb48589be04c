"""How far the confidence of trials can be believed, where a study has measured it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from nas.reporting.panels import show
from nas.reporting.summary import Summary
from nas.reporting.svg import Frame, Scale, drawing, element, path, text
from trials import Trial, TrialState

__all__ = ["Believed", "believed", "confidence_figure"]

_RIGHT = ("accuracy", "token_accuracy", "nll")
_JOINED = 60  # trials up to which the two points of each are joined
_KINDS = (("raw", "ece", "front second"), ("scaled", "ece_scaled", "front"))
_WORDS = {"raw": "as it is", "scaled": "after temperature scaling"}


@dataclass(frozen=True)
class Believed:
    """Trials whose calibration error was measured before and after temperature scaling.

    Attributes:
        trials: by number.
        right: measurement that says how often the network is right.
        shown: the trial whose bins are drawn, ``None`` where none has recorded them.
    """

    trials: tuple[Trial, ...]
    right: str
    shown: Trial | None


def believed(summary: Summary) -> Believed | None:
    """Return what :func:`confidence_figure` draws, or ``None`` where nothing was measured.

    The bins are those of the trial on the front that is right most often.
    """
    complete = summary.in_state(TrialState.COMPLETE)
    right = next((name for name in _RIGHT if any(name in trial.measurements for trial in complete)), None)
    if right is None:
        return None
    names = {right, *(name for _, name, _ in _KINDS)}
    trials = tuple(trial for trial in complete if names <= trial.measurements.keys())
    if not trials:
        return None
    front = [trial for trial in summary.front if "reliability" in trial.provenance and right in trial.measurements]
    sign = 1 if right == "nll" else -1
    return Believed(trials, right, min(front, key=lambda trial: sign * trial.value(right), default=None))


def confidence_figure(found: Believed) -> str:
    """Return accuracy against calibration error of all trials, and the reliability diagram of one."""
    parts = [_legend(), _scatter(found)]
    if found.shown is not None:
        parts.append(_diagram(found.shown))
    return drawing("".join(parts), 1100.0, 470.0, label="accuracy against calibration error", key="confidence")


def _legend() -> str:
    parts, left = [], 78.0
    for kind, _, look in _KINDS:
        parts.append(element("circle", cx=left, cy=11.0, r=4.5, class_=f"dot {look}"))
        parts.append(text(_WORDS[kind], left + 10, 15.0, class_="tick"))
        left += 44 + 7.2 * len(_WORDS[kind])
    return "".join(parts)


def _percent(value: float) -> str:
    return f"{100 * value:.4g}%"


def _scatter(found: Believed) -> str:
    trials, right = found.trials, found.right
    unit = trials[0].measurements[right].unit
    errors = [trial.value(name) for trial in trials for _, name, _ in _KINDS]
    frame = Frame(
        Scale.over(errors, 78.0, 500.0), Scale.over([trial.value(right) for trial in trials], 400.0, 36.0)
    )  # fmt: skip
    parts = [
        frame.drawn(
            x_title="expected calibration error, lower is better",
            y_title=right,
            x_label=_percent,
            y_label=_percent if unit == "fraction" else lambda value: show(value, "1"),
        )
    ]
    for trial in trials:
        x, y = [frame.x(trial.value(name)) for _, name, _ in _KINDS], frame.y(trial.value(right))
        if len(trials) <= _JOINED:
            parts.append(path([(at, y) for at in x], class_="axis"))
        parts += [
            element("circle", cx=at, cy=y, r=4.0, class_=f"dot {look}", data_trial=trial.number)
            for at, (_, _, look) in zip(x, _KINDS, strict=True)
        ]
    return "".join(parts)


def _diagram(trial: Trial) -> str:
    bins = json.loads(trial.provenance["reliability"])
    frame = Frame(Scale(0.0, 1.0, 650.0, 1060.0), Scale(0.0, 1.0, 400.0, 36.0))
    parts = [
        frame.drawn(
            x_title=f"confidence of trial {trial.number}",
            y_title="share that is right",
            x_label=_percent,
            y_label=_percent,
        ),
        path([(frame.x(0), frame.y(0)), (frame.x(1), frame.y(1))], class_="diagonal"),
    ]
    for kind, _, look in _KINDS:
        rows: Sequence[tuple[int, float, float]] = bins[kind]
        total = sum(count for count, _, _ in rows)
        edge = "edge second" if "second" in look else "edge"
        parts.append(path([(frame.x(sure), frame.y(right)) for _, sure, right in rows], class_=edge))
        parts += [
            element(
                "circle",
                cx=frame.x(sure),
                cy=frame.y(right),
                r=2.5 + 7.0 * (count / total) ** 0.5,
                class_=f"dot {look}",
                data_tip=f"{_WORDS[kind]}\n{count:,} of {total:,} decisions\n"
                f"confidence {show(sure, 'fraction')}\nright {show(right, 'fraction')}",
            )
            for count, sure, right in rows
        ]
    return "".join(parts)
