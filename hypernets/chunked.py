"""Chunked hypernetworks: one small network makes a target of any size, a chunk at a time."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from hypernets.base import HyperNetwork
from hypernets.card import HyperCard
from hypernets.chunks import ChunkHead
from hypernets.dense import trunk
from hypernets.fields import Field
from hypernets.parametrization import Parametrization
from hypernets.target import Target, TensorSpec

__all__ = ["ChunkedHyperNetwork"]


@final
class ChunkedHyperNetwork(HyperNetwork):
    """A trunk shared by all chunks, a learned vector for each, and one head (chunking as in arXiv 1906.00695).

    The trunk reads the condition once: ``h = trunk(E(condition))``. Chunk c is ``W phi(A (h * v_c))`` with its own
    vector ``v_c``, and shared ``A`` and ``W``; ``phi`` is leaky ReLU.

    Differs from the paper: chunk vectors multiply the features instead of being concatenated to the condition, so the
    trunk runs once for all chunks, and without encoding and residual the output is proportional to the condition, as
    that of a dense hypernetwork is.

    >>> from hypernets import Unit
    >>> hypernet = ChunkedHyperNetwork(Target.of(nn.Linear(300, 200)), {"strength": Unit()}, hidden=(16, 32))
    >>> hypernet.generate({"strength": 0.5})["weight"].shape
    torch.Size([1, 200, 300])

    Args:
        target: what is generated.
        conditions: name -> field.
        hidden: widths of the trunk; the last is that of the chunk vectors.
        chunk: values per chunk.
        low_rank_above: tensors of two or more dimensions with more values than this are products of two generated
            factors; ``None`` for none.
        rank: of the products.
        parametrization: the default is magnitude-invariant.
    """

    def __init__(
        self,
        target: Target,
        conditions: Mapping[str, Field],
        *,
        hidden: Sequence[int] = (16, 64),
        chunk: int = 512,
        low_rank_above: int | None = 1_000_000,
        rank: int = 8,
        parametrization: Parametrization | None = None,
    ) -> None:
        super().__init__(target, conditions, parametrization=parametrization)
        self.hidden, self.chunk, self.low_rank_above, self.rank = tuple(hidden), chunk, low_rank_above, rank
        self.trunk = trunk(self.encoder.width, self.hidden)
        width = self.hidden[-1]
        self.head = ChunkHead(target, width, chunk=chunk, low_rank_above=low_rank_above, rank=rank)
        self.table = nn.Parameter(torch.randn(self.head.count, width))
        self.mix = trunk(width, (width,))
        self.finish()

    @property
    def card(self) -> HyperCard:  # noqa: D102
        return HyperCard.of(
            type(self).__name__,
            self.conditions.values(),
            outputs="chunk-wise",
            architecture="mlp",
            reference="von Oswald et al.: Continual learning with hypernetworks, arXiv 1906.00695",
        )

    def emit(  # noqa: D102
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        del generator
        features = self.trunk(code)[:, None] * self.table[self.head.rows(specs)]  # (K, chunks, width)
        made: dict[str, Tensor] = self.head(self.mix(features), specs)
        return made

    def rescale(self, name: str, factor: float) -> None:  # noqa: D102
        self.head.rescale(name, factor)
