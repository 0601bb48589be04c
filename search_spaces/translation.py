"""Encoder-decoder transformers."""

from typing import Literal, final

from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.attention import attended, example_tokens
from search_spaces.choice import Candidate
from search_spaces.space import SearchSpace
from search_spaces.transformer import TokenTransformer
from search_spaces.transformer_stack import MIXED, Stack, StackStyle, stack_blocks, stack_choices

__all__ = ["EncoderDecoder", "TranslationSpace"]


@final
class EncoderDecoder(nn.Module):
    """A decoder that attends to what an encoder made of the source.

    Args:
        encoder: source tokens -> ``(B, S, source_width)``.
        decoder: target tokens and that -> logits.
        padding: token that fills short sources.
    """

    def __init__(self, encoder: TokenTransformer, decoder: TokenTransformer, *, padding: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.padding = padding

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map ``(B, S)`` source and ``(B, T)`` target tokens to logits ``(B, T, vocabulary)`` of the next target token.

        Padding of the target stands at its end, where the causal decoder cannot see it.
        """
        logits: Tensor = self.decoder(target, self.encoder(source), attended(source, self.padding))
        return logits


@final
class TranslationSpace(SearchSpace):
    """Encoder-decoder transformers with the choices of HAT (Wang et al., arXiv 2005.14187).

    Choices are ``encoder.width``, ``encoder.depth``, ``encoder.layer{i}.heads``, ``encoder.layer{i}.ffn_ratio`` (or
    ``ffn_width``), the same of ``decoder``, and ``decoder.layer{i}.cross_heads``. Modules: ``encoder.*`` and
    ``decoder.*``, each as in :class:`TransformerSpace`, and ``decoder.blocks.{i}.{norm_cross,cross}``.

    Differs from the paper: pre-norm blocks, heads of one size, and every decoder block attends to the last encoder
    block alone.

    Args:
        vocabulary: number of different tokens, one vocabulary for both languages.
        context: the most tokens of a source or a target, and those of the example inputs.
        encoder: candidates of the encoder.
        decoder: candidates of the decoder, ``cross_heads`` included.
        head_dim: features of a head.
        padding: token that fills short sentences.
        tie_embeddings: whether the output layer is the decoder's table of token vectors.
        per_layer: whether every block has choices of its own.
        positions: ``"learned"`` vectors, or ``"rotary"`` queries and keys of self-attention.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.
        dropout: of embeddings, attention weights and residual branches, in training.

    Raises:
        ValueError: a size is below one, ``cross_heads`` are missing or given to the encoder, or ``padding`` no token.
    """

    bare = True

    def __init__(
        self,
        vocabulary: int,
        context: int,
        *,
        encoder: Stack,
        decoder: Stack,
        head_dim: int = 32,
        padding: int = 0,
        tie_embeddings: bool = True,
        per_layer: bool = True,
        positions: Literal["learned", "rotary"] = "learned",
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self.encoder = encoder
        self.decoder = decoder
        self.head_dim = head_dim
        self.padding = padding
        self.tie_embeddings = tie_embeddings
        self.per_layer = per_layer
        self.positions = positions
        self.activation = activation
        self.dropout = dropout
        if vocabulary < 2 or context < 1 or not 0 <= padding < vocabulary:
            raise ValueError(
                "TranslationSpace needs vocabulary >= 2, context >= 1 and padding to be one of the tokens, got "
                f"{vocabulary=}, {context=}, {padding=}"
            )
        if encoder.cross_heads or not decoder.cross_heads:
            raise ValueError(
                "cross_heads are the decoder's heads of attention to the encoder: give candidates to decoder and none "
                f"to encoder, got encoder.cross_heads={encoder.cross_heads}, decoder.cross_heads={decoder.cross_heads}"
            )
        self._style = StackStyle(head_dim, per_layer, positions, activation, dropout)
        given = [
            *stack_choices(encoder, self._style, "encoder."),
            *stack_choices(decoder, self._style, "decoder."),
        ]
        self.choices = tuple(choice for choice in given if choice.size > 1)
        self._fixed: dict[str, Candidate] = {c.name: c.candidates[0] for c in given if c.size == 1}

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static :class:`EncoderDecoder`."""
        values: dict[str, Candidate] = self._fixed | dict(architecture)
        source_width, width = int(values["encoder.width"]), int(values["decoder.width"])
        learned = self.positions == "learned"
        encoder = TokenTransformer(
            stack_blocks(self.encoder, self._style, values, "encoder."),
            source_width,
            vocabulary=self.vocabulary,
            context=self.context,
            outputs=0,
            learned_positions=learned,
            padding=self.padding,
            dropout=self.dropout,
        )
        decoder = TokenTransformer(
            stack_blocks(self.decoder, self._style, values, "decoder.", causal=True, source_width=source_width),
            width,
            vocabulary=self.vocabulary,
            context=self.context,
            outputs=self.vocabulary,
            learned_positions=learned,
            tied=self.tie_embeddings,
            dropout=self.dropout,
        )
        return EncoderDecoder(encoder, decoder, padding=self.padding)

    def mixed(self) -> tuple[str, ...]:
        """Return the feed-forward pair of every block (Mixture-of-Supernets, arXiv 2306.04845)."""
        return MIXED

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return source and target tokens, both ``(batch_size, context)``, that count upwards."""
        del architecture
        tokens = example_tokens(self.vocabulary, batch_size, self.context)
        return tokens, tokens.clone()
