"""Routers: the encoding of an architecture in, the weights of its experts out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import final

import torch
from torch import Tensor, nn

from search_spaces import TensorSlice

__all__ = ["LayerRouter", "NeuronRouter", "Route", "Router", "hats", "layers_of"]

Route = Callable[[TensorSlice], Tensor]
"""Expert weights of a part of a stored tensor: ``(m,)``, or ``(rows, m)`` for the rows that the part keeps."""


def layers_of(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return tensor -> layer: tensors of one layer share a decision when routed layer by layer.

    The layer of a tensor is the parent of the module that owns it: the FFN of its two linear maps, the block of its
    convolutions. A module at the root, or in a plain list or dictionary of modules, is a layer by itself.
    """
    found: dict[str, str] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        parent = owner.rpartition(".")[0]
        alone = not parent or isinstance(module.get_submodule(parent), nn.ModuleList | nn.ModuleDict)
        found[name] = owner if alone else parent
    return found


def hats(place: Tensor, count: int) -> Tensor:
    """Return ``max(0, 1 - |(count - 1) place - k|)`` for ``k = 0 .. count - 1``: soft membership of ``count`` groups.

    Args:
        place: ``()`` in [0, 1].
        count: at least 2.

    Returns:
        ``(count,)``, non-negative, summing to one.
    """
    centres = torch.arange(count, device=place.device, dtype=place.dtype)
    return (1 - (place.clamp(0, 1) * (count - 1) - centres).abs()).clamp(min=0)


@final
class _Maps(nn.Module):
    """Affine maps side by side, ``(G, out, in)`` and ``(G, out)``; at first like those of ``nn.Linear``, or zero."""

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator, *, zero: bool = False) -> None:
        super().__init__()
        bound = 0.0 if zero else 1 / math.sqrt(max(1, shape[2]))
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(shape[:2]).uniform_(-bound, bound, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(G, in)``, or ``(in,)`` that all of them share, to ``(G, out)``."""
        return (self.weight @ inputs[..., None])[..., 0] + self.bias


class Router(nn.Module, ABC):
    """Decides from the encoding of an architecture alone how much of each expert its tensors take."""

    @abstractmethod
    def forward(self, encoding: Tensor, prior: Tensor) -> Route:
        """Return how the parts of stored tensors are mixed.

        Args:
            encoding: ``(D,)``.
            prior: ``(m,)``, added to all logits.
        """

    @abstractmethod
    def decisions(self, encoding: Tensor, prior: Tensor) -> Iterator[Tensor]:
        """Yield every softmax of the router, ``(..., m)``."""


@final
class LayerRouter(Router):
    """One softmax per layer: ``p = softmax(A2 relu(A1 e + a1) + a2)`` (Mixture-of-Supernets, arXiv 2306.04845).

    Args:
        layers: tensor -> layer.
        features: ``D``.
        experts: ``m``.
        hidden: units of the hidden layer.
        generator: of the initial weights.
        zero_head: start ``A2`` and ``a2`` at zero, so that the prior alone decides.
    """

    def __init__(
        self,
        layers: Mapping[str, str],
        features: int,
        experts: int,
        *,
        hidden: int,
        generator: torch.Generator,
        zero_head: bool = False,
    ) -> None:
        super().__init__()
        places = {layer: place for place, layer in enumerate(dict.fromkeys(layers.values()))}
        self._places = {name: places[layer] for name, layer in layers.items()}
        self.hidden = _Maps((len(places), hidden, features), generator)
        self.head = _Maps((len(places), experts, hidden), generator, zero=zero_head)

    def _weights(self, encoding: Tensor, prior: Tensor) -> Tensor:
        """``(layers, m)``."""
        return torch.softmax(self.head(torch.relu(self.hidden(encoding))) + prior, dim=-1)

    def forward(self, encoding: Tensor, prior: Tensor) -> Route:
        """See :class:`Router`; parts of one layer get the same ``(m,)``."""
        weights = self._weights(encoding, prior).unbind()
        return lambda part: weights[self._places[part.source]]

    def decisions(self, encoding: Tensor, prior: Tensor) -> Iterator[Tensor]:
        """See :class:`Router`."""
        yield self._weights(encoding, prior)


@final
class NeuronRouter(Router):
    """One softmax per row of a weight and its bias: ``P[i] = softmax(A2[i] relu(A1 e + a1) + a2[i])`` (same paper).

    The head is cut like the rows of the weight, so a neuron has the same logits in every width.

    Args:
        rows: tensor -> rows of its largest shape. Tensors of one module with equally many rows share their decisions.
        features: ``D``.
        experts: ``m``.
        hidden: units of the hidden layer of each module's router.
        generator: of the initial weights.
        zero_head: start ``A2`` and ``a2`` at zero, so that the prior alone decides.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        features: int,
        experts: int,
        *,
        hidden: int,
        generator: torch.Generator,
        zero_head: bool = False,
    ) -> None:
        super().__init__()
        owners = {name: (name.rpartition(".")[0], count) for name, count in rows.items()}
        places = {owner: place for place, owner in enumerate(dict.fromkeys(owners.values()))}
        self._places = {name: places[owner] for name, owner in owners.items()}
        self.hidden = _Maps((len(places), hidden, features), generator)
        heads = [_Maps((count, experts, hidden), generator, zero=zero_head) for _, count in places]
        self.heads = nn.ModuleList(heads)

    def forward(self, encoding: Tensor, prior: Tensor) -> Route:
        """See :class:`Router`; a part of ``(rows, ...)`` gets ``(rows, m)``."""
        units = torch.relu(self.hidden(encoding)).unbind()
        made: dict[tuple[int, tuple[tuple[int, int, int, int], ...]], Tensor] = {}

        def route(part: TensorSlice) -> Tensor:
            place = self._places[part.source]
            rows = tuple(cut for cut in part.cuts if cut[0] == 0)
            key = place, rows
            if key not in made:
                keep = TensorSlice(part.name, part.source, part.shape, rows)
                weight, bias = (keep(parameter) for parameter in self.heads[place].parameters())
                made[key] = torch.softmax(weight @ units[place] + bias + prior, dim=-1)
            return made[key]

        return route

    def decisions(self, encoding: Tensor, prior: Tensor) -> Iterator[Tensor]:
        """See :class:`Router`."""
        units = torch.relu(self.hidden(encoding)).unbind()
        for head, inputs in zip(self.heads, units, strict=True):
            yield torch.softmax(head(inputs) + prior, dim=-1)
