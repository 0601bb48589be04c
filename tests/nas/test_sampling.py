import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.costs import CostMeter, MACs, Parameters
from nas.sampling import UnsatisfiableError, reach, sample_within
from search_spaces import MLPSpace
from trials import Limit

SPACE = MLPSpace(16, 4, widths=(4, 8, 16, 32), depths=(1, 2, 3))
METER = CostMeter(SPACE, [Parameters(SPACE), MACs(SPACE)])
SMALLEST, LARGEST = METER(SPACE.smallest()), METER(SPACE.largest())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_reach_is_the_range_of_every_cost():
    found = reach(SPACE, METER, generator(), samples=4)
    assert found == {name: (SMALLEST[name], LARGEST[name]) for name in ("params", "macs")}


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0, 1), seed=st.integers(0, 1000), tries=st.integers(1, 3))
def test_upper_limits_are_always_met_down_to_the_smallest(share, seed, tries):
    bound = SMALLEST["params"] + share**4 * (LARGEST["params"] - SMALLEST["params"])
    limits = [Limit("params", bound, "max"), Limit("macs", LARGEST["macs"], "max")]
    for architecture in sample_within(SPACE, limits, METER, generator(seed), count=2, tries=tries):
        assert SPACE.contains(architecture)
        assert METER(architecture)["params"] <= bound


@settings(deadline=None, max_examples=25)
@given(share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_lower_limits_are_always_met_up_to_the_largest(share, seed):
    bound = LARGEST["macs"] - share**4 * (LARGEST["macs"] - SMALLEST["macs"])
    (architecture,) = sample_within(SPACE, [Limit("macs", bound, "min")], METER, generator(seed), tries=1)
    assert METER(architecture)["macs"] >= bound


def test_a_narrow_band_is_found_by_repair():
    limits = [Limit("params", 700.0, "max"), Limit("params", 600.0, "min")]
    drawn = sample_within(SPACE, limits, METER, generator(3), count=10, tries=4)
    assert all(600.0 <= METER(architecture)["params"] <= 700.0 for architecture in drawn)
    assert len(set(drawn)) > 1


def test_loose_limits_keep_the_distribution_of_the_space():
    plain = generator(5)
    expected = [SPACE.sample(plain) for _ in range(5)]
    assert sample_within(SPACE, [Limit("params", 1e9, "max")], METER, generator(5), count=5) == expected


def test_repaired_architectures_differ_and_follow_the_generator():
    limits = [Limit("params", 260.0, "max")]
    first = sample_within(SPACE, limits, METER, generator(1), count=20, tries=1)
    assert first == sample_within(SPACE, limits, METER, generator(1), count=20, tries=1)
    assert first != sample_within(SPACE, limits, METER, generator(2), count=20, tries=1)
    assert len(set(first)) > 3


def test_unsatisfiable_limit_names_the_smallest_reachable_value():
    with pytest.raises(
        UnsatisfiableError, match=r"^max_params=10 cannot be met: the smallest subnetwork has 92 params$"
    ):
        sample_within(SPACE, [Limit("params", 10.0, "max")], METER, generator(), tries=2)
    message = rf"min_macs=1000000000 cannot be met: the largest subnetwork has {LARGEST['macs']:,.10g} macs"
    with pytest.raises(UnsatisfiableError, match=message):
        sample_within(SPACE, [Limit("macs", 1e9, "min")], METER, generator(), tries=2)


def test_contradicting_limits_are_named_together():
    limits = [Limit("params", 100.0, "max"), Limit("macs", 1000.0, "min")]
    with pytest.raises(UnsatisfiableError, match="keeps max_params=100 and min_macs=1000 together"):
        sample_within(SPACE, limits, METER, generator(), tries=3)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match=r"limits must be on measured costs, got max_latency; costs are \['macs', 'p"):
        sample_within(SPACE, [Limit("latency", 1.0, "max")], METER, generator())
    with pytest.raises(ValueError, match="count must be 0 or more and tries 1 or more, got count=-1, tries=64"):
        sample_within(SPACE, [], METER, generator(), count=-1)
