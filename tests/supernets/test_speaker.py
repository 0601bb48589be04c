"""Speaker verification: the loss, the error rates, and training and export of a supernet for it."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import TDNNSpace, construct, describe
from supernets import KL, SandwichRule, SharedWeights, SoftTargets, SpeakerVerification, Supernet, calibrate, export
from supernets.tasks.speaker import equal_error_rate, minimum_detection_cost
from tests.supernets.conftest import Batches

Scores = list[float]


def loss_by_hand(cosines: np.ndarray, labels: list[int], margin: float, scale: float) -> float:
    total = 0.0
    for row, label in zip(cosines, labels, strict=True):
        logits = [scale * float(value) for value in row]
        angle = math.acos(float(row[label]))
        if math.cos(angle) > math.cos(math.pi - margin):
            logits[label] = scale * math.cos(angle + margin)
        else:
            logits[label] = scale * (math.cos(angle) - margin * math.sin(math.pi - margin))
        total += math.log(sum(math.exp(value - max(logits)) for value in logits)) + max(logits) - logits[label]
    return total / len(labels)


@pytest.mark.parametrize(("margin", "scale"), [(0.2, 30.0), (0.5, 8.0), (0.0, 30.0)])
def test_the_loss_and_its_gradient_follow_the_formula_on_both_branches(margin: float, scale: float) -> None:
    labels = [0, 2, 1, 1]
    cosines = torch.tensor(
        [[0.7, -0.2, 0.3], [0.1, 0.9, -0.995], [0.3, -0.9, 0.2], [-0.4, 0.99, 0.5]], dtype=torch.float64
    ).requires_grad_()
    task = SpeakerVerification(margin=margin, scale=scale)
    loss = task.loss((torch.zeros(4, 2), cosines), (None, torch.tensor(labels)), regularise=True)
    loss.backward()
    values = cosines.detach().numpy()
    assert loss.item() == pytest.approx(loss_by_hand(values, labels, margin, scale), rel=1e-9)
    assert cosines.grad is not None
    for i, j in itertools.product(range(4), range(3)):
        step = np.zeros((4, 3))
        step[i, j] = 1e-6
        ends = [loss_by_hand(values + sign * step, labels, margin, scale) for sign in (1, -1)]
        assert cosines.grad[i, j].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_the_loss_stays_finite_where_an_embedding_meets_its_speaker() -> None:
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0 + 1e-6]], requires_grad=True)
    SpeakerVerification().loss((None, cosines), (None, torch.tensor([0, 0]))).backward()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()


def rates_by_hand(targets: Scores, others: Scores) -> list[tuple[float, float]]:
    """(miss rate, false-alarm rate) when scores of at least each threshold are accepted."""
    thresholds = [*sorted({*targets, *others}), math.inf]
    return [(sum(s < t for s in targets) / len(targets), sum(s >= t for s in others) / len(others)) for t in thresholds]


def eer_by_hand(targets: Scores, others: Scores) -> float:
    points = rates_by_hand(targets, others)
    for (miss, alarm), (next_miss, next_alarm) in itertools.pairwise(points):
        if miss <= alarm and next_miss >= next_alarm:
            share = (alarm - miss) / ((alarm - miss) + (next_miss - next_alarm)) if next_miss != next_alarm else 1.0
            return miss + share * (next_miss - miss)
    raise AssertionError


scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


@settings(max_examples=40)
@given(targets=scores, others=scores)
def test_error_rates_equal_those_of_every_threshold_tried(targets: Scores, others: Scores) -> None:
    pair = torch.tensor(targets), torch.tensor(others)
    assert equal_error_rate(*pair).item() == pytest.approx(eer_by_hand(targets, others), abs=1e-6)
    for p in (0.01, 0.5):
        costs = [p * miss + (1 - p) * alarm for miss, alarm in rates_by_hand(targets, others)]
        assert minimum_detection_cost(*pair, p).item() == pytest.approx(min(costs) / min(p, 1 - p), abs=1e-6)


def test_error_rates_of_known_cases() -> None:
    low, high = torch.linspace(-1, 0, 50), torch.linspace(0.1, 1, 70)
    assert equal_error_rate(high, low) == 0
    assert equal_error_rate(low, high) == 1
    assert equal_error_rate(low, low).item() == pytest.approx(0.5)
    assert equal_error_rate(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(0.5)
    assert minimum_detection_cost(low, low, 0.01) == 1
    assert math.isnan(equal_error_rate(low, torch.zeros(0)))
    assert math.isnan(minimum_detection_cost(torch.zeros(0), low, 0.01))


def test_metrics_are_over_all_pairs_of_all_batches() -> None:
    task = SpeakerVerification(p_target=0.05)
    generator = torch.Generator().manual_seed(1)
    speakers = torch.randint(4, (14,), generator=generator)
    embeddings = torch.randn(14, 3, generator=generator) + 2 * torch.eye(4)[speakers, :3]
    metrics = task.metrics()
    for rows in (slice(0, 5), slice(5, 14)):
        task.update(metrics, (embeddings[rows], torch.zeros(0)), (None, speakers[rows]))
    pairs = list(itertools.combinations(range(14), 2))
    cosine = {(i, j): float(torch.cosine_similarity(embeddings[i], embeddings[j], dim=0)) for i, j in pairs}
    targets = [cosine[i, j] for i, j in pairs if speakers[i] == speakers[j]]
    others = [cosine[i, j] for i, j in pairs if speakers[i] != speakers[j]]
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["eer"] == pytest.approx(eer_by_hand(targets, others), abs=1e-6)
    best = min(0.05 * miss + 0.95 * alarm for miss, alarm in rates_by_hand(targets, others)) / 0.05
    assert found["min_dcf"] == pytest.approx(best, abs=1e-5)
    assert found.keys() == task.quantities.keys()


def test_many_pairs_are_drawn_reproducibly_and_estimate_all_of_them() -> None:
    speakers = torch.arange(60) % 6
    embeddings = torch.randn(60, 8) + 1.5 * torch.eye(8)[speakers]

    def eer(pairs: int) -> float:
        task = SpeakerVerification(pairs=pairs)
        metrics = task.metrics()
        task.update(metrics, (embeddings, None), (None, speakers))
        return float(metrics.compute()["eer"])

    assert eer(1700) == eer(1700)
    assert eer(1700) != eer(1770)
    assert eer(1700) == pytest.approx(eer(1770), abs=0.04)


def test_a_student_learns_from_the_teachers_cosines_alone() -> None:
    cosines, teacher = (torch.rand(5, 4) * 2 - 1 for _ in range(2))
    cosines.requires_grad_()
    teacher.requires_grad_()
    for chosen, loss in ((None, SoftTargets()), (KL(), KL())):
        task = SpeakerVerification(scale=10, distillation=chosen)
        found = task.distil((None, cosines), (None, teacher))
        assert found.item() == pytest.approx(loss(10 * cosines, 10 * teacher).mean().item())
        found.backward()
    assert teacher.grad is None
    assert cosines.grad is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"margin": 2.0}, "0 <= margin < pi/2 and scale > 0, got margin=2.0"),
        ({"scale": 0.0}, "scale > 0, got margin=0.2, scale=0.0"),
        ({"p_target": 1.0}, "0 < p_target < 1 and pairs >= 1, got p_target=1.0"),
        ({"pairs": 0}, "pairs >= 1, got p_target=0.01, pairs=0"),
    ],
)
def test_arguments_out_of_range_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeakerVerification(**given)  # type: ignore[arg-type]


def test_a_supernet_trains_and_its_subnetworks_export(fit: Callable[..., L.Trainer], tmp_path: Path) -> None:
    space = TDNNSpace(
        4, mels=6, frames=12, widths=(4, 8), kernels=(1, 3), depths=(1, 2), head_widths=(6, 12), scale=2, bottleneck=4
    )
    task = SpeakerVerification()
    assert isinstance(construct(describe(task)), SpeakerVerification)
    supernet = Supernet(
        space, task, source=lambda given: SharedWeights(given, kernel_transform=True), rule=SandwichRule(1)
    )
    before = {name: value.clone() for name, value in supernet.source.named_parameters()}
    speakers = torch.arange(8) % 4
    fit(supernet, Batches([(torch.randn(8, 6, 12) + speakers[:, None, None], speakers)] * 2), 2)
    changed = [name for name, value in supernet.source.named_parameters() if not torch.equal(value, before[name])]
    assert {"largest.speakers.weight", "largest.blocks.1.res2.0.weight"} <= set(changed)
    assert any(name.startswith("kernels.") for name in changed)
    for architecture in (space.smallest(), space.largest()):
        module = calibrate(supernet.extract(architecture), [torch.randn(8, 6, 12)])
        embeddings, cosines = module(torch.randn(3, 6, 12))
        assert (embeddings.shape, cosines.shape) == ((3, 192), (3, 4))
    small = calibrate(supernet.extract(space.smallest()), [torch.randn(8, 6, 12)])
    done = export(
        small, space.inputs(architecture, 2), tmp_path / "out", formats=["safetensors", "pt2"], manifest={"a": 1}
    )
    assert max(done.parity.values()) < 1e-5


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_not_finite_have_no_error_rate(broken: float) -> None:
    targets, others = torch.tensor([0.9, broken]), torch.tensor([0.1, 0.2])
    assert equal_error_rate(targets, others).isnan()
    assert equal_error_rate(others, targets).isnan()
    assert minimum_detection_cost(targets, others, 0.01).isnan()
