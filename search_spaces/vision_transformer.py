"""Vision transformers."""

from typing import Literal, final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.attention import Table
from search_spaces.bare import layer
from search_spaces.choice import Candidate
from search_spaces.space import SearchSpace
from search_spaces.transformer_stack import MIXED, Stack, StackStyle, stack_blocks, stack_choices

__all__ = ["VisionTransformer", "VisionTransformerSpace"]


@final
class VisionTransformer(nn.Module):
    """Patches, positions, pre-norm blocks, a norm, the mean over patches and a linear classifier.

    Args:
        blocks: the blocks, of one width.
        width: features of the residual stream.
        in_channels: channels of an image.
        image_size: its height and width, in pixels.
        patch_size: side of a patch, in pixels.
        num_classes: number of logits.
        learned_positions: whether a vector for each patch is added.
        dropout: of the sum of patch and position vectors.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        width: int,
        *,
        in_channels: int,
        image_size: int,
        patch_size: int,
        num_classes: int,
        learned_positions: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.has_position = learned_positions
        self.embedding = layer(nn.Conv2d, in_channels, width, patch_size, patch_size)
        if learned_positions:
            self.position = layer(Table, (image_size // patch_size) ** 2, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks
        self.norm = layer(nn.LayerNorm, width)
        self.head = layer(nn.Linear, width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``(B, in_channels, image_size, image_size)`` to logits ``(B, num_classes)``."""
        x: Tensor = self.embedding(images).flatten(2).transpose(1, 2)  # (B, patches, width)
        if self.has_position:
            x = x + self.position(torch.arange(x.shape[1], device=x.device))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


@final
class VisionTransformerSpace(SearchSpace):
    """Image classifiers that attend over patches (Dosovitskiy et al., arXiv 2010.11929) with the choices of AutoFormer.

    Choices and modules are those of :class:`TransformerSpace`; ``embedding`` is a convolution that reads one patch at a
    time. Differs from the papers: the classifier sees the mean over patches, not a token of its own.

    Args:
        num_classes: number of logits.
        image_size: height and width of the images, in pixels.
        patch_size: side of a patch, in pixels; divides ``image_size``.
        widths: ascending candidates for the features of the residual stream.
        depths: ascending candidates for the number of blocks.
        heads: ascending candidates for the heads of a block.
        ffn_ratios: ascending candidates for the hidden features of a block, as a multiple of the width.
        ffn_widths: the same in absolute numbers, instead of ``ffn_ratios``.
        head_dim: features of a head.
        in_channels: channels of the images.
        per_layer: whether every block has choices of its own; otherwise ``heads`` and ``ffn_ratio`` are those of all.
        positions: ``"learned"`` vectors, or ``"rotary"`` queries and keys over patches in reading order.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.
        dropout: of embeddings, attention weights and residual branches, in training.

    Raises:
        ValueError: a size is below one, candidates do not ascend, or patches do not tile the image.

    >>> space = VisionTransformerSpace(
    ...     10, 8, 2, widths=(32, 48), depths=(1, 2), heads=(1, 2), ffn_ratios=(2,), head_dim=16, in_channels=1
    ... )
    >>> space.size(), dict(space.largest())
    (12, {'depth': 2, 'layer1.heads': 2, 'layer2.heads': 2, 'width': 48})
    """

    bare = True

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        patch_size: int,
        *,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        ffn_ratios: tuple[float, ...] = (),
        ffn_widths: tuple[int, ...] = (),
        head_dim: int = 32,
        in_channels: int = 3,
        per_layer: bool = True,
        positions: Literal["learned", "rotary"] = "learned",
        activation: str = "gelu",
        dropout: float = 0.0,
    ) -> None:
        self.num_classes = num_classes
        self.image_size = image_size
        self.patch_size = patch_size
        self.widths = tuple(widths)
        self.depths = tuple(depths)
        self.heads = tuple(heads)
        self.ffn_ratios = tuple(ffn_ratios)
        self.ffn_widths = tuple(ffn_widths)
        self.head_dim = head_dim
        self.in_channels = in_channels
        self.per_layer = per_layer
        self.positions = positions
        self.activation = activation
        self.dropout = dropout
        if num_classes < 2 or min(in_channels, patch_size) < 1 or image_size < patch_size or image_size % patch_size:
            raise ValueError(
                "VisionTransformerSpace needs num_classes >= 2, in_channels >= 1 and an image_size that is a multiple "
                f"of patch_size, got {num_classes=}, {in_channels=}, {image_size=}, {patch_size=}"
            )
        self._stack = Stack(self.widths, self.depths, self.heads, self.ffn_ratios, self.ffn_widths)
        self._style = StackStyle(head_dim, per_layer, positions, activation, dropout)
        given = stack_choices(self._stack, self._style)
        self.choices = tuple(choice for choice in given if choice.size > 1)
        self._fixed: dict[str, Candidate] = {c.name: c.candidates[0] for c in given if c.size == 1}

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static :class:`VisionTransformer`."""
        values: dict[str, Candidate] = self._fixed | dict(architecture)
        return VisionTransformer(
            stack_blocks(self._stack, self._style, values),
            int(values["width"]),
            in_channels=self.in_channels,
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_classes=self.num_classes,
            learned_positions=self.positions == "learned",
            dropout=self.dropout,
        )

    def mixed(self) -> tuple[str, ...]:
        """Return the feed-forward pair of every block (Mixture-of-Supernets, arXiv 2306.04845)."""
        return MIXED

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, in_channels, image_size, image_size)``."""
        del architecture
        return (torch.zeros(batch_size, self.in_channels, self.image_size, self.image_size),)
