"""Static building blocks of transformers; nothing here is elastic."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.bare import layer
from search_spaces.layers import activation as make_activation

__all__ = ["Attention", "BranchEnd", "FeedForward", "Table", "TransformerBlock", "attended", "example_tokens", "rotate"]


@final
class Table(nn.Embedding):
    """Vectors by index, initialised N(0, 0.1^2), which suits a tied output layer too."""

    def reset_parameters(self) -> None:
        """Draw the vectors."""
        nn.init.normal_(self.weight, std=0.1)


@final
class BranchEnd(nn.Linear):
    """The last layer of a residual branch, initialised N(0, 0.02^2): every block starts near its shortcut."""

    def reset_parameters(self) -> None:
        """Draw the matrix; the bias is zero."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


def rotate(x: Tensor, base: float = 10_000.0) -> Tensor:
    """Turn pairs of features by an angle that grows with the position (rotary embedding, arXiv 2104.09864, Eq. 34).

    With ``d`` features, feature ``i`` and feature ``i + d/2`` of position ``t`` are a pair, turned by
    ``t * base^(-2i/d)``. Products of rotated queries and keys depend on the distance of their positions alone.

    Args:
        x: ``(..., T, d)``, ``d`` even.
        base: of the wavelengths.
    """
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * rates
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def attended(tokens: Tensor, padding: int) -> Tensor:
    """Return which of ``(B, T)`` tokens attention may look at: all but padding, and always the first.

    The first is never padding in a real example; with it no row of a softmax is empty.
    """
    kept = tokens != padding
    return torch.cat((torch.ones_like(kept[:, :1]), kept[:, 1:]), dim=1)


def example_tokens(vocabulary: int, batch_size: int, length: int) -> Tensor:
    """Return ``(batch_size, length)`` tokens that count upwards, so that examples differ and none is all padding."""
    return (torch.arange(1, batch_size * length + 1) % vocabulary).view(batch_size, length)


@final
class Attention(nn.Module):
    """Multi-head attention ``out(concat_h softmax(Q_h K_h^T / sqrt(d)) V_h)`` (arXiv 1706.03762, Eq. 1).

    Every head has ``head_dim`` features whatever the width, so that fewer heads are a prefix of more
    (AutoFormer, arXiv 2107.00651). Queries, keys and values have matrices of their own. Keys have no bias: softmax does
    not see one.

    Args:
        width: features of the queries' input and of the output.
        heads: number of heads.
        head_dim: features of a head.
        source_width: features of what is attended to, where that is another sequence.
        causal: whether position ``t`` sees positions up to ``t`` only.
        rotary: whether queries and keys are rotated by position.
        dropout: of the attention weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        *,
        source_width: int | None = None,
        causal: bool = False,
        rotary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.causal = causal
        self.rotary = rotary
        self.dropout = dropout
        inner = heads * head_dim
        source_width = width if source_width is None else source_width
        self.query = layer(nn.Linear, width, inner)
        self.key = layer(nn.Linear, source_width, inner, bias=False)
        self.value = layer(nn.Linear, source_width, inner)
        self.out = layer(BranchEnd, inner, width)

    def forward(self, x: Tensor, source: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """Map ``(B, T, width)`` to the same shape.

        Args:
            x: what asks.
            source: ``(B, S, source_width)`` that is looked at; ``x`` itself by default.
            kept: ``(B, S)``, true where ``source`` may be looked at.
        """
        source = x if source is None else source
        query, key, value = self._split(self.query(x)), self._split(self.key(source)), self._split(self.value(source))
        if self.rotary:
            query, key = rotate(query), rotate(key)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if kept is None else kept[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
        )
        outputs: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return outputs

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_dim).transpose(1, 2)  # (B, heads, T, head_dim)

    def extra_repr(self) -> str:
        """Return what the shapes of the layers do not say."""
        return f"heads={self.heads}, head_dim={self.head_dim}, causal={self.causal}, rotary={self.rotary}"


@final
class FeedForward(nn.Module):
    """``fc2(act(fc1(x)))`` at every position.

    Args:
        width: features of the input and the output.
        hidden: features between.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.
    """

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = layer(nn.Linear, width, hidden)
        self.act = make_activation(activation)
        self.fc2 = layer(BranchEnd, hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        outputs: Tensor = self.fc2(self.act(self.fc1(x)))
        return outputs


@final
class TransformerBlock(nn.Module):
    """Pre-norm residual block (Xiong et al., arXiv 2002.04745, Table 1).

    ``x + attention(norm1(x))``, then ``x + cross(norm_cross(x), source)`` where there is a source, then
    ``x + ffn(norm2(x))``.

    Args:
        width: features of the residual stream.
        heads: of self-attention.
        hidden: features inside the feed-forward part.
        head_dim: features of a head.
        cross_heads: of attention to a source; 0 for none.
        source_width: features of that source.
        causal: whether self-attention looks back only.
        rotary: whether self-attention rotates by position.
        activation: of the feed-forward part.
        dropout: of attention weights and of every residual branch.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        head_dim: int,
        cross_heads: int = 0,
        source_width: int = 0,
        causal: bool = False,
        rotary: bool = False,
        activation: str = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = layer(nn.LayerNorm, width)
        self.attention = Attention(width, heads, head_dim, causal=causal, rotary=rotary, dropout=dropout)
        self.has_cross = cross_heads > 0
        if cross_heads:
            self.norm_cross = layer(nn.LayerNorm, width)
            self.cross = Attention(width, cross_heads, head_dim, source_width=source_width, dropout=dropout)
        self.norm2 = layer(nn.LayerNorm, width)
        self.ffn = FeedForward(width, hidden, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        kept: Tensor | None = None,
        source: Tensor | None = None,
        source_kept: Tensor | None = None,
    ) -> Tensor:
        """Map ``(B, T, width)`` to the same shape.

        Args:
            x: the residual stream.
            kept: ``(B, T)``, true where ``x`` may be looked at.
            source: ``(B, S, source_width)`` of an encoder.
            source_kept: ``(B, S)``, true where the source may be looked at.
        """
        x = x + self.dropout(self.attention(self.norm1(x), kept=kept))
        if self.has_cross:
            x = x + self.dropout(self.cross(self.norm_cross(x), source, source_kept))
        x = x + self.dropout(self.ffn(self.norm2(x)))
        return x
