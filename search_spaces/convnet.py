"""Convolutional networks of residual or inverted-residual stages."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.bare import layer
from search_spaces.choice import Candidate, Choice
from search_spaces.layers import (
    BasicBlock,
    InvertedResidual,
    Resize,
    activation,
    activation_function,
    round_channels,
)
from search_spaces.space import SearchSpace

__all__ = ["ConvNetSpace", "Head", "Stage", "Stem", "mobilenet_v3_space"]


def _positive(owner: object, *fields: str) -> None:
    """Make the named fields tuples and check that they hold numbers above zero."""
    for field in fields:
        values = tuple(getattr(owner, field))
        object.__setattr__(owner, field, values)
        if not values or min(values) <= 0:
            raise ValueError(f"{type(owner).__name__}.{field} must be numbers above zero, got {values}")


@dataclass(frozen=True)
class Stage:
    """A run of blocks of one width; the first block changes width and resolution.

    Args:
        widths: ascending candidates for the channels of the stage.
        depths: ascending candidates for the number of blocks.
        kernels: ascending candidates for the side of the kernels, odd, in pixels.
        expansions: ascending candidates for the hidden channels of a block, as a multiple of its input channels
            (inverted) or of the stage width (residual), rounded up. Exactly ``(1,)`` leaves the 1x1 expansion of
            inverted blocks out.
        stride: stride of the first block.
        block: ``"inverted"`` (:class:`search_spaces.layers.InvertedResidual`) or ``"residual"``
            (:class:`search_spaces.layers.BasicBlock`).
        squeeze_excite: whether inverted blocks scale their channels; the hidden width is a quarter of the expanded
            width, made divisible by 8.
        project_shortcut: whether the first inverted block has a shortcut too, by average pooling and a 1x1 convolution.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.

    Raises:
        ValueError: a candidate is out of range, or an option of inverted blocks is asked of residual ones.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...] = (3,)
    expansions: tuple[float, ...] = (1,)
    stride: int = 1
    block: Literal["inverted", "residual"] = "inverted"
    squeeze_excite: bool = False
    project_shortcut: bool = False
    activation: str = "relu"

    def __post_init__(self) -> None:
        _positive(self, "widths", "depths", "kernels", "expansions")
        activation_function(self.activation)
        if self.block not in ("inverted", "residual"):
            raise ValueError(f"Stage.block must be 'inverted' or 'residual', got {self.block!r}")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"Stage.kernels must be odd, got {self.kernels}")
        if self.stride < 1:
            raise ValueError(f"Stage.stride must be at least 1, got {self.stride}")
        if self.block == "residual" and (self.squeeze_excite or self.project_shortcut):
            raise ValueError(
                "Stage.squeeze_excite and Stage.project_shortcut belong to block='inverted', got block='residual', "
                "which always has a projection and never squeeze-excite"
            )


@dataclass(frozen=True)
class Stem:
    """The first 3x3 convolution.

    Args:
        widths: ascending candidates for its output channels.
        stride: its stride.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.

    Raises:
        ValueError: a size is below one or the activation is unknown.
    """

    widths: tuple[int, ...] = (16,)
    stride: int = 1
    activation: str = "relu"

    def __post_init__(self) -> None:
        _positive(self, "widths")
        activation_function(self.activation)
        if self.stride < 1:
            raise ValueError(f"Stem.stride must be at least 1, got {self.stride}")


@dataclass(frozen=True)
class Head:
    """What stands between the last stage and the logits.

    Without ``widths``: global average pooling and a linear classifier. With ``widths``: a batch-normalised 1x1
    convolution to that width before pooling. With ``expansion`` too, the MobileNetV3 head: a batch-normalised 1x1
    convolution to ``expansion`` times the last stage's width, pooling, and then a linear map to the head width.

    Args:
        widths: ascending candidates for the features of the classifier; empty: those of the last stage.
        expansion: 0, or the width of the MobileNetV3 head before pooling as a multiple of the last stage's width.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.
        dropout: probability of dropping a feature before the classifier.

    Raises:
        ValueError: a size or probability is out of range or the activation is unknown.
    """

    widths: tuple[int, ...] = ()
    expansion: int = 0
    activation: str = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.widths:
            _positive(self, "widths")
        activation_function(self.activation)
        if self.expansion < 0 or (self.expansion and not self.widths):
            raise ValueError(f"Head.expansion must be 0, or above 0 with widths given, got {self.expansion}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Head.dropout must be in [0, 1), got {self.dropout}")


@final
class ConvNetSpace(SearchSpace):
    """Image classifiers: stem, stages of residual or inverted-residual blocks, head.

    Choices, each present only where it has more than one candidate: ``resolution``, ``stem.width``, ``stage{i}.width``,
    ``stage{i}.depth``, ``stage{i}.kernel``, ``stage{i}.expansion`` (or ``stage{i}.block{j}.kernel`` and
    ``stage{i}.block{j}.expansion``), ``head.width``.

    The module takes ``(B, in_channels, H, W)`` images of any one size, resizes them itself to its own resolution
    (bilinear), and returns logits ``(B, num_classes)``: batches keep one size, and an exported subnetwork takes the
    original image. Kernels are centre-cropped from the largest, everything else is a prefix. Structure does not depend
    on widths: blocks after the first of a stage have an identity shortcut; the first has a projection in residual
    stages and where a stage says so, and none elsewhere.

    Args:
        stages: at least one.
        num_classes: number of logits.
        in_channels: channels of the images.
        resolutions: ascending candidates for the side of the resized image, in pixels.
        stem: the first convolution.
        head: what follows the last stage.
        per_block: whether every block has its own kernel and expansion choice, as in OFA, or one per stage, as in
            BigNAS and AttentiveNAS.

    Raises:
        ValueError: no stage, or candidates that do not ascend or are out of range.
    """

    bare = True

    def __init__(
        self,
        stages: Sequence[Stage],
        num_classes: int,
        *,
        in_channels: int = 3,
        resolutions: tuple[int, ...] = (32,),
        stem: Stem = Stem(),
        head: Head = Head(),
        per_block: bool = False,
    ) -> None:
        self.stages = tuple(stages)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.resolutions = tuple(resolutions)
        self.stem = stem
        self.head = head
        self.per_block = per_block
        if not self.stages:
            raise ValueError("stages must name at least one Stage, got none")
        if not self.resolutions or min((num_classes, in_channels, *self.resolutions)) < 1:
            raise ValueError(
                "num_classes, in_channels and resolutions must be at least 1, got "
                f"{num_classes=}, {in_channels=}, resolutions={self.resolutions}"
            )
        given = [Choice("resolution", self.resolutions), Choice("stem.width", stem.widths)]
        for number, stage in enumerate(self.stages, 1):
            name = f"stage{number}"
            given += [Choice(f"{name}.width", stage.widths), Choice(f"{name}.depth", stage.depths)]
            for prefix, requires in self._block_prefixes(name, stage):
                given += [
                    Choice(f"{prefix}.kernel", stage.kernels, requires=requires),
                    Choice(f"{prefix}.expansion", stage.expansions, requires=requires),
                ]
        if head.widths:
            given.append(Choice("head.width", head.widths))
        self.choices = tuple(choice for choice in given if choice.size > 1)
        self._fixed: dict[str, Candidate] = {c.name: c.candidates[0] for c in given if c.size == 1}

    def _block_prefixes(self, name: str, stage: Stage) -> list[tuple[str, tuple[str, float] | None]]:
        """Names under which kernels and expansions are chosen, with the depth each needs to exist."""
        if not self.per_block:
            return [(name, None)]
        return [
            (f"{name}.block{block}", (f"{name}.depth", block) if block > min(stage.depths) else None)
            for block in range(1, max(stage.depths) + 1)
        ]

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static network: ``resize``, ``stem*``, ``stage{i}.block{j}.*``, head layers and ``classifier``."""
        values: dict[str, Candidate] = self._fixed | dict(architecture)

        def integer(name: str) -> int:
            return int(values[name])

        stem = integer("stem.width")
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            resize=Resize(integer("resolution")),
            stem=layer(nn.Conv2d, self.in_channels, stem, 3, self.stem.stride, 1, bias=False),
            stem_norm=layer(nn.BatchNorm2d, stem),
            stem_act=activation(self.stem.activation),
        )
        channels = stem
        for number, stage in enumerate(self.stages, 1):
            name = f"stage{number}"
            width = integer(f"{name}.width")
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, integer(f"{name}.depth") + 1):
                prefix = f"{name}.block{block}" if self.per_block else name
                blocks[f"block{block}"] = _block(
                    stage,
                    channels,
                    width,
                    kernel=integer(f"{prefix}.kernel"),
                    expansion=float(values[f"{prefix}.expansion"]),
                    first=block == 1,
                )
                channels = width
            layers[name] = nn.Sequential(blocks)
        layers.update(self._head(channels, integer("head.width") if self.head.widths else 0))
        return nn.Sequential(layers)

    def _head(self, channels: int, width: int) -> OrderedDict[str, nn.Module]:
        """Layers after the last stage; ``width`` 0 leaves the head convolution out."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        features = self.head.expansion * channels or width
        if features:
            layers["head"] = layer(nn.Conv2d, channels, features, 1, bias=False)
            layers["head_norm"] = layer(nn.BatchNorm2d, features)
            layers["head_act"] = activation(self.head.activation)
            channels = features
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        if self.head.expansion:
            layers["mix"] = layer(nn.Linear, channels, width)
            layers["mix_act"] = activation(self.head.activation)
            channels = width
        if self.head.dropout:
            layers["dropout"] = nn.Dropout(self.head.dropout)
        layers["classifier"] = layer(nn.Linear, channels, self.num_classes)
        return layers

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, in_channels, R, R)`` with ``R`` the largest resolution of the space."""
        del architecture
        side = max(self.resolutions)
        return (torch.zeros(batch_size, self.in_channels, side, side),)

    def zero_init(self) -> tuple[str, ...]:
        """Return the scale of the last norm of every block that has a shortcut."""
        return tuple(
            f"stage{number}.block{block}.{'project_norm' if stage.block == 'inverted' else 'norm2'}.weight"
            for number, stage in enumerate(self.stages, 1)
            for block in range(1, max(stage.depths) + 1)
            if block > 1 or stage.block == "residual" or stage.project_shortcut
        )


def _block(stage: Stage, channels: int, width: int, *, kernel: int, expansion: float, first: bool) -> nn.Module:
    """Return one block of ``stage`` from ``channels`` to ``width`` channels."""
    stride = stage.stride if first else 1
    if stage.block == "residual":
        return BasicBlock(
            channels,
            math.ceil(width * expansion),
            width,
            kernel=kernel,
            stride=stride,
            activation=stage.activation,
            project=first,
        )
    hidden = math.ceil(channels * expansion)
    return InvertedResidual(
        channels,
        hidden,
        width,
        kernel=kernel,
        stride=stride,
        expand=stage.expansions != (1,),
        squeeze=round_channels(hidden / 4) if stage.squeeze_excite else 0,
        activation=stage.activation,
        shortcut="identity" if not first else "project" if stage.project_shortcut else "none",
    )


def mobilenet_v3_space(
    num_classes: int = 1000,
    *,
    resolutions: tuple[int, ...] = (192, 224, 256, 288),
    in_channels: int = 3,
    dropout: float = 0.2,
    per_block: bool = False,
) -> ConvNetSpace:
    """Return the MobileNetV3-like space of AttentiveNAS and AlphaNet (Wang et al. 2021, arXiv 2011.09011).

    Seven stages of inverted-residual blocks; 203 to 1,939 million MACs with the default resolutions (published: 203 to
    1,944).

    Differs from the paper: the first stage, whose width may or may not change, has no projection shortcut.
    """
    rows: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, bool], ...] = (
        ((16, 24), (1, 2), (1,), 1, False),
        ((24, 32), (3, 4, 5), (4, 5, 6), 2, False),
        ((32, 40), (3, 4, 5, 6), (4, 5, 6), 2, True),
        ((64, 72), (3, 4, 5, 6), (4, 5, 6), 2, False),
        ((112, 120, 128), (3, 4, 5, 6, 7, 8), (4, 5, 6), 1, True),
        ((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (6,), 2, True),
        ((216, 224), (1, 2), (6,), 1, True),
    )
    stages = [
        Stage(
            widths=widths,
            depths=depths,
            kernels=(3, 5),
            expansions=expansions,
            stride=stride,
            squeeze_excite=squeeze_excite,
            project_shortcut=expansions != (1,),
            activation="silu",
        )
        for widths, depths, expansions, stride, squeeze_excite in rows
    ]
    return ConvNetSpace(
        stages,
        num_classes,
        in_channels=in_channels,
        resolutions=resolutions,
        stem=Stem(widths=(16, 24), stride=2, activation="silu"),
        head=Head(widths=(1792, 1984), expansion=6, activation="silu", dropout=dropout),
        per_block=per_block,
    )
