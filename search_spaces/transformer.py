"""Transformers over tokens: language models and text classifiers."""

from typing import Literal, final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.attention import Table, attended, example_tokens
from search_spaces.bare import layer
from search_spaces.choice import Candidate
from search_spaces.space import SearchSpace
from search_spaces.transformer_stack import MIXED, Stack, StackStyle, stack_blocks, stack_choices

__all__ = ["TokenTransformer", "TransformerSpace"]


@final
class TokenTransformer(nn.Module):
    """Token vectors, positions, pre-norm blocks, a last norm and, where asked, an output layer.

    Args:
        blocks: the blocks, of one width.
        width: features of the residual stream.
        vocabulary: number of different tokens.
        context: the most tokens of an input.
        outputs: features of the output layer; 0 returns the normed residual stream.
        learned_positions: whether a vector for each position is added.
        tied: whether the output layer is the table of token vectors.
        pooled: whether the output layer sees the mean over tokens instead of every token.
        padding: token that is not looked at and not averaged; ``None``: all are.
        dropout: of the sum of token and position vectors.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        width: int,
        *,
        vocabulary: int,
        context: int,
        outputs: int,
        learned_positions: bool,
        tied: bool = False,
        pooled: bool = False,
        padding: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.context = context
        self.pooled = pooled
        self.padding = padding
        self.has_position = learned_positions
        self.has_head = outputs > 0
        self.embedding = layer(Table, vocabulary, width)
        if learned_positions:
            self.position = layer(Table, context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks
        self.norm = layer(nn.LayerNorm, width)
        if outputs:
            self.head = layer(nn.Linear, width, outputs, bias=not tied)
            if tied:
                self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, source: Tensor | None = None, source_kept: Tensor | None = None) -> Tensor:
        """Map ``(B, T)`` tokens to ``(B, T, outputs)``, or ``(B, outputs)`` where pooled.

        Args:
            tokens: indices.
            source: ``(B, S, source_width)`` for blocks that attend to an encoder.
            source_kept: ``(B, S)``, true where the source may be looked at.

        Raises:
            ValueError: there are more than ``context`` tokens.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise ValueError(
                f"at most {self.context} tokens fit, got {length}; raise the context of the space or shorten the data"
            )
        x: Tensor = self.embedding(tokens)
        if self.has_position:
            x = x + self.position(torch.arange(length, device=tokens.device))
        x = self.dropout(x)
        kept = None if self.padding is None else attended(tokens, self.padding)
        for block in self.blocks:
            x = block(x, kept, source, source_kept)
        x = self.norm(x)
        if self.pooled:
            if kept is None:
                x = x.mean(1)
            else:
                shares = kept.to(x.dtype)
                x = (x * shares[:, :, None]).sum(1) / shares.sum(1, keepdim=True)
        return self.head(x) if self.has_head else x


@final
class TransformerSpace(SearchSpace):
    """Transformers over tokens ``(B, context)``: decoder-only language models, or encoders that classify.

    Choices are ``width``, ``depth`` and, for every block, ``layer{i}.heads`` and ``layer{i}.ffn_ratio`` (or
    ``ffn_width``). Heads keep their size and their number is elastic (AutoFormer, arXiv 2107.00651), so every tensor of
    a smaller network is a prefix. Modules: ``embedding``, ``position``, ``blocks.{i}.norm1``,
    ``blocks.{i}.attention.{query,key,value,out}``, ``blocks.{i}.norm2``, ``blocks.{i}.ffn.{fc1,fc2}``, ``norm``,
    ``head``.

    Args:
        vocabulary: number of different tokens.
        context: the most tokens of an input, and those of the example inputs.
        widths: ascending candidates for the features of the residual stream.
        depths: ascending candidates for the number of blocks.
        heads: ascending candidates for the heads of a block.
        ffn_ratios: ascending candidates for the hidden features of a block, as a multiple of the width.
        ffn_widths: the same in absolute numbers, instead of ``ffn_ratios``.
        head_dim: features of a head.
        num_classes: ``None``: a language model, causal, whose outputs are logits ``(B, T, vocabulary)`` of the next
            token. A number: an encoder whose outputs are logits ``(B, num_classes)``, from the mean over tokens.
        padding: token that an encoder neither looks at nor averages; ``None``: there is none.
        tie_embeddings: whether a language model's output layer is its table of token vectors (arXiv 1608.05859).
        per_layer: whether every block has choices of its own; otherwise ``heads`` and ``ffn_ratio`` are those of all.
        positions: ``"learned"`` vectors, or ``"rotary"`` queries and keys (arXiv 2104.09864).
        activation: one of ``search_spaces.layers.ACTIVATIONS``.
        dropout: of embeddings, attention weights and residual branches, in training.

    Raises:
        ValueError: a size is below one, candidates do not ascend, or options contradict each other.

    >>> space = TransformerSpace(65, 32, widths=(32, 48), depths=(1, 2), heads=(1, 2), ffn_ratios=(2, 4), head_dim=16)
    >>> space.size(), dict(space.smallest())
    (40, {'depth': 1, 'layer1.ffn_ratio': 2, 'layer1.heads': 1, 'width': 32})
    """

    bare = True

    def __init__(
        self,
        vocabulary: int,
        context: int,
        *,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        ffn_ratios: tuple[float, ...] = (),
        ffn_widths: tuple[int, ...] = (),
        head_dim: int = 32,
        num_classes: int | None = None,
        padding: int | None = None,
        tie_embeddings: bool = True,
        per_layer: bool = True,
        positions: Literal["learned", "rotary"] = "learned",
        activation: str = "gelu",
        dropout: float = 0.0,
    ) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self.widths = tuple(widths)
        self.depths = tuple(depths)
        self.heads = tuple(heads)
        self.ffn_ratios = tuple(ffn_ratios)
        self.ffn_widths = tuple(ffn_widths)
        self.head_dim = head_dim
        self.num_classes = num_classes
        self.padding = padding
        self.tie_embeddings = tie_embeddings
        self.per_layer = per_layer
        self.positions = positions
        self.activation = activation
        self.dropout = dropout
        if vocabulary < 2 or context < 1 or (num_classes is not None and num_classes < 2):
            raise ValueError(
                "TransformerSpace needs vocabulary >= 2, context >= 1 and num_classes >= 2 (or null for a language "
                f"model), got {vocabulary=}, {context=}, {num_classes=}"
            )
        if padding is not None and (num_classes is None or not 0 <= padding < vocabulary):
            raise ValueError(
                f"padding must be a token of the {vocabulary} and belongs to classifiers (a language model never looks "
                f"ahead at it), got {padding=}, {num_classes=}; leave it out"
            )
        self._stack = Stack(self.widths, self.depths, self.heads, self.ffn_ratios, self.ffn_widths)
        self._style = StackStyle(head_dim, per_layer, positions, activation, dropout)
        given = stack_choices(self._stack, self._style)
        self.choices = tuple(choice for choice in given if choice.size > 1)
        self._fixed: dict[str, Candidate] = {c.name: c.candidates[0] for c in given if c.size == 1}

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static :class:`TokenTransformer`."""
        values: dict[str, Candidate] = self._fixed | dict(architecture)
        model = self.num_classes is None
        return TokenTransformer(
            stack_blocks(self._stack, self._style, values, causal=model),
            int(values["width"]),
            vocabulary=self.vocabulary,
            context=self.context,
            outputs=self.vocabulary if self.num_classes is None else self.num_classes,
            learned_positions=self.positions == "learned",
            tied=model and self.tie_embeddings,
            pooled=not model,
            padding=self.padding,
            dropout=self.dropout,
        )

    def mixed(self) -> tuple[str, ...]:
        """Return the feed-forward pair of every block (Mixture-of-Supernets, arXiv 2306.04845)."""
        return MIXED

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return tokens ``(batch_size, context)`` that count upwards, so that examples differ."""
        del architecture
        return (example_tokens(self.vocabulary, batch_size, self.context),)
