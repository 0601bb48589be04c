"""How differentiable search draws the weights of candidates from their parameters alpha."""

from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

__all__ = ["AlphaSampler", "DrNASSampler", "GDASSampler", "GumbelSampler", "SPOSSampler", "SoftmaxSampler"]


class AlphaSampler(ABC):
    """Draws weights of the candidates of several choices of equal size."""

    learns: ClassVar[bool] = True
    """Whether alpha matters, so that its largest entry is the candidate to choose."""
    steps: int | None = None
    """Training steps over which it changes; ``None``: it stays the same."""

    @abstractmethod
    def sample(self, alpha: Tensor, *, step: int, generator: torch.Generator) -> Tensor:
        """Return weights that sum to one in each row, differentiable in ``alpha``.

        Args:
            alpha: ``(choices, candidates)``, on the CPU.
            step: of the training.
            generator: source of randomness.

        Returns:
            ``(choices, candidates)``.
        """

    @abstractmethod
    def mean(self, alpha: Tensor) -> Tensor:
        """Return the expectation of :meth:`sample`, ``(choices, candidates)``."""

    def penalty(self, alpha: Tensor) -> Tensor:
        """Return what is added to the loss of alpha, ``()``; default: nothing."""
        return alpha.new_zeros(())


@final
class DrNASSampler(AlphaSampler):
    """``a ~ Dirichlet(c)`` with ``c = elu(alpha) + 1`` (DrNAS, arXiv 2006.10355, Eq. 4 and 7).

    A new draw in every step keeps the shared weights from absorbing the weights of candidates, which makes alpha
    meaningful: with plain softmax it is not.

    Differs from the paper: concentrations stay above ``1e-3``, where a draw is still defined, and the distance to
    ``Dirichlet(1)`` that regularises alpha is the Kullback-Leibler divergence.

    Args:
        regularisation: weight of ``KL(Dirichlet(c) || Dirichlet(1))``, summed over choices.

    Raises:
        ValueError: ``regularisation < 0``.
    """

    def __init__(self, regularisation: float = 1e-3) -> None:
        if regularisation < 0:
            raise ValueError(f"DrNASSampler.regularisation must be >= 0, got {regularisation}")
        self.regularisation = regularisation

    @staticmethod
    def _distribution(alpha: Tensor) -> Dirichlet:
        return Dirichlet((F.elu(alpha) + 1).clamp_min(1e-3))

    def sample(self, alpha: Tensor, *, step: int, generator: torch.Generator) -> Tensor:
        """Return a draw; see :class:`AlphaSampler`."""
        del step
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # the distribution takes no generator
            torch.default_generator.manual_seed(seed)
            drawn: Tensor = self._distribution(alpha.double()).rsample()
        return drawn.to(alpha.dtype)

    def mean(self, alpha: Tensor) -> Tensor:
        """Return ``c / sum c``."""
        mean: Tensor = self._distribution(alpha).mean
        return mean

    def penalty(self, alpha: Tensor) -> Tensor:
        """Return ``regularisation * KL(Dirichlet(c) || Dirichlet(1))``."""
        flat = Dirichlet(torch.ones_like(alpha))
        return self.regularisation * kl_divergence(self._distribution(alpha), flat).sum()


def _with_gumbel_noise(alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``log softmax(alpha) + g`` with Gumbel noise ``g``, whose largest entry is a draw from the softmax."""
    uniform = torch.rand(alpha.shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return alpha.log_softmax(-1) - (-uniform.log()).log().to(alpha.dtype)


def _straight_through(noisy: Tensor, soft: Tensor) -> Tensor:
    """Return ``onehot(argmax(noisy))`` with the gradient of ``soft``."""
    return F.one_hot(noisy.argmax(-1), noisy.shape[-1]).to(soft.dtype) + (soft - soft.detach())


def _falling(ends: tuple[float, float], progress: float) -> float:
    """Return a temperature that falls linearly from the first to the last of ``ends``."""
    first, last = ends
    return first + (last - first) * min(1.0, progress)


@final
class GDASSampler(AlphaSampler):
    """One candidate in each step, by Gumbel noise and the straight-through gradient (GDAS, arXiv 1910.04465, Eq. 3-6).

    ``a = onehot(argmax_k z_k)`` forward and the gradient of ``softmax(z / tau)`` backward, with
    ``z = log softmax(alpha) + g`` and ``g`` Gumbel noise. ``tau`` falls linearly.

    Args:
        steps: training steps over which ``tau`` falls.
        tau: first and last temperature.

    Raises:
        ValueError: ``steps < 1``, or a temperature is not above zero.
    """

    def __init__(self, steps: int, tau: tuple[float, float] = (10.0, 0.1)) -> None:
        tau = (float(tau[0]), float(tau[1]))
        if steps < 1 or min(tau) <= 0:
            raise ValueError(f"GDASSampler needs steps >= 1 and temperatures above 0, got {steps=}, {tau=}")
        self.steps: int = steps
        self.tau = tau

    def temperature(self, step: int) -> float:
        """Return ``tau`` at ``step``."""
        return _falling(self.tau, step / self.steps)

    def sample(self, alpha: Tensor, *, step: int, generator: torch.Generator) -> Tensor:
        """Return a one-hot draw; see :class:`AlphaSampler`."""
        noisy = _with_gumbel_noise(alpha, generator)
        soft = (noisy / self.temperature(step)).softmax(-1)
        return _straight_through(noisy, soft)

    def mean(self, alpha: Tensor) -> Tensor:
        """Return ``softmax(alpha)``, the probability that Gumbel noise makes a candidate the largest."""
        return alpha.softmax(-1)


@final
class GumbelSampler(AlphaSampler):
    """Gumbel-softmax, annealed, and straight-through at the end (Jang et al. 2017, arXiv 1611.01144, Eq. 2).

    ``a = softmax((log softmax(alpha) + g) / tau)`` with ``g`` Gumbel noise; ``tau`` falls linearly. In the last steps
    ``a`` is ``onehot(argmax)`` forward and has the gradient of the softmax backward, so that weights and alpha see what
    will be left: a mixture of roundings is far more benign than the roundest of them.

    Args:
        steps: training steps over which ``tau`` falls.
        tau: first and last temperature.
        hard: share of ``steps`` at the end that is straight-through; 0: none, 1: all.

    Raises:
        ValueError: ``steps < 1``, a temperature is not above zero, or ``hard`` is no share.
    """

    def __init__(self, steps: int, tau: tuple[float, float] = (1.0, 0.3), *, hard: float = 0.3) -> None:
        tau = (float(tau[0]), float(tau[1]))
        if steps < 1 or min(tau) <= 0 or not 0 <= hard <= 1:
            raise ValueError(
                f"GumbelSampler needs steps >= 1, tau above 0 and 0 <= hard <= 1, got {steps=}, {tau=}, {hard=}"
            )
        self.steps: int = steps
        self.tau = tau
        self.hard = hard

    def temperature(self, step: int) -> float:
        """Return ``tau`` at ``step``."""
        return _falling(self.tau, step / self.steps)

    def sample(self, alpha: Tensor, *, step: int, generator: torch.Generator) -> Tensor:
        """Return a draw; see :class:`AlphaSampler`."""
        noisy = _with_gumbel_noise(alpha, generator)
        soft = (noisy / self.temperature(step)).softmax(-1)
        if step < self.steps * (1 - self.hard):
            return soft
        return _straight_through(noisy, soft)

    def mean(self, alpha: Tensor) -> Tensor:
        """Return ``softmax(alpha)``, the probability that Gumbel noise makes a candidate the largest."""
        return alpha.softmax(-1)


@final
class SoftmaxSampler(AlphaSampler):
    """``a = softmax(alpha)``, without noise (DARTS, arXiv 1806.09055, Eq. 2); a baseline.

    With entangled weights alpha is not identifiable: any positive mask can be absorbed by the weights under it.
    """

    def sample(self, alpha: Tensor, *, step: int, generator: torch.Generator) -> Tensor:
        """Return ``softmax(alpha)``."""
        del step, generator
        return alpha.softmax(-1)

    def mean(self, alpha: Tensor) -> Tensor:
        """Return ``softmax(alpha)``."""
        return alpha.softmax(-1)


@final
class SPOSSampler(AlphaSampler):
    """One candidate in each step, uniformly (single-path one-shot, arXiv 1904.00420); a baseline that learns no alpha.

    The supernet that comes out is searched like any other.
    """

    learns = False

    def sample(self, alpha: Tensor, *, step: int, generator: torch.Generator) -> Tensor:
        """Return a one-hot draw."""
        del step
        picks = torch.randint(alpha.shape[-1], alpha.shape[:1], generator=generator)
        return F.one_hot(picks, alpha.shape[-1]).to(alpha.dtype)

    def mean(self, alpha: Tensor) -> Tensor:
        """Return equal weights."""
        return torch.full_like(alpha, 1 / alpha.shape[-1])
