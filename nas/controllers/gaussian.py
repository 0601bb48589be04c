"""Exact Gaussian processes for a few hundred observations, hyperparameters from a grid."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.special import log_ndtr, ndtri

__all__ = ["GaussianProcess", "Hyperparameters", "choose", "log_expected_improvement", "normal_scores"]

Floats = NDArray[np.float64]

LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
NOISES = (1e-3, 1e-2, 3e-2, 0.1, 0.3)


@dataclass(frozen=True)
class Hyperparameters:
    """Of the kernel ``k(x, x') = exp(-d(x, x') / (2 length))``, ``d`` a squared distance.

    Args:
        length: the squared length scale.
        noise: variance of the noise relative to that of the function.
        mean: of the function.
        variance: of the function.
    """

    length: float
    noise: float
    mean: float
    variance: float


def choose(distances: Floats, values: Floats) -> Hyperparameters:
    """Return the hyperparameters of the highest marginal likelihood on a grid of lengths and noises.

    The mean is that of ``values``; the variance has a closed form. With ``K + noise I = V diag(e) V'`` and
    ``z = V'(y - mean)`` the variance is ``s = mean(z^2 / e)`` and the log likelihood ``-(n log s + sum log e) / 2`` but
    for a constant (Rasmussen and Williams 2006, eq. 5.8), so one decomposition serves all noises.

    Args:
        distances: ``(n, n)`` squared distances.
        values: ``(n,)`` observed.
    """
    mean = float(values.mean())
    best, chosen = -np.inf, Hyperparameters(LENGTHS[-1], NOISES[-1], mean, 1.0)
    for length in LENGTHS:
        eigenvalues, vectors = eigh(np.exp(-0.5 / length * distances))
        projected = (vectors.T @ (values - mean)) ** 2
        for noise in NOISES:
            scale = np.maximum(eigenvalues, 0.0) + noise
            variance = max(float((projected / scale).mean()), 1e-12)
            likelihood = -0.5 * (len(values) * np.log(variance) + np.log(scale).sum())
            if likelihood > best:
                best, chosen = likelihood, Hyperparameters(length, noise, mean, variance)
    return chosen


@final
class GaussianProcess:
    """The posterior given observations (Rasmussen and Williams 2006, algorithm 2.1).

    Args:
        distances: ``(n, n)`` squared distances between the observed points.
        values: ``(n,)`` observed.
        given: hyperparameters.
    """

    def __init__(self, distances: Floats, values: Floats, given: Hyperparameters) -> None:
        self.given = given
        covariance = np.exp(-0.5 / given.length * distances)
        covariance[np.diag_indices_from(covariance)] += given.noise
        self._factor = cho_factor(covariance, lower=True, check_finite=False)
        self._weights = cho_solve(self._factor, values - given.mean, check_finite=False)

    def mean(self, distances: Floats) -> Floats:
        """Return the mean ``(m,)`` alone, in a fraction of the time of both.

        Args:
            distances: ``(m, n)`` squared distances to the observed points.
        """
        return np.asarray(self.given.mean + np.exp(-0.5 / self.given.length * distances) @ self._weights)

    def __call__(self, distances: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation ``(m,)`` of the function, without noise, at ``m`` points.

        Args:
            distances: ``(m, n)`` squared distances to the observed points.
        """
        covariance = np.exp(-0.5 / self.given.length * distances)
        mean = self.given.mean + covariance @ self._weights
        explained = (covariance * cho_solve(self._factor, covariance.T, check_finite=False).T).sum(axis=1)
        return mean, np.sqrt(self.given.variance * np.maximum(1.0 - explained, 1e-9))


def normal_scores(values: Floats) -> Floats:
    """Return the normal quantiles of the ranks, ``Phi^-1((rank - 1/2) / n)``, ties sharing theirs.

    Only the order of ``values`` matters, so a few networks that learn nothing do not drown the differences between
    good ones.
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ndtri((ranks[inverse.reshape(-1)] - 0.5) / len(values)))


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """Return ``log E[max(0, best - Y)]`` of ``Y ~ N(mean, deviation^2)``, smaller values being better.

    ``E = deviation (phi(u) + u Phi(u))`` with ``u = (best - mean) / deviation`` (Jones et al. 1998, eq. 15); far below
    zero the bracket is ``phi(u) / u^2`` to first order, which keeps the logarithm finite.
    """
    u = (best - mean) / deviation
    log_phi = -0.5 * u * u - 0.5 * np.log(2 * np.pi)
    near = np.maximum(u, -6.0)
    bracket = np.exp(-0.5 * near * near) / np.sqrt(2 * np.pi) + near * np.exp(log_ndtr(near))
    far = log_phi - 2 * np.log(np.maximum(np.abs(u), 1.0))
    return np.asarray(np.log(deviation) + np.where(u > -6.0, np.log(np.maximum(bracket, 1e-300)), far))
