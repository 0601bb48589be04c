"""From a labelled data set to one vector."""

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["ClassStatistics", "DatasetEncoder"]


class DatasetEncoder(nn.Module, ABC):
    """Summarises data sets. The order of examples does not matter; that of classes does, since outputs follow it.

    Attributes:
        width: length of the summary.
    """

    width: int

    @abstractmethod
    def forward(self, features: Tensor, members: Tensor) -> Tensor:
        """Return the summaries ``(K, width)``.

        Args:
            features: ``(K, n, size)``.
            members: ``(K, n, classes)``, 1 where an example is of a class and 0 elsewhere; no class is empty.
        """


@final
class ClassStatistics(DatasetEncoder):
    """A linear map of the mean features of every class.

    Args:
        size: number of features.
        classes: number of classes.
        width: length of the summary.
    """

    def __init__(self, size: int, classes: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.whole = nn.Linear(size * classes, width)

    def forward(self, features: Tensor, members: Tensor) -> Tensor:
        """Return the summaries ``(K, width)``."""
        means = members.transpose(1, 2) @ features / members.sum(1)[..., None]  # (K, classes, size)
        summary: Tensor = self.whole(means.flatten(1))
        return summary


def split_classes(features: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Sort examples by class.

    Returns:
        Features ``(K, classes, most, size)``, most being the largest class, and which of them are there
        ``(K, classes, most)``.
    """
    sets, _, classes = members.shape
    counts = members.sum(1).long()  # (K, classes)
    most = int(counts.max())
    rank = (members.cumsum(1) - 1).long()  # position within its class, where it is a member
    found = features.new_zeros(sets, classes, most, features.shape[-1])
    row, example, label = members.nonzero(as_tuple=True)
    found[row, label, rank[row, example, label]] = features[row, example]
    there = torch.arange(most, device=features.device) < counts[..., None]
    return found, there
