"""Losses of a student against the logits of a teacher."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

__all__ = ["KL", "AlphaDivergence", "Distillation", "SoftTargets"]

_LIMIT = 1e-3


class Distillation(ABC):
    """How far a student's distribution is from its teacher's, for each example or token."""

    @abstractmethod
    def __call__(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of each row.

        Args:
            logits: ``(..., classes)`` of the student.
            teacher: ``(..., classes)``, without gradients.

        Returns:
            ``(...)``, in nats.
        """


@final
class SoftTargets(Distillation):
    """Soft cross-entropy ``-T^2 sum_c softmax(z_t / T)_c log softmax(z / T)_c`` (Hinton et al., arXiv 1503.02531).

    Args:
        temperature: ``T``; BigNAS uses 1.

    Raises:
        ValueError: ``temperature <= 0``.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"SoftTargets.temperature must be > 0, got {temperature}")
        self.temperature = temperature

    def __call__(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the soft cross-entropy of each row; see :class:`Distillation`."""
        soft = torch.softmax(teacher / self.temperature, dim=-1)
        return -(soft * torch.log_softmax(logits / self.temperature, dim=-1)).sum(-1) * self.temperature**2


@final
class KL(Distillation):
    """Kullback-Leibler divergence ``T^2 sum_c p_c (log p_c - log q_c)`` of teacher ``p`` and student ``q`` at ``T``.

    Its gradient is that of :class:`SoftTargets`; its value is zero where the student agrees with its teacher.

    Args:
        temperature: ``T`` of both distributions.

    Raises:
        ValueError: ``temperature <= 0``.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if temperature <= 0:
            raise ValueError(f"KL.temperature must be > 0, got {temperature}")
        self.temperature = temperature

    def __call__(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of each row; see :class:`Distillation`."""
        log_p = torch.log_softmax(teacher / self.temperature, dim=-1)
        log_q = torch.log_softmax(logits / self.temperature, dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1) * self.temperature**2


@final
class AlphaDivergence(Distillation):
    """Adaptive alpha-divergence (AlphaNet, Wang et al., arXiv 2102.07954, section 4): the larger of two, for each row.

    With ``r = p / q`` of teacher ``p`` and student ``q``::

        D_alpha = sum_c q_c (min(r_c^alpha, clip) - 1) / (alpha (alpha - 1))

    A negative alpha punishes a student that is sure where its teacher is not, a positive one a student that misses what
    its teacher sees; taking the larger of the two forbids both. The gradient is that of ``-sum_c q_c rho_c log q_c``
    with ``q_c rho_c`` held fixed and ``rho = min(r^alpha, clip) / alpha + 1 / (alpha (alpha - 1))``, which is the exact
    gradient where nothing is clipped.

    The limits are taken at 0 and 1 (and within a thousandth of them), without clipping:
    ``D_0 = KL(q || p)`` with ``rho = log r - 1``, and ``D_1 = KL(p || q)`` with ``rho = r``.

    Args:
        alpha_min: one alpha.
        alpha_max: the other; equal ones leave a plain alpha-divergence.
        clip: upper bound of ``r^alpha``.

    Raises:
        ValueError: ``alpha_min > alpha_max`` or ``clip < 1``.
    """

    def __init__(self, alpha_min: float = -1.0, alpha_max: float = 1.0, *, clip: float = 5.0) -> None:
        if alpha_min > alpha_max or clip < 1:
            raise ValueError(
                f"AlphaDivergence needs alpha_min <= alpha_max and clip >= 1, got {alpha_min=}, {alpha_max=}, {clip=}"
            )
        self.alpha_min = alpha_min
        self.alpha_max = alpha_max
        self.clip = clip

    def __call__(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the larger divergence of each row; see :class:`Distillation`."""
        log_q = torch.log_softmax(logits, dim=-1)
        fixed, log_p = log_q.detach(), torch.log_softmax(teacher.detach(), dim=-1)
        low, low_weight = self._divergence(self.alpha_min, log_p, fixed)
        high, high_weight = self._divergence(self.alpha_max, log_p, fixed)
        larger = high >= low
        surrogate = -(torch.where(larger[..., None], high_weight, low_weight) * log_q).sum(-1)
        return torch.where(larger, high, low) + surrogate - surrogate.detach()

    def _divergence(self, alpha: float, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Value ``(...)`` and ``q rho`` ``(..., classes)`` of one alpha."""
        q, log_r = log_q.exp(), log_p - log_q
        if abs(alpha) < _LIMIT:
            return -(q * log_r).sum(-1), q * (log_r - 1)
        if abs(alpha - 1) < _LIMIT:
            p = log_p.exp()
            return (p * log_r).sum(-1), p
        power, base = (alpha * log_r).exp().clamp(max=self.clip), 1 / (alpha * (alpha - 1))
        return (q * (power - 1)).sum(-1) * base, q * (power / alpha + base)
