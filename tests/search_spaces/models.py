"""Models as a user would write them: they know nothing of search spaces."""

import torch
from torch import Tensor, nn


class UserCNN(nn.Module):
    """A batch-normalised CNN whose depth is the length of a list."""

    def __init__(self, widths: list[int], num_classes: int = 3, kernel: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = 1
        for width in widths:
            self.blocks.append(
                nn.Sequential(nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU())
            )
            channels = width
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class TiedLanguageModel(nn.Module):
    """Token embedding shared with the output layer, a recurrent core and attention."""

    def __init__(self, width: int, vocabulary: int = 11, core: str = "lstm") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[core]
        self.core = kind(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.output = nn.Linear(width, vocabulary, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("positions", torch.arange(4.0), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x, _ = self.core(x)
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.output(x)


class PackedAttention(nn.Module):
    """Query, key and value in one linear layer, heads of a fixed size, as in many vision transformers."""

    def __init__(self, heads: int, head_dim: int = 2, width: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v  # (B, heads, L, head_dim)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class GroupedConv(nn.Module):
    """A convolution of two groups whose width is chosen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, width, 1)
        self.grouped = nn.Conv1d(width, width, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.enter(x))


class Shrinking(nn.Module):
    """Its tensors get smaller as the argument gets larger."""

    def __init__(self, compression: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 12 // compression)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Deaf(nn.Module):
    """Ignores one of its arguments."""

    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def not_a_module(width: int) -> int:
    """Return something that is no module."""
    return width


class Activated(nn.Module):
    """Keeps the function that its argument names, as ``self.act = getattr(F, act)`` does."""

    def __init__(self, act: str = "relu") -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.act = getattr(nn.functional, act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


class Relations(nn.Module):
    """A layer of a graph network: features of the nodes and pairs of connected nodes."""

    open_dims = ({0: "nodes"}, {1: "edges"})

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.own, self.others = nn.Linear(3, hidden), nn.Linear(3, hidden)

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        return self.own(features).index_add(0, edges[1], self.others(features)[edges[0]])


def relations(batch_size: int) -> tuple[Tensor, ...]:
    return torch.zeros(batch_size, 3), torch.zeros(2, 2 * batch_size, dtype=torch.int64)
