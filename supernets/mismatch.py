"""Data that a space or a task cannot take, told from a defect at the first batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from search_spaces import SearchSpace

__all__ = ["check_data", "explained"]


def check_data(space: SearchSpace, data: Any) -> None:
    """Refuse data with tokens that the networks do not know, or longer than they take.

    Args:
        space: of the networks; one without ``vocabulary`` or ``context`` takes any.
        data: the data module, if any, set up; one without ``vocabulary_size`` or ``max_length`` is taken.

    Raises:
        ValueError: saying what is too large, before a batch breaks the table of tokens or positions.
    """
    for field, said, unit in (
        ("vocabulary", "vocabulary_size", "different tokens"),
        ("context", "max_length", "tokens"),
    ):
        known, given = getattr(space, field, None), getattr(data, said, None)
        if known is not None and given is not None and given > known:
            raise ValueError(
                f"{type(space).__name__}.{field} must be at least {given}, the {unit} of {type(data).__name__}, got "
                f"{known}; raise it in model.space, or make the data smaller"
            )


@contextmanager
def explained(space: SearchSpace, inputs: Sequence[Any], *, first: bool) -> Iterator[None]:
    """Say what does not fit when the first batch breaks a layer or the loss; later batches pass errors on.

    Args:
        space: of the architectures.
        inputs: of the batch.
        first: whether nothing has been trained yet.

    Raises:
        ValueError: in place of torch's own error about shapes or indices.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        if not first:
            raise
        taken = [tuple(value.shape[1:]) for value in space.inputs(space.largest())]
        given = [tuple(value.shape[1:]) for value in inputs if isinstance(value, Tensor)]
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"the first training batch must fit the space and the task, but it broke them: {reason}; its inputs are "
            f"{given} each, examples of the space {taken}; make channels, lengths, vocabulary and classes agree in "
            "model.space, model.task and data"
        ) from error
