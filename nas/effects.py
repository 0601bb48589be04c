"""What conditions of a hypernetwork mean in training: the data a network must cope with, or a term of its loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from hypernets import Bounded, Field, Size

__all__ = ["Effect", "InputNoise", "WeightPenalty"]


class Effect(ABC):
    """One condition: the values that it takes, and what a network generated for a value is trained for.

    :class:`nas.ConditionedNetwork` draws values of :attr:`field` in every step, and asks each effect for the batch that
    the network with that value sees and for a penalty on its weights. An effect keeps its constructor arguments as
    attributes of the same names, and holds no state.
    """

    @property
    @abstractmethod
    def field(self) -> Field:
        """The condition field of the hypernetwork."""

    def batch(self, batch: Any, value: Tensor, *, generator: torch.Generator) -> Any:
        """Return the batch as a network with this condition meets it. Default: as it is.

        Args:
            batch: of the task; not to be changed in place.
            value: one value of the field, without K.
            generator: source of randomness, on the CPU.
        """
        del value, generator
        return batch

    def penalty(self, weights: Mapping[str, Tensor], value: Tensor) -> Tensor | None:
        """Return a scalar to add to the training loss, or ``None``. Default: nothing."""
        del weights, value
        return None


@final
class InputNoise(Effect):
    """Normal noise of this standard deviation on the inputs, which come first in the batch.

    Args:
        high: largest standard deviation, in units of the inputs.
        low: smallest.
    """

    def __init__(self, high: float, *, low: float = 0.0) -> None:
        self.high, self.low = high, low
        if low < 0:
            raise ValueError(f"InputNoise.low must be >= 0, got {low}")
        self._field = Bounded(low, high)

    @property
    def field(self) -> Field:
        """Values between ``low`` and ``high``."""
        return self._field

    def batch(self, batch: Any, value: Tensor, *, generator: torch.Generator) -> Any:
        """Return the batch with noise on its first part."""
        inputs, *rest = batch
        noise = torch.randn(inputs.shape, generator=generator).to(inputs)
        return (inputs + value.to(inputs) * noise, *rest)


@final
class WeightPenalty(Effect):
    """Half the squared norm of all matrices and kernels, times this strength, in the training loss.

    Args:
        high: largest strength.
        low: smallest, above 0; values in between are drawn on a logarithmic scale.
    """

    def __init__(self, high: float, low: float) -> None:
        self.high, self.low = high, low
        self._field = Size(low, high)

    @property
    def field(self) -> Field:
        """Values between ``low`` and ``high``."""
        return self._field

    def penalty(self, weights: Mapping[str, Tensor], value: Tensor) -> Tensor | None:
        """Return ``value / 2 * sum of squares``."""
        squares = [tensor.square().sum() for tensor in weights.values() if tensor.ndim > 1]
        return value / 2 * torch.stack(squares).sum() if squares else None
