"""How much memory the activations of a graph network take."""

from typing import final

from torch import nn

from nas.costs import Cost
from search_spaces import Architecture, GraphSpace, SearchSpace
from trials import Direction

__all__ = ["BufferSize"]


@final
class BufferSize(Cost):
    """Bytes of the largest tensor that the network writes for the whole graph, at the bits of its site.

    What counts are inputs of linear maps, their outputs, learned coefficients of edges and aggregated features
    (``GraphSpace.activations_of``); by default not the features of the data, which are there anyway and sparse.

    Args:
        space: the search space.
        total: the sum over all tensors instead, as ``buffer_total``.
        data: count the features of the data too, as if they were dense.

    Raises:
        ValueError: the space is no graph space.
    """

    name = "buffer_size"
    unit = "byte"
    direction: Direction = "minimize"

    def __init__(self, space: SearchSpace, *, total: bool = False, data: bool = False) -> None:
        if not isinstance(space, GraphSpace):
            raise ValueError(f"BufferSize needs a GraphSpace, got {type(space).__name__}; leave it out of search.costs")
        self.space = space
        self.total = total
        self.data = data
        if total:
            self.name = "buffer_total"

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        """Return the bytes; ``model`` is not needed."""
        del model
        tensors = self.space.activations_of(architecture)
        sizes = [
            -(-values * bits // 8) for name, (values, bits) in tensors.items() if self.data or name != "block1.features"
        ]
        return float(sum(sizes) if self.total else max(sizes))
