import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trials import crowding_distance, hypervolume, non_dominated, non_dominated_rank


def points(objectives: int, most: int = 12):
    return st.integers(1, most).flatmap(
        lambda count: arrays(np.float64, (count, objectives), elements=st.integers(0, 6).map(float))
    )


def brute_force_front(values: np.ndarray) -> np.ndarray:
    return np.array([not any((q <= p).all() and (q < p).any() for q in values) for p in values])


def brute_force_volume(values: np.ndarray, corner: float) -> float:
    """Count unit cells of an integer grid: cell c is dominated when some point is <= its lower corner."""
    axes = [range(int(corner))] * values.shape[1]
    return float(sum(any((p <= np.array(cell)).all() for p in values) for cell in itertools.product(*axes)))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_front_and_ranks_agree_with_brute_force(objectives, data):
    values = data.draw(points(objectives))
    directions = ["minimize"] * objectives
    assert (non_dominated(values, directions) == brute_force_front(values)).all()
    ranks = non_dominated_rank(values, directions)
    left = values.copy()
    left_ranks = ranks.copy()
    for rank in range(ranks.max() + 1):
        front = brute_force_front(left)
        assert (front == (left_ranks == rank)).all()
        left, left_ranks = left[~front], left_ranks[~front]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_hypervolume_agrees_with_counting_cells(objectives, data):
    values = data.draw(points(objectives, most=7))
    assert hypervolume(values, [5] * objectives) == pytest.approx(brute_force_volume(values, 5))


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_hypervolume_of_a_staircase_has_its_closed_form(count):
    stairs = [[i, count - 1 - i] for i in range(count)]
    assert hypervolume(stairs, [count, count]) == count * count - count * (count - 1) / 2


@pytest.mark.parametrize("objectives", [2, 3, 4])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_order_and_copies_change_nothing(objectives, data):
    values = data.draw(points(objectives))
    order = np.array(data.draw(st.permutations(range(len(values)))))
    directions = ["maximize"] * objectives
    reference = [-1.0] * objectives
    twice = np.concatenate([values, values])
    assert (non_dominated(values[order], directions) == non_dominated(values, directions)[order]).all()
    assert np.array_equal(crowding_distance(values[order]), crowding_distance(values)[order])
    volume = hypervolume(values, reference, directions)
    assert hypervolume(values[order], reference, directions) == pytest.approx(volume)
    assert hypervolume(twice, reference, directions) == pytest.approx(volume)
    assert (non_dominated(twice, directions) == np.tile(non_dominated(values, directions), 2)).all()


def test_directions_turn_an_objective_around():
    values = [[0.9, 10.0], [0.8, 5.0], [0.7, 7.0]]
    assert non_dominated(values, ["maximize", "minimize"]).tolist() == [True, True, False]
    assert hypervolume(values, [0.5, 20.0], ["maximize", "minimize"]) == pytest.approx(0.4 * 10 + 0.3 * 5)


def test_crowding_distance_is_the_sum_of_normalised_gaps():
    """Deb et al. 2002, Sec. III-B, evaluated by hand."""
    distance = crowding_distance([[0.0, 4.0], [1.0, 2.0], [2.0, 1.0], [4.0, 0.0]])
    assert distance.tolist() == [np.inf, pytest.approx(2 / 4 + 3 / 4), pytest.approx(3 / 4 + 2 / 4), np.inf]


def test_no_points_are_an_empty_front_with_no_volume():
    assert non_dominated([], ["minimize", "minimize"]).shape == (0,)
    assert hypervolume([], [1.0, 1.0]) == 0.0
    assert crowding_distance([]).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: non_dominated([[np.nan, 1.0]], ["minimize"] * 2), "points must be finite"),
        (lambda: non_dominated([[1.0, 1.0]], ["minimize"]), "directions must name each of the 2 objectives, got 1"),
        (lambda: non_dominated([[1.0]], ["up"]), r"must be 'minimize' or 'maximize', got \['up'\]"),
        (lambda: hypervolume([[1.0]], [np.inf]), "reference must be 1 finite values"),
        (lambda: crowding_distance(np.zeros((1, 2, 3))), r"shape \(N, M\), got \(1, 2, 3\)"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
