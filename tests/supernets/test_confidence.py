"""Calibration errors, likelihood, Brier score and temperature, against explicit loops and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from supernets import (
    Classification,
    LanguageModelling,
    NodeClassification,
    SpeakerVerification,
    Translation,
    brier_score,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)


def drawn(count: int = 400, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not, and too large."""
    generator = torch.Generator().manual_seed(count + classes)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 1.0
    return scale * logits, labels


def softmax(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.double().numpy() - logits.double().numpy().max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def expected_error(p: np.ndarray, labels: np.ndarray, groups: list[list[int]]) -> float:
    total = 0.0
    for rows in groups:
        if rows:
            right = sum(p[i].argmax() == labels[i] for i in rows) / len(rows)
            total += len(rows) / len(labels) * abs(right - sum(p[i].max() for i in rows) / len(rows))
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_calibration_error_is_that_of_an_explicit_loop_and_of_torchmetrics(bins):
    logits, labels = drawn()
    p = softmax(logits)
    groups = [[i for i in range(len(p)) if m / bins <= p[i].max() < (m + 1) / bins] for m in range(bins)]
    found = reliability(torch.softmax(logits, 1), labels, bins=bins)
    assert found.error == pytest.approx(expected_error(p, labels.numpy(), groups), abs=1e-6)
    oracle = MulticlassCalibrationError(5, n_bins=bins, norm="l1")
    assert found.error == pytest.approx(float(oracle(torch.softmax(logits, 1), labels)), abs=1e-6)
    assert found.counts.sum() == len(labels)


def test_bins_of_equal_mass_hold_equally_many_in_the_order_of_their_confidence():
    logits, labels = drawn(count=101)
    p = softmax(logits)
    order = np.argsort(p.max(1))
    groups = [[int(i) for k, i in enumerate(order) if k * 15 // 101 == m] for m in range(15)]
    found = reliability(torch.softmax(logits.double(), 1), labels, equal_mass=True)
    assert found.counts.tolist() == [len(rows) for rows in groups]
    assert max(found.counts) - min(found.counts) <= 1
    assert found.error == pytest.approx(expected_error(p, labels.numpy(), groups), abs=1e-9)


def test_equal_confidences_count_alike_in_whatever_order_they_come():
    p = torch.tensor([[0.75, 0.25]]).repeat(9, 1)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1])
    errors = [reliability(p, each, bins=4, equal_mass=True).error for each in (labels, labels.flip(0))]
    assert errors == pytest.approx([0.75 - 6 / 9] * 2)


def test_a_confidence_of_one_belongs_to_the_last_bin():
    p = torch.tensor([[1.0, 0.0], [0.95, 0.05]])
    assert reliability(p, torch.tensor([0, 1]), bins=10).counts.tolist() == [0.0] * 9 + [2.0]


def test_likelihood_and_brier_score_are_those_of_their_definitions():
    logits, labels = drawn(count=50)
    p, right = softmax(logits), labels.numpy()
    assert negative_log_likelihood(logits, labels) == pytest.approx(
        -np.mean([math.log(r[y]) for r, y in zip(p, right, strict=True)])
    )
    squares = [sum((row[c] - (c == y)) ** 2 for c in range(5)) for row, y in zip(p, right, strict=True)]
    assert brier_score(torch.softmax(logits, 1), labels) == pytest.approx(np.mean(squares), abs=1e-6)


@pytest.mark.parametrize("assumed_errors", [0.0, 1.0])
def test_the_temperature_minimises_the_likelihood_of_its_docstring(assumed_errors):
    logits, labels = drawn()
    z, y = logits.double().numpy(), labels.numpy()
    wrong = assumed_errors / (len(y) + 1 + assumed_errors)

    def loss(log_temperature: float) -> float:
        scaled = z / math.exp(log_temperature)
        log_p = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        own = log_p[np.arange(len(y)), y]
        return float(-((1 - wrong) * own + wrong / (z.shape[1] - 1) * (log_p.sum(1) - own)).mean())

    best = math.exp(minimize_scalar(loss, bounds=(-3, 4), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(logits, labels, assumed_errors=assumed_errors) == pytest.approx(best, rel=1e-5)
    assert best > 2


def test_scaling_by_the_temperature_of_other_examples_lowers_the_error():
    logits, labels = drawn(count=2000)
    temperature = fit_temperature(logits[:1000], labels[:1000])
    before, after = (
        reliability(torch.softmax(logits[1000:] / divisor, 1), labels[1000:]).error for divisor in (1.0, temperature)
    )
    assert after < 0.3 * before


def test_a_network_that_is_always_right_gets_a_finite_temperature():
    logits = 4 * torch.eye(5).repeat(20, 1)
    labels = torch.arange(5).repeat(20)
    assert 0.3 < fit_temperature(logits, labels) < 1.5
    assert fit_temperature(logits, labels, assumed_errors=0) == pytest.approx(1e-3, rel=0.1)
    assert fit_temperature(torch.zeros(100, 5), labels) == 1.0


@pytest.mark.parametrize("measure", [reliability, brier_score])
def test_logits_where_probabilities_are_needed_are_refused(measure):
    inside = torch.tensor([[0.2, 0.9], [0.4, 0.1]])
    for logits in (drawn()[0], inside):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\] and sum to 1 .* are they logits"):
            measure(logits, torch.zeros(len(logits), dtype=torch.long))


@pytest.mark.parametrize("measure", [fit_temperature, negative_log_likelihood])
def test_probabilities_where_logits_are_needed_are_refused(measure):
    logits, labels = drawn()
    with pytest.raises(ValueError, match="rows that sum to 1 and so are probabilities already"):
        measure(torch.softmax(logits, 1), labels)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "at least one decision"),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), "two classes"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), r"got \(4, 3\) and \(5,\)"),
        (torch.full((4, 3), math.nan), torch.zeros(4, dtype=torch.long), "must be finite"),
    ],
    ids=["none", "one-class", "shapes", "nan"],
)
def test_what_is_no_decision_is_refused(logits, labels, words):
    for measure in (reliability, brier_score, negative_log_likelihood, fit_temperature):
        with pytest.raises(ValueError, match=words):
            measure(logits, labels)


def test_arguments_out_of_range_are_refused():
    logits, labels = drawn()
    with pytest.raises(ValueError, match="bins >= 1, got 0"):
        reliability(torch.softmax(logits, 1), labels, bins=0)
    with pytest.raises(ValueError, match="assumed_errors >= 0, got -1"):
        fit_temperature(logits, labels, assumed_errors=-1)


def test_every_task_with_classes_tells_its_decisions_token_by_token():
    outputs = torch.randn(3, 4, 6)
    tokens = torch.tensor([[1, 2, 3, 4], [5, 1, 0, 0], [2, 0, 0, 0]])
    told = LanguageModelling().decisions(outputs, (tokens, tokens))
    assert torch.equal(told.logits[5], outputs[1, 1])
    assert told.examples.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    told = Translation().decisions(outputs, (tokens, tokens, tokens))
    assert told.labels.tolist() == [1, 2, 3, 4, 5, 1, 2]  # no padding
    assert told.examples.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert torch.equal(told.logits[6], outputs[2, 0])
    told = Classification(6).decisions(outputs[:, 0], (None, torch.tensor([3, 1, 2])))
    assert (told.labels.tolist(), told.examples.tolist()) == ([3, 1, 2], [0, 1, 2])
    mask = torch.tensor([True, False, True])
    told = NodeClassification(6).decisions(outputs[:, 0], (None, None, torch.tensor([3, 1, 2]), mask))
    assert (told.labels.tolist(), told.examples.tolist()) == ([3, 2], [0, 1])
    assert torch.equal(told.logits, outputs[[0, 2], 0])
    with pytest.raises(TypeError, match="SpeakerVerification does not choose among classes"):
        SpeakerVerification().decisions(outputs, (tokens, tokens))
