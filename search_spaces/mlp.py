"""Multi-layer perceptrons of elastic depth and widths."""

from collections import OrderedDict
from typing import final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.bare import layer
from search_spaces.choice import Choice
from search_spaces.layers import activation as make_activation
from search_spaces.space import SearchSpace

__all__ = ["MLPSpace"]


@final
class MLPSpace(SearchSpace):
    """Fully connected classifiers: ``depth`` hidden layers, each with its own ``layer{i}.width``.

    The module is an ``nn.Sequential`` that flattens its input ``(B, ...)`` to ``(B, in_features)`` and returns logits
    ``(B, num_classes)``. Layers are shared by position: a shallower network is the first layers of a deeper one, with
    the head reading a prefix of the head's input features.

    Args:
        in_features: features of one flattened example.
        num_classes: number of logits.
        widths: ascending candidates for the units of every hidden layer.
        depths: ascending candidates for the number of hidden layers.
        batch_norm: whether batch normalisation stands between a linear map and its activation.
        activation: one of ``search_spaces.layers.ACTIVATIONS``.

    Raises:
        ValueError: a size is smaller than one, candidates do not ascend, or the activation is unknown.

    >>> space = MLPSpace(64, 10, widths=(16, 32), depths=(1, 2))
    >>> space.size(), dict(space.smallest())
    (6, {'depth': 1, 'layer1.width': 16})
    """

    bare = True

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64, 128),
        depths: tuple[int, ...] = (1, 2, 3),
        batch_norm: bool = True,
        activation: str = "relu",
    ) -> None:
        self.in_features = in_features
        self.num_classes = num_classes
        self.widths = tuple(widths)
        self.depths = tuple(depths)
        self.batch_norm = batch_norm
        self.activation = activation
        make_activation(activation)
        for name, sizes in (
            ("in_features", (in_features,)),
            ("num_classes", (num_classes,)),
            ("widths", self.widths),
            ("depths", self.depths),
        ):
            if not sizes or min(sizes) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.choices = (
            Choice("depth", self.depths),
            *(Choice(f"layer{i}.width", self.widths, requires=("depth", i)) for i in range(1, max(self.depths) + 1)),
        )

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static perceptron, with modules ``linear{i}``, ``norm{i}``, ``act{i}`` and ``head``."""
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        features = self.in_features
        for i in range(1, architecture.integer("depth") + 1):
            width = architecture.integer(f"layer{i}.width")
            layers[f"linear{i}"] = layer(nn.Linear, features, width, bias=not self.batch_norm)
            if self.batch_norm:
                layers[f"norm{i}"] = layer(nn.BatchNorm1d, width)
            layers[f"act{i}"] = make_activation(self.activation)
            features = width
        layers["head"] = layer(nn.Linear, features, self.num_classes)
        return nn.Sequential(layers)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, in_features)``."""
        del architecture
        return (torch.zeros(batch_size, self.in_features),)
