import math

import pytest

from supernets import ConstantEnding, Cosine


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
