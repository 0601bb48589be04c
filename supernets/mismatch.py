"""Data that a space or a task cannot take, told from a defect at the first batch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from search_spaces import FactorySpace, GraphSpace, QuantizedSpace, SearchSpace
from supernets.tasks import Task

__all__ = ["check_batch", "check_data", "check_examples", "explained", "inputs_of", "without_bits"]


def without_bits(space: SearchSpace) -> SearchSpace:
    """Return the space that says what networks are like: of a quantised space the one inside."""
    return space.space if isinstance(space, QuantizedSpace) else space


def check_data(space: SearchSpace, data: Any) -> None:
    """Refuse data that the networks do not take, or whose size is not the one that costs are counted for.

    What both say of themselves in public attributes is compared, and what either does not say is taken.

    Args:
        space: of the networks: its ``vocabulary``, ``context`` and ``num_classes`` must be enough for the data, its
            ``nodes``, ``edges``, ``in_features``, ``in_channels``, ``resolution`` and ``image_size`` those of the data.
        data: the data module, if any, set up: ``vocabulary_size``, ``max_length``, ``num_classes``, ``nodes``,
            ``edges``, ``in_features`` and ``image_shape`` (channels, height, width).

    Raises:
        ValueError: saying which field of the space must have which value.
    """
    space = without_bits(space)
    shape = getattr(data, "image_shape", None)
    channels, height, width = shape if isinstance(shape, tuple) and len(shape) == 3 else (None, None, None)
    side = height if height == width else None
    for field, given, unit in (
        ("vocabulary", getattr(data, "vocabulary_size", None), "different tokens"),
        ("context", getattr(data, "max_length", None), "tokens"),
        ("num_classes", getattr(data, "num_classes", None), "classes"),
    ):
        known = getattr(space, field, None)
        if isinstance(known, int) and isinstance(given, int) and given > known:
            raise ValueError(
                f"{type(space).__name__}.{field} must be at least {given}, the {unit} of {type(data).__name__}, got "
                f"{known}; raise it in model.space, or make the data smaller"
            )
    graph = data if isinstance(space, GraphSpace) else None  # of other spaces, ``nodes`` are something else
    for field, given, unit in (
        ("in_features", getattr(data, "in_features", None), "features of each example"),
        ("nodes", getattr(graph, "nodes", None), "nodes of the graph"),
        ("edges", getattr(graph, "edges", None), "edges of the graph, each direction counted"),
        ("in_channels", channels, "channels of the images"),
        ("resolution", side, "side of the images"),
        ("image_size", side, "side of the images"),
    ):
        known = getattr(space, field, None)
        if isinstance(known, int) and isinstance(given, int) and given != known:
            raise ValueError(
                f"{type(space).__name__}.{field} must be {given}, the {unit} of {type(data).__name__}, got {known}; "
                "correct it in model.space, or costs would be those of another size"
            )


def check_examples(space: SearchSpace, device: torch.device) -> None:
    """Refuse a space of the user's model whose smallest network does not run on the example inputs.

    Costs, exports and the checks of weight sources run networks on them, but training does not.

    Args:
        space: of the networks, without bits.
        device: of the training.

    Raises:
        ValueError: saying what went wrong.
    """
    if not isinstance(space, FactorySpace):
        return
    smallest = space.smallest()
    with isolate_rng(), torch.no_grad():
        module = space.build(smallest).to(device).eval()
        try:
            module(*(tensor.to(device) for tensor in space.inputs(smallest, 2)))
        except Exception as error:  # whatever the user's forward makes of wrong inputs
            raise ValueError(
                "model.space: networks must run on the inputs that the space gives as examples, but "
                f"{type(module).__name__} broke: {error!r}; correct input_shape, input_dtype or example_inputs"
            ) from error


def check_batch(space: SearchSpace, inputs: Sequence[Any]) -> None:
    """Refuse a batch of a larger graph than the one that costs are counted for.

    Args:
        space: of the architectures; of other spaces than ``GraphSpace`` any batch is taken.
        inputs: of the first batch.

    Raises:
        ValueError: saying the numbers of nodes or edges.
    """
    space = without_bits(space)
    if not isinstance(space, GraphSpace) or len(inputs) != 2:
        return
    for field, known, given in (
        ("nodes", space.nodes, inputs[0].shape[0]),
        ("edges", space.edges, inputs[1].shape[1]),
    ):
        if given > known:
            raise ValueError(
                f"GraphSpace.{field} must be at least {given}, the {field} of the first training batch, got {known}; "
                "correct it in model.space, or the sizes of buffers would be those of another graph"
            )


def inputs_of(task: Task, batch: Any) -> tuple[Tensor, ...]:
    """Return what ``task`` reads from a batch.

    Raises:
        ValueError: it cannot read such a batch; the message says what it was given.
    """
    try:
        return task.inputs(batch)
    except (LookupError, TypeError, AttributeError) as error:
        kind = type(batch).__name__
        given = f"{kind} of {sorted(map(str, batch))}" if isinstance(batch, Mapping) else kind
        if isinstance(batch, list | tuple):
            given = f"{kind} of {[type(part).__name__ for part in batch]}"
        raise ValueError(
            f"model.task: {type(task).__name__} cannot read the batches of the data, each a {given}: {error!r}; let "
            f"the data give the batches that {type(task).__name__} describes, or write a task of your own"
        ) from error


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
