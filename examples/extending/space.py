"""A search space of 1-D convolutional networks for signals: audio, accelerometers, electrocardiograms."""

from typing import final

import torch
from torch import Tensor, nn

from search_spaces import Architecture, Choice, SearchSpace


@final
class SignalSpace(SearchSpace):
    """Blocks of convolution, batch norm, ReLU and pooling by two, each of its own width and kernel size.

    The module maps ``(B, channels, length)`` to logits ``(B, num_classes)``. Sharing needs no rules: channels are
    prefixes and kernels are centre crops of the largest build, by default.

    Args:
        channels: of the input.
        num_classes: number of logits.
        length: samples of the example input.
        widths: ascending candidates for the channels of each block.
        depths: ascending candidates for the number of blocks.
        kernels: ascending odd candidates for the kernel of each block.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        length: int = 128,
        widths: tuple[int, ...] = (8, 16, 32),
        depths: tuple[int, ...] = (2, 3, 4),
        kernels: tuple[int, ...] = (3, 5, 9),
    ) -> None:
        self.channels, self.num_classes, self.length = channels, num_classes, length
        self.widths, self.depths, self.kernels = tuple(widths), tuple(depths), tuple(kernels)
        self.choices = (Choice("depth", self.depths),)
        for block in range(1, max(depths) + 1):
            requires = None if block <= min(depths) else ("depth", block)
            for name, candidates in (("width", self.widths), ("kernel", self.kernels)):
                self.choices += (Choice(f"block{block}.{name}", candidates, requires=requires),)

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the network; a shallower one is the first blocks of a deeper one."""
        network, inputs = nn.Sequential(), self.channels
        for block in range(1, int(architecture["depth"]) + 1):
            width, kernel = int(architecture[f"block{block}.width"]), int(architecture[f"block{block}.kernel"])
            convolution = nn.Conv1d(inputs, width, kernel, padding=kernel // 2, bias=False)
            layers = convolution, nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2)
            network.add_module(f"block{block}", nn.Sequential(*layers))
            inputs = width
        head = nn.Linear(inputs, self.num_classes)
        network.add_module("head", nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), head))
        return network

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return silence, whatever the architecture."""
        return (torch.zeros(batch_size, self.channels, self.length),)
