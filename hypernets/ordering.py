"""An order of channels in which neighbours are alike: a short Hamiltonian path through their weights."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["path_length", "shortest_path"]

_STARTS = 32


def path_length(points: Tensor, order: Tensor) -> float:
    """Return the sum of L1 distances between rows of ``points`` ``(n, D)`` that follow each other in ``order``."""
    return float(points[order].double().diff(dim=0).abs().sum())


def shortest_path(points: Tensor) -> Tensor:
    """Return an order of the rows of ``points`` ``(n, D)`` that makes a short open path in L1 distance.

    NeuMeta (arXiv 2410.11878, section 3.3) orders channels so that weights are a smooth function of their position. The
    best of the greedy paths from up to 32 starts, then 2-opt: stretches are turned round as long as that shortens the
    path. Never longer than the order given, the same at every call, and half a second for 256 channels.

    Args:
        points: one row for each channel, with all its weights.

    Returns:
        ``(n,)``, a permutation.
    """
    count = len(points)
    if count < 3:
        return torch.arange(count)
    rows = points.detach().double().cpu()
    distances = torch.cdist(rows, rows, p=1).numpy()
    starts = np.unique(np.linspace(0, count - 1, min(count, _STARTS)).round().astype(int))
    paths = [np.arange(count), *(_greedy(distances, int(start)) for start in starts)]
    path = min(paths, key=lambda each: _length(distances, each))
    return torch.from_numpy(_untangled(distances, path))


def _length(distances: np.ndarray, path: np.ndarray) -> float:
    return float(distances[path[:-1], path[1:]].sum())


def _greedy(distances: np.ndarray, start: int) -> np.ndarray:
    """The path that always goes on to the nearest row not visited."""
    left = np.ones(len(distances), dtype=bool)
    path = [start]
    left[start] = False
    for _ in range(len(distances) - 1):
        path.append(int(np.where(left, distances[path[-1]], np.inf).argmin()))
        left[path[-1]] = False
    return np.array(path)


def _untangled(distances: np.ndarray, path: np.ndarray) -> np.ndarray:
    """2-opt on an open path: reverse ``path[i : j + 1]`` where that shortens it most, until nothing does."""
    count = len(path)
    tolerance = 1e-9 * max(float(distances.max()), 1e-30)
    improved = True
    while improved:
        improved = False
        for i in range(count - 1):
            ends = np.arange(i + 1, count)
            inside = ends < count - 1
            after = path[np.minimum(ends + 1, count - 1)]
            before = path[i - 1]
            gain = np.where(inside, distances[path[ends], after] - distances[path[i], after], 0.0)
            if i > 0:
                gain = gain + distances[before, path[i]] - distances[before, path[ends]]
            best = int(gain.argmax())
            if gain[best] > tolerance:
                j = int(ends[best])
                path[i : j + 1] = path[i : j + 1][::-1].copy()
                improved = True
    return path
