"""Batches of an epoch, resumable in the middle of it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

from torch import Tensor

from nas.data.tensors import EpochOrder

__all__ = ["EpochLoader"]


@final
class EpochLoader:
    """Batches whose examples are a function of the order's seed and epoch, without worker processes.

    ``state_dict`` holds the position inside an epoch, which makes Lightning resume in the middle of one exactly where
    it stopped.

    Args:
        order: Lightning finds it as ``sampler`` and tells it the epoch.
        plan: order -> the indices of each batch of its present epoch, always equally many batches.
        read: (epoch, indices) -> batch.
    """

    def __init__(
        self,
        order: EpochOrder,
        *,
        plan: Callable[[EpochOrder], Sequence[Tensor]],
        read: Callable[[int, Tensor], Any],
    ) -> None:
        self.sampler = order
        self.batch_sampler = None  # Lightning looks for one wherever it finds a sampler
        self.plan = plan
        self.read = read
        self._length = len(plan(order))
        self._position = (0, 0)  # (epoch, batches handed out in it)
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        # Lightning asks for the iterator of the first epoch before it calls set_epoch: nothing is read until next().
        epoch = self.sampler.epoch
        resume, self._resume = self._resume, None
        first = resume[1] if resume is not None and resume[0] == epoch else 0
        for number, indices in enumerate(self.plan(self.sampler)[first:], start=first):
            self._position = (epoch, number + 1)
            yield self.read(epoch, indices)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of batches handed out in it."""
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass, if it is over the saved epoch, start after the batches already handed out."""
        self._position = self._resume = (int(state_dict["epoch"]), int(state_dict["batches"]))
