"""Batches that the weights never learn from."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["HeldOut"]


class HeldOut:
    """The validation split in parts of about ``rows`` rows, one for each step, in order, from the start after the last.

    Which part a step gets depends on the step alone, so a resumed run goes on as before.

    Args:
        loader: makes an iterable over the batches, the same at every call.
        rows: wanted rows of a part; a batch is split into parts that differ by one row at most. A batch of a single
            row is left out, because batch norm cannot train on it.
    """

    def __init__(self, loader: Callable[[], Iterable[Any]], rows: int) -> None:
        self.loader = loader
        self.rows = rows
        self._parts: Iterator[Any] = iter(())
        self._next = -1
        self._count = 0

    def __call__(self, step: int) -> Any:
        """Return the part of ``step``.

        Raises:
            ValueError: there are no batches of two or more rows.
        """
        if step != self._next:
            self._count = sum(1 for _ in self._pass())
            if self._count == 0:
                raise ValueError(
                    "architecture parameters learn from batches of two or more rows of the validation split, which has "
                    "none; set data.validation_fraction above 0 and evaluate in larger batches, or set schedule: single"
                )
            self._parts = self._pass()
            for _ in range(step % self._count):
                next(self._parts)
            self._next = step
        elif step % self._count == 0:
            self._parts = self._pass()
        self._next += 1
        return next(self._parts)

    def _pass(self) -> Iterator[Any]:
        for batch in self.loader():
            total = next(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
            parts = min(max(1, round(total / self.rows)), total // 2)
            if parts == 1:
                yield batch
                continue
            for part in range(parts):
                start, end = total * part // parts, total * (part + 1) // parts
                yield tree_map(lambda leaf, s=start, e=end: leaf[s:e] if isinstance(leaf, Tensor) else leaf, batch)
