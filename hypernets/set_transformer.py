"""Set Transformers: summaries of data sets by attention (Lee et al., ICML 2019, arXiv 1810.00825)."""

from typing import final

import torch
from torch import Tensor, nn

from hypernets.dataset_encoders import DatasetEncoder, split_classes

__all__ = ["AttentionBlock", "InducedBlock", "SetTransformer"]


@final
class AttentionBlock(nn.Module):
    """``MAB(X, Y) = LN(H + relu(W H))`` with ``H = LN(X + attention(X, Y, Y))`` (Sec. 3.1).

    Args:
        width: of the vectors.
        heads: of the attention; must divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.merge, self.after = nn.Linear(width, width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, queries: Tensor, values: Tensor, there: Tensor | None = None) -> Tensor:
        """Let ``(B, q, width)`` attend to ``(B, v, width)``, of which ``there`` ``(B, v)`` says what exists."""
        query, key, value = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.query, queries), (self.key, values), (self.value, values))
        )
        mask = None if there is None else there[:, None, None, :]
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        hidden = self.first(queries + self.merge(seen))
        found: Tensor = self.second(hidden + self.after(hidden).relu())
        return found


@final
class InducedBlock(nn.Module):
    """``ISAB(X) = MAB(X, MAB(I, X))`` with learned points I: attention within a set in linear time (Sec. 3.1).

    Args:
        width: of the vectors.
        heads: of the attention.
        points: number of learned points.
    """

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(1, points, width) / width**0.5)
        self.gather, self.spread = AttentionBlock(width, heads), AttentionBlock(width, heads)

    def forward(self, values: Tensor, there: Tensor | None = None) -> Tensor:
        """Map ``(B, v, width)``, of which ``there`` ``(B, v)`` exist, to the same shape."""
        gathered = self.gather(self.points.expand(len(values), -1, -1), values, there)
        found: Tensor = self.spread(values, gathered)
        return found


@final
class SetTransformer(DatasetEncoder):
    """Attends to the examples of each class, pools them to one vector, then attends to the classes.

    Every class vector gets a learned one of its position, since outputs follow the order of classes.

    Args:
        size: number of features.
        classes: number of classes.
        width: length of the summary.
        hidden: width of the attention.
        heads: of the attention.
        points: learned points of the blocks.
    """

    def __init__(
        self, size: int, classes: int, width: int, *, hidden: int = 64, heads: int = 4, points: int = 8
    ) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(size, hidden)
        self.within = nn.ModuleList(InducedBlock(hidden, heads, points) for _ in range(2))
        self.seed = nn.Parameter(torch.randn(1, 1, hidden) / hidden**0.5)
        self.pool = AttentionBlock(hidden, heads)
        self.place = nn.Parameter(torch.randn(classes, hidden) / hidden**0.5)
        self.between = AttentionBlock(hidden, heads)
        self.whole = nn.Linear(classes * hidden, width)

    def forward(self, features: Tensor, members: Tensor) -> Tensor:
        """Return the summaries ``(K, width)``."""
        found, there = split_classes(features, members)  # (K, classes, most, size)
        sets, classes, most, _ = found.shape
        values, exists = self.enter(found.flatten(0, 1)), there.reshape(sets * classes, most)
        for block in self.within:
            values = block(values, exists)
        pooled = self.pool(self.seed.expand(len(values), -1, -1), values, exists)  # (K * classes, 1, hidden)
        across = pooled.reshape(sets, classes, -1) + self.place
        summary: Tensor = self.whole(self.between(across, across).flatten(1))
        return summary
