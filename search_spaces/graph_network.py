"""Static graph networks, and the network of all their candidates side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.bare import layer
from search_spaces.dynamic_quantizer import DynamicQuantizer
from search_spaces.graph_layers import FeatureLinear, Graph, OneOf, activation, aggregation, attention

__all__ = ["HEAD", "SITES", "BlockPlan", "GraphNetwork", "block_name"]

HEAD = "head"
SITES = ("weights", "features", "linear", "attention", "aggregation")
Relaxed = Mapping[str, Tensor]


def block_name(number: int) -> str:
    """Return the name of the hidden block ``number``, from 1 on."""
    return f"block{number}"


@dataclass(frozen=True)
class BlockPlan:
    """What a block is made of; a static one has one candidate of everything.

    Attributes:
        name: of the block, and of its choices.
        widths: candidates for the features of one head; the block is built with the largest.
        heads: number of heads.
        attentions: candidates, by name.
        aggregations: candidates, by name.
        activations: candidates, by name.
        routed: earlier block -> its features, for blocks whose output is added to the input.
        bits: site -> candidates, for quantised sites.
    """

    name: str
    widths: tuple[int, ...]
    heads: int
    attentions: tuple[str, ...]
    aggregations: tuple[str, ...]
    activations: tuple[str, ...]
    routed: Mapping[int, int]
    bits: Mapping[str, tuple[int, ...]]

    @property
    def features(self) -> int:
        """Features of all heads together."""
        return self.heads * self.widths[-1]


@final
class _Shortcut(nn.Module):
    """``x + W h`` with the output ``h`` of an earlier block."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = layer(nn.Linear, in_features, out_features, bias=False)

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        projected: Tensor = self.linear(earlier)
        return x + projected


@final
class _Block(nn.Module):
    """Linear map, attention, aggregation and activation, in series, each output rounded where it has bits."""

    def __init__(self, plan: BlockPlan, in_features: int, *, scores: int, dropout: float) -> None:
        super().__init__()
        self.plan = plan
        self.dropout = dropout
        for earlier, size in plan.routed.items():
            self.add_module(f"shortcut{earlier}", _Shortcut(size, in_features))
        self.linear = layer(FeatureLinear, in_features, plan.features, bias=False)
        self.attention = OneOf({name: attention(name, plan.features, plan.heads, scores) for name in plan.attentions})
        self.aggregation = OneOf({name: aggregation(name) for name in plan.aggregations})
        self.bias = nn.Parameter(torch.zeros(plan.features))
        self.activation = OneOf({name: activation(name) for name in plan.activations})
        self.quantizers = nn.ModuleDict({site: DynamicQuantizer(bits) for site, bits in plan.bits.items()})

    def forward(
        self,
        x: Tensor,
        graph: Graph,
        outputs: Mapping[int, Tensor],
        read: Tensor | None = None,
        relaxed: Relaxed | None = None,
    ) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, features)``.

        Args:
            x: output of the block before, or the sparse or dense features of the nodes.
            graph: its edges.
            outputs: of the earlier blocks, by number.
            read: ``(in_features,)``, 1 where some candidate of the block before has that feature; ``None``: everywhere.
            relaxed: weights of the candidates, where there are several.
        """
        plan = self.plan
        for earlier in plan.routed:
            x = self.get_submodule(f"shortcut{earlier}")(x, outputs[earlier])
        made = None if relaxed is None else features_mask(plan, relaxed)
        both = None if made is None else made[:, None] if read is None else made[:, None] * read
        x = self._rounded("features", _dropped(x, self.dropout if self.training else 0.0), relaxed, read)
        h = self.linear(x, self._rounded("weights", self.linear.weight, relaxed, both))
        h = self._rounded("linear", h, relaxed, made)
        coefficients = self.attention(self._weights("attention", relaxed), h, graph)
        coefficients = self._rounded("attention", coefficients, relaxed, None)
        out = self.aggregation(self._weights("aggregation", relaxed), h, coefficients, graph) + self.bias
        out = self._rounded("aggregation", out, relaxed, made)
        return self.activation(self._weights("activation", relaxed), out)  # type: ignore[no-any-return]

    def _weights(self, choice: str, relaxed: Relaxed | None) -> Tensor | None:
        return None if relaxed is None else relaxed.get(f"{self.plan.name}.{choice}")

    def _rounded(self, site: str, x: Tensor, relaxed: Relaxed | None, active: Tensor | None) -> Tensor:
        if site not in self.quantizers:
            return x
        rounded: Tensor = self.quantizers[site](x, self._weights(f"bits.{site}", relaxed), active)
        return rounded


def features_mask(plan: BlockPlan, relaxed: Relaxed) -> Tensor:
    """Return ``(features,)``, 1 where some candidate of positive weight for the width has that feature."""
    weights = relaxed.get(f"{plan.name}.width")
    device = next(iter(relaxed.values())).device
    if weights is None:
        return torch.ones(plan.features, device=device)
    places = torch.arange(plan.widths[-1], device=device)
    wide = places[:, None] < torch.tensor(plan.widths, device=device)
    return (wide & (weights.detach() > 0)).any(1).float().repeat(plan.heads)


def _dropped(x: Tensor, probability: float) -> Tensor:
    if probability == 0:
        return x
    if x.is_sparse:
        values = functional.dropout(x._values(), probability)
        return torch.sparse_coo_tensor(x._indices(), values, x.shape, check_invariants=False, is_coalesced=True)
    return functional.dropout(x, probability)


@final
class GraphNetwork(nn.Module):
    """Blocks in a row and a last one, ``head``, that gives logits of the nodes.

    Args:
        plans: of the hidden blocks and the head.
        in_features: of a node.
        scores: see :func:`search_spaces.graph_layers.attention`.
        dropout: share of the inputs of every block that is dropped in training.
        depths: candidates for the number of hidden blocks.
    """

    open_dims: ClassVar[tuple[Mapping[int, str], ...]] = ({0: "nodes"}, {1: "edges"})
    """Dimensions of the inputs that may have any size in an exported file."""

    def __init__(
        self, plans: Sequence[BlockPlan], in_features: int, *, scores: int, dropout: float, depths: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.hidden = len(plans) - 1
        self.depths = depths
        for plan in plans:
            self.add_module(plan.name, _Block(plan, in_features, scores=scores, dropout=dropout))
            in_features = plan.features

    def forward(self, features: Tensor, edge_index: Tensor, relaxed: Relaxed | None = None) -> Tensor:
        """Map the features of all nodes to logits ``(N, num_classes)``.

        Args:
            features: ``(N, in_features)``, dense or sparse COO.
            edge_index: ``(2, E)`` int64, from the nodes in row 0 to those in row 1, no loops.
            relaxed: weights of the candidates, where there are several.
        """
        graph = Graph.of(edge_index, features)
        outputs: dict[int, Tensor] = {}
        x, masks = features, list[Tensor | None]([None])
        for number in range(1, self.hidden + 1):
            block = self.get_submodule(block_name(number))
            x = block(x, graph, outputs, masks[-1], relaxed)
            outputs[number] = x
            masks.append(None if relaxed is None else features_mask(block.plan, relaxed))  # type: ignore[arg-type]
        read = masks[-1]
        depth = None if relaxed is None else relaxed.get("depth")
        if depth is not None:
            possible = [d for d, weight in zip(self.depths, depth.tolist(), strict=True) if weight > 0]
            read = torch.stack([masks[d] for d in possible]).amax(0)  # type: ignore[misc]
        logits: Tensor = self.get_submodule(HEAD)(x, graph, outputs, read, relaxed)
        return logits
