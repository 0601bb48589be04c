"""Losses of a student against the logits of a teacher."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

__all__ = ["Distillation", "SoftTargets"]


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
