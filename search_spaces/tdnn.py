"""Time-delay neural networks for speaker embeddings: the space of EfficientTDNN."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.architecture import Architecture
from search_spaces.bare import layer
from search_spaces.choice import Candidate, Choice
from search_spaces.slicing import TensorRule
from search_spaces.space import SearchSpace

__all__ = ["TDNN", "AttentiveStatistics", "SERes2Block", "TDNNSpace"]


@final
class SERes2Block(nn.Module):
    """Squeeze-excite Res2 block of dilated convolutions (ECAPA-TDNN, Desplanques et al. 2020, arXiv 2005.07143).

    A 1x1 convolution to ``hidden`` channels, a Res2 layer, a 1x1 convolution back, squeeze-excite. Every convolution is
    followed by a rectifier and *then* batch norm. The Res2 layer splits its input into ``scale`` groups ``x_1 ...
    x_s`` of equal width: ``y_1 = K_1(x_1)``, ``y_i = K_i(x_i + y_{i-1})`` for ``1 < i < s``, ``y_s = x_s`` (Gao et al.
    2019, arXiv 1904.01169, in the order of EfficientTDNN, which convolves the first group and passes the last).

    Args:
        channels: of the input and output ``(B, channels, T)``.
        hidden: channels of the Res2 layer, a multiple of ``scale``.
        kernel: odd width of the dilated kernels, in frames.
        dilation: of those kernels, in frames.
        scale: groups of the Res2 layer, at least 2.
        squeeze: channels inside squeeze-excite.
    """

    def __init__(self, channels: int, hidden: int, *, kernel: int, dilation: int, scale: int, squeeze: int) -> None:
        super().__init__()
        self.scale = scale
        group = hidden // scale
        self.enter = layer(nn.Conv1d, channels, hidden, 1)
        self.enter_norm = layer(nn.BatchNorm1d, hidden)
        padding = dilation * (kernel // 2)
        self.res2 = nn.ModuleList(
            layer(nn.Conv1d, group, group, kernel, padding=padding, dilation=dilation) for _ in range(scale - 1)
        )
        self.res2_norm = nn.ModuleList(layer(nn.BatchNorm1d, group) for _ in range(scale - 1))
        self.leave = layer(nn.Conv1d, hidden, channels, 1)
        self.leave_norm = layer(nn.BatchNorm1d, channels)
        self.squeeze = layer(nn.Linear, channels, squeeze)
        self.excite = layer(nn.Linear, squeeze, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, T)`` to the same shape, without the shortcut."""
        groups = self.enter_norm(functional.relu(self.enter(x))).chunk(self.scale, dim=1)
        done = [self.res2_norm[0](functional.relu(self.res2[0](groups[0])))]
        for group, convolution, norm in zip(groups[1:-1], self.res2[1:], self.res2_norm[1:], strict=True):
            done.append(norm(functional.relu(convolution(group + done[-1]))))
        h: Tensor = self.leave_norm(functional.relu(self.leave(torch.cat([*done, groups[-1]], dim=1))))
        gate: Tensor = torch.sigmoid(self.excite(functional.relu(self.squeeze(h.mean(2)))))
        return h * gate[:, :, None]


@final
class AttentiveStatistics(nn.Module):
    """Attentive statistics pooling (Okabe et al. 2018, arXiv 1803.10963; for each channel as in ECAPA-TDNN).

    With ``a = softmax_t(W2 tanh(W1 h + b1) + b2)`` of the shape of ``h``: the weighted mean ``m = sum_t a_t h_t`` and
    deviation ``sqrt(sum_t a_t h_t^2 - m^2)`` of every channel, the variance at least 1e-9.

    Args:
        channels: of the input ``(B, channels, T)``.
        bottleneck: channels inside the attention.
    """

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.attend = layer(nn.Conv1d, channels, bottleneck, 1)
        self.weigh = layer(nn.Conv1d, bottleneck, channels, 1)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(B, channels, T)`` to ``(B, 2 channels)``: all means, then all deviations."""
        weights = torch.softmax(self.weigh(torch.tanh(self.attend(h))), dim=2)
        mean = (weights * h).sum(2)
        variance = (weights * h**2).sum(2) - mean**2
        return torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)


@final
class TDNN(nn.Module):
    """A speaker-embedding network; see :class:`TDNNSpace` for its parts.

    Args:
        mels: channels of the input.
        speakers: of the training set.
        width: channels between blocks.
        stem_kernel: odd width of the first kernel, in frames.
        blocks: (hidden channels, kernel) of each block.
        head: channels of the concatenation layer.
        scale: groups of each Res2 layer.
        squeeze: channels inside squeeze-excite.
        bottleneck: channels inside the attention of the pooling.
        embedding: size of the embedding.
    """

    def __init__(
        self,
        mels: int,
        speakers: int,
        *,
        width: int,
        stem_kernel: int,
        blocks: tuple[tuple[int, int], ...],
        head: int,
        scale: int,
        squeeze: int,
        bottleneck: int,
        embedding: int,
    ) -> None:
        super().__init__()
        self.stem = layer(nn.Conv1d, mels, width, stem_kernel, padding=stem_kernel // 2)
        self.stem_norm = layer(nn.BatchNorm1d, width)
        self.blocks = nn.ModuleList(
            SERes2Block(width, hidden, kernel=kernel, dilation=number + 2, scale=scale, squeeze=squeeze)
            for number, (hidden, kernel) in enumerate(blocks)
        )
        self.head = nn.ModuleList(layer(nn.Conv1d, width, head, 1, bias=number == 0) for number in range(len(blocks)))
        self.pool = AttentiveStatistics(head, bottleneck)
        self.pool_norm = layer(nn.BatchNorm1d, 2 * head)
        self.embed = layer(nn.Linear, 2 * head, embedding)
        self.embed_norm = layer(nn.BatchNorm1d, embedding)
        self.speakers = layer(nn.Linear, embedding, speakers, bias=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings and their cosines to the training speakers.

        Args:
            features: ``(B, mels, T)``.

        Returns:
            ``(B, embedding)``, not normalised, and ``(B, speakers)`` in [-1, 1].
        """
        x = self.stem_norm(functional.relu(self.stem(features)))
        total = x
        joined: Tensor | None = None
        for block, part in zip(self.blocks, self.head, strict=True):
            x = block(x) + total
            total = total + x
            joined = part(x) if joined is None else joined + part(x)
        assert joined is not None  # noqa: S101 - there is at least one block
        embeddings = self.embed_norm(self.embed(self.pool_norm(self.pool(functional.relu(joined)))))
        cosines = self.speakers(functional.normalize(embeddings, eps=1e-6)) / self.speakers.weight.norm(dim=1)
        return embeddings, cosines


@final
class TDNNSpace(SearchSpace):
    """Speaker-embedding networks of SE-Res2 blocks: the space of EfficientTDNN (Wang et al. 2021, arXiv 2103.13581).

    Choices, each present only where it has more than one candidate: ``stem.kernel``, ``width``, ``depth``,
    ``block{i}.kernel``, ``block{i}.width``, ``head.width``. ``width`` is the width between blocks, the same everywhere,
    so that shortcuts need no projection; ``block{i}.width`` is that of the Res2 layer inside block i.

    The module takes log-mel features ``(B, mels, T)`` of any number of frames ``T`` and returns the pair (embeddings
    ``(B, embedding)``, cosines to the training speakers ``(B, speakers)``): a convolution, blocks with growing dilation
    2, 3, ... where ``out_i = block_i(out_{i-1}) + sum_{j<i} out_j`` (the first convolution counts as ``out_0``), a 1x1
    convolution of the concatenated block outputs, attentive statistics pooling, a linear map. A user of an exported
    network compares embeddings by their cosine and may ignore the second output, which the loss needs.

    Kernels are centre-cropped and widths are prefixes: of each group of the Res2 layers, and of the means and of the
    deviations after the pooling. The convolution over the concatenation is kept as one matrix for each block, whose
    products are added up. That is the same function, and a prefix of each matrix is the right part at every depth and
    width.

    Args:
        speakers: of the training set.
        mels: channels of the features.
        frames: of the example inputs, for costs and exports.
        widths: ascending candidates for the width between blocks and for the width of each Res2 layer, multiples of
            ``scale``.
        kernels: ascending odd candidates for the kernels of the first convolution and of each Res2 layer, in frames.
        depths: ascending candidates for the number of blocks.
        head_widths: ascending candidates for the width of the convolution over the concatenation.
        scale: groups of a Res2 layer.
        reduction: squeeze-excite narrows the width between blocks by this factor.
        bottleneck: width inside the attention of the pooling.
        embedding: size of the embeddings.

    Raises:
        ValueError: candidates do not ascend, are out of range, or do not divide into groups.

    >>> space = TDNNSpace(20, mels=24, widths=(16, 32), kernels=(1, 3), depths=(2, 3), head_widths=(48, 96))
    >>> space.size(), space.largest().integer("block3.kernel")
    (640, 3)
    """

    bare = True

    def __init__(
        self,
        speakers: int,
        *,
        mels: int = 80,
        frames: int = 300,
        widths: tuple[int, ...] = (128, 176, 256, 384, 512),
        kernels: tuple[int, ...] = (1, 3, 5),
        depths: tuple[int, ...] = (2, 3, 4),
        head_widths: tuple[int, ...] = (384, 536, 768, 1152, 1536),
        scale: int = 8,
        reduction: int = 4,
        bottleneck: int = 128,
        embedding: int = 192,
    ) -> None:
        self.speakers = speakers
        self.mels = mels
        self.frames = frames
        self.widths = tuple(widths)
        self.kernels = tuple(kernels)
        self.depths = tuple(depths)
        self.head_widths = tuple(head_widths)
        self.scale = scale
        self.reduction = reduction
        self.bottleneck = bottleneck
        self.embedding = embedding
        self._check()
        given = [Choice("stem.kernel", self.kernels), Choice("width", self.widths), Choice("depth", self.depths)]
        for block in range(1, max(self.depths) + 1):
            requires = ("depth", block) if block > min(self.depths) else None
            given += [
                Choice(f"block{block}.kernel", self.kernels, requires=requires),
                Choice(f"block{block}.width", self.widths, requires=requires),
            ]
        given.append(Choice("head.width", self.head_widths))
        self.choices = tuple(choice for choice in given if choice.size > 1)
        self._fixed: dict[str, Candidate] = {c.name: c.candidates[0] for c in given if c.size == 1}

    def _check(self) -> None:
        for field in ("speakers", "mels", "frames", "reduction", "bottleneck", "embedding"):
            if getattr(self, field) < 1:
                raise ValueError(f"TDNNSpace.{field} must be at least 1, got {getattr(self, field)}")
        for field in ("widths", "kernels", "depths", "head_widths"):
            values = getattr(self, field)
            if not values or min(values) < 1:
                raise ValueError(f"TDNNSpace.{field} must be numbers above zero, got {values}")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"TDNNSpace.kernels must be odd, got {self.kernels}")
        if self.scale < 2 or any(width % self.scale for width in self.widths):
            raise ValueError(
                "TDNNSpace.widths must divide into scale >= 2 groups of the Res2 layers, got "
                f"widths={self.widths}, scale={self.scale}; round the widths to multiples of the scale"
            )
        if min(self.widths) < self.reduction:
            raise ValueError(
                f"TDNNSpace.reduction must be at most the smallest width, got {self.reduction} with {self.widths}"
            )

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static :class:`TDNN`."""
        values: dict[str, Candidate] = self._fixed | dict(architecture)

        def integer(name: str) -> int:
            return int(values[name])

        width = integer("width")
        return TDNN(
            self.mels,
            self.speakers,
            width=width,
            stem_kernel=integer("stem.kernel"),
            blocks=tuple(
                (integer(f"block{block}.width"), integer(f"block{block}.kernel"))
                for block in range(1, integer("depth") + 1)
            ),
            head=integer("head.width"),
            scale=self.scale,
            squeeze=width // self.reduction,
            bottleneck=self.bottleneck,
            embedding=self.embedding,
        )

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, mels, frames)``."""
        del architecture
        return (torch.zeros(batch_size, self.mels, self.frames),)

    def rules(self) -> Mapping[str, TensorRule]:
        """Return the cuts by Res2 group and by kind of statistic."""
        grouped, statistics = {0: self.scale}, {0: 2}
        return {
            "blocks.*.enter.*": TensorRule(blocks=grouped),
            "blocks.*.enter_norm.*": TensorRule(blocks=grouped),
            "blocks.*.leave.weight": TensorRule(blocks={1: self.scale}),
            "pool_norm.*": TensorRule(blocks=statistics),
            "embed.weight": TensorRule(blocks={1: 2}),
        }
