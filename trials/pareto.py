"""Pareto dominance, exact hypervolume and crowding distance of finite point sets.

Every function takes points as an array of shape ``(N, M)``: N candidates, M objectives. Nothing is assumed about order,
and duplicated points are allowed everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["crowding_distance", "hypervolume", "non_dominated", "non_dominated_rank"]

Points = NDArray[np.float64]


def non_dominated(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.bool_]:
    """Return which points no other point dominates.

    ``p`` dominates ``q`` when it is no worse in every objective and better in one (Deb et al. 2002, Sec. II). Copies of
    a non-dominated point are all kept.

    Args:
        points: ``(N, M)`` finite values.
        directions: ``minimize`` or ``maximize`` for each of the M objectives.

    Returns:
        ``(N,)`` mask.

    Raises:
        ValueError: If a value is not finite, or the directions do not match the points.

    Example:
        >>> non_dominated([[1, 2], [2, 1], [2, 2]], ["minimize", "minimize"]).tolist()
        [True, True, False]
    """
    costs = _as_costs(points, directions)
    unique, inverse = np.unique(costs, axis=0, return_inverse=True)
    return _front_of_unique(unique)[inverse.reshape(-1)]


def non_dominated_rank(points: ArrayLike, directions: Sequence[str]) -> NDArray[np.int64]:
    """Return the front that each point belongs to: 0 for the non-dominated ones, 1 for those left without them, ...

    This is the fast non-dominated sorting of Deb et al. 2002, Sec. III-A.

    Args:
        points: ``(N, M)`` finite values.
        directions: ``minimize`` or ``maximize`` for each of the M objectives.

    Returns:
        ``(N,)`` ranks.

    Raises:
        ValueError: If a value is not finite, or the directions do not match the points.
    """
    costs = _as_costs(points, directions)
    unique, inverse = np.unique(costs, axis=0, return_inverse=True)
    ranks = np.zeros(len(unique), dtype=np.int64)
    left = np.arange(len(unique))
    rank = 0
    while len(left):
        front = _front_of_unique(unique[left])
        ranks[left[front]] = rank
        left = left[~front]
        rank += 1
    return ranks[inverse.reshape(-1)]


def hypervolume(points: ArrayLike, reference: ArrayLike, directions: Sequence[str] | None = None) -> float:
    """Return the exact volume that the points dominate, bounded by the reference point.

    Two objectives are swept in ``O(N log N)``; more use the exclusive-volume recursion of While, Bradstreet and Barone
    (WFG, 2012): ``hv({p1..pn}) = sum_i [ vol(p_i) - hv({worse(p_i, p_j) : j > i}) ]``.

    Args:
        points: ``(N, M)`` finite values; those not strictly better than the reference everywhere add nothing.
        reference: ``(M,)`` the worst corner.
        directions: ``minimize`` or ``maximize`` for each objective; all minimised when left out.

    Returns:
        The volume, in the product of the objectives' units; 0 for no points.

    Raises:
        ValueError: If a value is not finite, or the shapes do not agree.

    Example:
        >>> hypervolume([[1, 2], [2, 1]], [3, 3])
        3.0
    """
    corner = np.asarray(reference, dtype=np.float64).reshape(-1)
    directions = tuple(directions) if directions is not None else ("minimize",) * len(corner)
    if len(corner) != len(directions) or not np.isfinite(corner).all():
        raise ValueError(f"reference must be {len(directions)} finite values, got {corner.tolist()}")
    costs = _as_costs(points, directions)
    corner = corner * _signs(directions)
    inside = costs[(costs < corner).all(axis=1)]
    return _volume(inside, corner)


def crowding_distance(points: ArrayLike) -> Points:
    """Return how far apart the neighbours of each point lie (Deb et al. 2002, Sec. III-B).

    ``d_i = sum_m (f_m(i+1) - f_m(i-1)) / (f_m^max - f_m^min)`` over the points sorted by objective m; the two extremes
    of every objective get infinity. Objectives on which all points agree add nothing.

    Differs from the paper: copies of one point share the distance of that point, so that the result does not depend on
    the order of the points.

    Args:
        points: ``(N, M)`` finite values of one front; directions do not matter.

    Returns:
        ``(N,)`` distances.

    Raises:
        ValueError: If a value is not finite.
    """
    values = _as_array(points)
    unique, inverse = np.unique(values, axis=0, return_inverse=True)
    distance = np.zeros(len(unique))
    for column in unique.T:
        order = np.lexsort((*unique.T, column))
        ordered = column[order]
        span = ordered[-1] - ordered[0] if len(ordered) else 0.0
        if span == 0.0:
            continue
        distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
        distance[order[[0, -1]]] = np.inf
    if len(unique) <= 2:
        distance[:] = np.inf
    return np.asarray(distance[inverse.reshape(-1)])


def _as_array(points: ArrayLike) -> Points:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0 and array.ndim < 2:
        array = array.reshape(0, 1)
    if array.ndim != 2:
        raise ValueError(f"points must have shape (N, M), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("points must be finite, got NaN or infinity; leave failed and infeasible trials out")
    return array


def _signs(directions: Sequence[str]) -> Points:
    unknown = sorted(set(directions) - {"minimize", "maximize"})
    if unknown:
        raise ValueError(f"directions must be 'minimize' or 'maximize', got {unknown}")
    return np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])


def _as_costs(points: ArrayLike, directions: Sequence[str]) -> Points:
    array, signs = _as_array(points), _signs(directions)
    if len(array) == 0:
        return np.empty((0, len(signs)))
    if array.shape[1] != len(signs):
        raise ValueError(f"directions must name each of the {array.shape[1]} objectives, got {len(signs)}")
    return array * signs


def _front_of_unique(costs: Points) -> NDArray[np.bool_]:
    """Return the non-dominated mask of minimised points that are distinct and sorted lexicographically."""
    mask = np.zeros(len(costs), dtype=bool)
    if costs.shape[1] == 2:
        lowest = np.minimum.accumulate(costs[:, 1]) if len(costs) else costs[:, 1]
        mask[:1] = True
        mask[1:] = costs[1:, 1] < lowest[:-1]
        return mask
    front: list[int] = []
    for index, point in enumerate(costs):  # a later point never dominates an earlier one in this order
        if not front or not (costs[front] <= point).all(axis=1).any():
            front.append(index)
    mask[front] = True
    return mask


def _volume(costs: Points, corner: Points) -> float:
    if len(costs) == 0:
        return 0.0
    unique = np.unique(costs, axis=0)
    front = unique[_front_of_unique(unique)]
    if len(corner) == 1:
        return float(corner[0] - front[0, 0])
    if len(corner) == 2:
        ceilings = np.concatenate(([corner[1]], front[:-1, 1]))
        return float(((corner[0] - front[:, 0]) * (ceilings - front[:, 1])).sum())
    total = 0.0
    for index, point in enumerate(front):
        shadow = np.maximum(front[index + 1 :], point)
        total += float(np.prod(corner - point)) - _volume(shadow, corner)
    return total
