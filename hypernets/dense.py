"""Dense hypernetworks: one multilayer perceptron with a head that is as wide as the target."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypernets.base import HyperNetwork
from hypernets.card import HyperCard
from hypernets.fields import Field
from hypernets.parametrization import Parametrization
from hypernets.target import Target, TensorSpec

__all__ = ["DenseHyperNetwork", "trunk"]


def trunk(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """Return linear layers with leaky ReLU, Kaiming fan-out weights and zero biases: positively homogeneous at start.

    Raises:
        ValueError: there are no layers.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must name at least one layer width >= 1, got {tuple(hidden)}")
    layers: list[nn.Module] = []
    for size in hidden:
        linear = nn.Linear(width, size)
        nn.init.kaiming_normal_(linear.weight, a=0.01, mode="fan_out")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU()]
        width = size
    return nn.Sequential(*layers)


@final
class DenseHyperNetwork(HyperNetwork):
    """The classic hypernetwork (Ha, Dai, Le; arXiv 1609.09106): all weights at once from one linear head.

    The head has ``hidden[-1]`` weights for each generated one, which is the price of it: take
    :class:`ChunkedHyperNetwork` for targets above some ten thousand weights. Without a residual the head has no bias.

    >>> from hypernets import Unit
    >>> hypernet = DenseHyperNetwork(Target.of(nn.Linear(3, 2)), {"strength": Unit()}, hidden=(8, 16))
    >>> hypernet.generate({"strength": torch.tensor([0.0, 0.5, 1.0])})["weight"].shape
    torch.Size([3, 2, 3])

    Args:
        target: what is generated.
        conditions: name -> field.
        hidden: widths of the layers before the head.
        parametrization: the default is magnitude-invariant.
    """

    def __init__(
        self,
        target: Target,
        conditions: Mapping[str, Field],
        *,
        hidden: Sequence[int] = (16, 64, 128),
        parametrization: Parametrization | None = None,
    ) -> None:
        super().__init__(target, conditions, parametrization=parametrization)
        self.hidden = tuple(hidden)
        self.trunk = trunk(self.encoder.width, self.hidden)
        self.head = nn.Parameter(torch.empty(target.numel, self.hidden[-1]))
        start = 0
        self._rows: dict[str, tuple[int, int]] = {}
        with torch.no_grad():
            for spec in target:
                self._rows[spec.name] = (start, start + spec.numel)
                bias = spec.role in {"bias", "norm_bias"}
                deviation = 0.0 if bias else math.sqrt(2 / (1 + 0.01**2) / max(spec.numel, 1))
                self.head[slice(*self._rows[spec.name])] = torch.randn(spec.numel, self.hidden[-1]) * deviation
                start += spec.numel
        self.finish()

    @property
    def card(self) -> HyperCard:  # noqa: D102
        return HyperCard.of(
            type(self).__name__,
            self.conditions.values(),
            outputs="once",
            architecture="mlp",
            reference="Ha, Dai, Le: HyperNetworks, arXiv 1609.09106",
        )

    def emit(  # noqa: D102
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        del generator
        features = self.trunk(code)
        if len(specs) == len(self.target.tensors):
            parts = torch.split(F.linear(features, self.head), [spec.numel for spec in specs], dim=-1)
        else:
            parts = tuple(F.linear(features, self.head[slice(*self._rows[spec.name])]) for spec in specs)
        return {spec.name: part.reshape(len(code), *spec.shape) for spec, part in zip(specs, parts, strict=True)}

    @torch.no_grad()
    def rescale(self, name: str, factor: float) -> None:  # noqa: D102
        self.head[slice(*self._rows[name])] *= factor
