"""Which dimensions of the inputs of an exported module stay open."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["described", "open_dims", "resized"]


def open_dims(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Mapping[int, str], ...]:
    """Return for every input the dimensions of any size, by name; equal names are equal sizes.

    A module says so in an attribute of this name, as graph networks do, whose nodes and edges are two; of any other
    it is the first dimension of every input, the batch.
    """
    given: tuple[Mapping[int, str], ...] | None = getattr(module, "open_dims", None)
    return tuple({0: "batch"} for _ in inputs) if given is None else given


def resized(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return other inputs, every open dimension larger by two: random numbers, or entries again where integers."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for tensor, dims in zip(inputs, open_dims(module, inputs), strict=True):
        for dim in dims:
            size = tensor.shape[dim]
            tensor = tensor.index_select(dim, torch.arange(size + 2) % size)
        if tensor.is_floating_point():
            tensor = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        made.append(tensor)
    return tuple(made)


def described(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[list[int | str]]:
    """Return the shapes of the inputs, open dimensions by name."""
    return [
        [dims.get(dim, size) for dim, size in enumerate(tensor.shape)]
        for tensor, dims in zip(inputs, open_dims(module, inputs), strict=True)
    ]
