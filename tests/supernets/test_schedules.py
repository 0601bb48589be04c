import math

import pytest

from supernets import ConstantEnding, Cosine, Restarts


def test_constant_ending_decays_in_steps_down_to_the_floor() -> None:
    schedule = ConstantEnding(decays=150, gamma=0.97, floor=0.05, warmup=0.0)
    for progress in (0.0, 0.1, 0.333, 0.6, 0.7, 1.0):
        assert schedule(progress) == pytest.approx(max(0.05, 0.97 ** math.floor(150 * progress)))
    assert schedule(0.9) == schedule(1.0) == 0.05


def test_cosine_runs_from_one_to_the_floor() -> None:
    schedule = Cosine(floor=0.1)
    assert schedule(0.0) == pytest.approx(1.0)
    assert schedule(0.5) == pytest.approx(0.55)
    assert schedule(1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", [ConstantEnding, Cosine])
def test_warm_up_is_linear_from_zero(kind: type[ConstantEnding] | type[Cosine]) -> None:
    schedule, plain = kind(warmup=0.2), kind(warmup=0.0)
    assert schedule(0.0) == 0.0
    assert schedule(0.1) == pytest.approx(0.5 * plain(0.1))
    assert schedule(0.3) == plain(0.3)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 < gamma <= 1.*gamma=0"):
        ConstantEnding(gamma=0)
    with pytest.raises(ValueError, match=r"0 <= floor <= 1.*floor=2"):
        Cosine(floor=2)


def test_restarts_run_one_schedule_for_each_stage_from_its_own_peak() -> None:
    schedule = Restarts([0.2, 0.6], [1.0, 0.5, 0.25])
    for start, end, peak in ((0.0, 0.2, 1.0), (0.2, 0.6, 0.5), (0.6, 1.0, 0.25)):
        for share in (0.0, 0.25, 0.5, 0.99):
            expected = peak * 0.5 * (1 + math.cos(math.pi * share))
            assert schedule(start + share * (end - start)) == pytest.approx(expected)
    assert schedule(1.0) == pytest.approx(0.0)
    assert Restarts([], [0.5], each=Cosine(floor=1.0))(0.7) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ends", "peaks", "message"),
    [
        ([0.6, 0.2], [1, 1, 1], r"ends must ascend between 0 and 1, got \[0.6, 0.2\]"),
        ([0.5, 1.0], [1, 1, 1], r"got \[0.5, 1.0\]"),
        ([0.5], [1], r"peaks must be one more number than ends, 2, each > 0; got \[1\]"),
        ([0.5], [1, 0], r"got \[1, 0\]"),
    ],
)
def test_restarts_out_of_order_are_refused(ends: list[float], peaks: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Restarts(ends, peaks)
