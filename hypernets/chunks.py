"""Targets cut into chunks of one size, all made by one shared head."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypernets.target import Target, TensorSpec

__all__ = ["ChunkHead", "Piece"]


@final
@dataclass(frozen=True)
class Piece:
    """A run of chunks that makes a tensor, or one factor of it.

    Attributes:
        size: values used; the rest of the last chunk is dropped.
        first: number of its first chunk.
        chunks: number of chunks.
        index: number of the piece.
    """

    size: int
    first: int
    chunks: int
    index: int


@final
class ChunkHead(nn.Module):
    """Turns one feature vector per chunk into tensors. Chunks never cross tensors.

    Large matrices are products of two generated factors, ``U V^T`` with ``U`` (rows, rank) and ``V`` (columns, rank),
    which takes rank (rows + columns) values instead of rows x columns.

    Args:
        target: the tensors.
        width: length of the feature vectors.
        chunk: values per chunk.
        low_rank_above: tensors of two or more dimensions with more values than this are products.
        rank: of the products.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, target: Target, width: int, *, chunk: int, low_rank_above: int | None, rank: int) -> None:
        super().__init__()
        if min(chunk, rank, 1 if low_rank_above is None else low_rank_above) < 1:
            raise ValueError(f"chunk, rank and low_rank_above must be >= 1, got {chunk}, {rank}, {low_rank_above}")
        self.chunk, self.rank = chunk, rank
        self.pieces: dict[str, tuple[Piece, ...]] = {}
        first, index = 0, 0
        scales: list[float] = []
        for spec in target:
            product = low_rank_above is not None and len(spec.shape) > 1 and spec.numel > low_rank_above
            columns = spec.numel // max(spec.shape[0], 1) if spec.shape else 1
            sizes = [spec.shape[0] * rank, columns * rank] if product else [spec.numel]
            made = []
            for size in sizes:
                made.append(Piece(size, first, -(-size // chunk), index))
                first, index = first + made[-1].chunks, index + 1
                scales.append(0.0 if spec.role in {"bias", "norm_bias"} else math.sqrt(chunk / max(size, 1)))
            self.pieces[spec.name] = tuple(made)
        self.count = first
        self.scale = nn.Parameter(torch.tensor(scales))
        self.weight = nn.Parameter(torch.empty(chunk, width))
        nn.init.kaiming_normal_(self.weight, a=0.01, mode="fan_out")
        owners = [piece.index for made in self.pieces.values() for piece in made for _ in range(piece.chunks)]
        self._owners: Tensor
        self.register_buffer("_owners", torch.tensor(owners, dtype=torch.int64), persistent=False)

    def rows(self, specs: Sequence[TensorSpec]) -> slice | Tensor:
        """Return which chunks make some tensors, in order: a slice where they are neighbours."""
        runs = [(p.first, p.first + p.chunks) for spec in specs for p in self.pieces[spec.name]]
        if not runs:
            return slice(0, 0)
        if all(end == start for (_, end), (start, _) in itertools.pairwise(runs)):
            return slice(runs[0][0], runs[-1][1])
        return torch.cat([torch.arange(start, end) for start, end in runs]).to(self._owners.device)

    def forward(self, features: Tensor, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
        """Return name -> ``(K, *shape)`` from features ``(K, chunks of specs, width)``."""
        scale = self.scale[self._owners[self.rows(specs)]]
        values = F.linear(features * scale[:, None], self.weight)  # (K, chunks, chunk)
        pieces = [piece for spec in specs for piece in self.pieces[spec.name]]
        parts = torch.split(values, [piece.chunks for piece in pieces], dim=1)
        flat = [part.flatten(1)[:, : piece.size] for piece, part in zip(pieces, parts, strict=True)]
        made = iter(flat)
        return {spec.name: self._tensor(spec, [next(made) for _ in self.pieces[spec.name]]) for spec in specs}

    def _tensor(self, spec: TensorSpec, factors: Sequence[Tensor]) -> Tensor:
        sets = len(factors[0])
        if len(factors) == 1:
            return factors[0].reshape(sets, *spec.shape)
        left, right = (factor.reshape(sets, factor.shape[1] // self.rank, self.rank) for factor in factors)
        return (left @ right.mT).reshape(sets, *spec.shape)

    @torch.no_grad()
    def widen(self, extra: int) -> None:
        """Read features that are longer by ``extra``, with weights of zero."""
        self.weight = nn.Parameter(torch.cat([self.weight, self.weight.new_zeros(self.chunk, extra)], dim=1))

    @torch.no_grad()
    def rescale(self, name: str, factor: float) -> None:
        """Multiply all values of one tensor; of a product, through its left factor."""
        self.scale[self.pieces[name][0].index] *= factor
