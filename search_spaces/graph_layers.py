"""Static layers of graph networks: attention coefficients, aggregation and activation of one block."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.bare import layer

__all__ = [
    "ACTIVATIONS",
    "AGGREGATIONS",
    "ATTENTIONS",
    "FIXED",
    "FeatureLinear",
    "Graph",
    "GraphOperation",
    "OneOf",
    "activation",
    "aggregation",
    "attention",
]

ATTENTIONS = ("const", "gcn", "gat", "sym_gat", "cos", "linear", "gene_linear")
AGGREGATIONS = ("mean", "max", "sum")
FIXED = ("const", "gcn")
"""Attentions that follow from the degrees alone."""
ACTIVATIONS = ("none", "sigmoid", "tanh", "softplus", "relu", "leaky_relu", "relu6", "elu")


class Graph(NamedTuple):
    """The edges of a graph, with one from every node to itself.

    Attributes:
        sources: ``(E,)`` node that each edge comes from.
        targets: ``(E,)`` node that it goes to.
        degrees: ``(N,)`` edges that go to each node.
    """

    sources: Tensor
    targets: Tensor
    degrees: Tensor

    @classmethod
    def of(cls, edge_index: Tensor, features: Tensor) -> "Graph":
        """Return the graph of ``(2, E - N)`` edges without loops, row 0 to row 1, over the N rows of ``features``."""
        loops = torch.arange(features.shape[0], device=edge_index.device)
        sources, targets = torch.cat([edge_index[0], loops]), torch.cat([edge_index[1], loops])
        ones = torch.ones(targets.shape, device=edge_index.device)
        degrees = torch.zeros(loops.shape, device=edge_index.device).index_add(0, targets, ones)
        return cls(sources, targets, degrees)


class GraphOperation(nn.Module, ABC):
    """Something that multiplies along edges, by gathers and sums that no counter of matrix products sees."""

    @abstractmethod
    def macs(self, *inputs: Any) -> int:
        """Return the multiply-accumulates of one call with ``inputs``."""


@final
class FeatureLinear(nn.Linear):
    """A linear map without bias of dense or sparse rows, initialised as in GCN (Glorot, arXiv 1609.02907)."""

    def reset_parameters(self) -> None:
        """Draw the weight."""
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Map ``(N, in_features)`` to ``(N, out_features)``.

        Args:
            x: dense, or sparse COO, at the price of its non-zeros.
            weight: takes the place of the layer's own, rounded say.
        """
        weight = self.weight if weight is None else weight
        if not x.is_sparse:
            return functional.linear(x, weight)
        rows, columns = x._indices()
        terms = weight.t().index_select(0, columns) * x._values()[:, None]
        return terms.new_zeros(x.shape[0], self.out_features).index_add(0, rows, terms)


def _softmax(scores: Tensor, graph: Graph) -> Tensor:
    """Normalise ``(E, K)`` scores over the edges that go to one node."""
    nodes, index = graph.degrees.shape[0], graph.targets[:, None].expand_as(scores)
    largest = scores.detach().new_zeros(nodes, scores.shape[1])
    largest = largest.scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
    raised = (scores - largest.index_select(0, graph.targets)).exp()
    total = raised.new_zeros(nodes, scores.shape[1]).index_add(0, graph.targets, raised)
    return raised / total.index_select(0, graph.targets)


@final
class _Constant(nn.Module):
    """``e_ij = 1``."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        return h.new_ones(graph.targets.shape[0], self.heads)


@final
class _Normalised(nn.Module):
    """``e_ij = 1 / sqrt(d_i d_j)`` (GCN, arXiv 1609.02907)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        root = graph.degrees.rsqrt().to(h.dtype)
        e = root.index_select(0, graph.targets) * root.index_select(0, graph.sources)
        return e[:, None].expand(-1, self.heads)


@final
class _Additive(nn.Module):
    """``e_ij = LeakyReLU(l . h_i + r . h_j)`` (GAT, arXiv 1710.10903, Eq. 3); symmetric: ``e_ij + e_ji``."""

    def __init__(self, features: int, heads: int, *, symmetric: bool) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.left = layer(nn.Linear, features, heads, bias=False)
        self.right = layer(nn.Linear, features, heads, bias=False)

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        left, right = self.left(h), self.right(h)
        scores = self._scores(left, right, graph.targets, graph.sources)
        if self.symmetric:
            scores = scores + self._scores(left, right, graph.sources, graph.targets)
        return _softmax(scores, graph)

    @staticmethod
    def _scores(left: Tensor, right: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return functional.leaky_relu(left.index_select(0, first) + right.index_select(0, second), 0.2)


@final
class _Products(GraphOperation):
    """``<a_i, b_j>`` of every edge and head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, a: Tensor, b: Tensor, graph: Graph) -> Tensor:
        terms = a.index_select(0, graph.targets) * b.index_select(0, graph.sources)
        return terms.view(terms.shape[0], self.heads, -1).sum(-1)

    def macs(self, *inputs: Any) -> int:
        return int(inputs[0].shape[1] * inputs[2].targets.shape[0])


@final
class _Cosine(nn.Module):
    """``e_ij = <W1 h_i, W2 h_j>``."""

    def __init__(self, features: int, heads: int, scores: int) -> None:
        super().__init__()
        self.left = layer(nn.Linear, features, heads * scores, bias=False)
        self.right = layer(nn.Linear, features, heads * scores, bias=False)
        self.product = _Products(heads)

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        return _softmax(self.product(self.left(h), self.right(h), graph), graph)


@final
class _Linear(nn.Module):
    """``e_ij = tanh(w . h_j)``."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.right = layer(nn.Linear, features, heads, bias=False)

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        return _softmax(self.right(h).tanh().index_select(0, graph.sources), graph)


@final
class _GeneLinear(nn.Module):
    """``e_ij = W_b tanh(W1 h_i + W2 h_j)``."""

    def __init__(self, features: int, heads: int, scores: int) -> None:
        super().__init__()
        self.left = layer(nn.Linear, features, heads * scores, bias=False)
        self.right = layer(nn.Linear, features, heads * scores, bias=False)
        self.mix = layer(nn.Linear, heads * scores, heads, bias=False)

    def forward(self, h: Tensor, graph: Graph) -> Tensor:
        left, right = self.left(h), self.right(h)
        both = left.index_select(0, graph.targets) + right.index_select(0, graph.sources)
        return _softmax(self.mix(both.tanh()), graph)


def attention(name: str, features: int, heads: int, scores: int) -> nn.Module:
    """Return the module that maps ``(N, features)`` and a :class:`Graph` to coefficients ``(E, heads)``.

    Learned scores go through a softmax over the edges that go to one node, as in GAT.

    Args:
        name: one of ``ATTENTIONS``.
        features: of all heads together.
        heads: numbers of coefficients of an edge.
        scores: inner size of ``"cos"`` and ``"gene_linear"``, for each head.

    Raises:
        ValueError: ``name`` is none of them.
    """
    match name:
        case "const":
            return _Constant(heads)
        case "gcn":
            return _Normalised(heads)
        case "gat" | "sym_gat":
            return _Additive(features, heads, symmetric=name == "sym_gat")
        case "cos":
            return _Cosine(features, heads, scores)
        case "linear":
            return _Linear(features, heads)
        case "gene_linear":
            return _GeneLinear(features, heads, scores)
    raise ValueError(f"attention must be one of {ATTENTIONS}, got {name!r}")


@final
class _Aggregate(GraphOperation):
    """Mean, maximum or sum of ``e_ij h_j`` over the edges that go to node i."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, h: Tensor, coefficients: Tensor, graph: Graph) -> Tensor:
        heads = h.view(h.shape[0], coefficients.shape[1], -1)
        messages = (heads.index_select(0, graph.sources) * coefficients[:, :, None]).flatten(1)
        empty = torch.zeros_like(h)
        if self.kind == "max":
            index = graph.targets[:, None].expand_as(messages)
            return empty.scatter_reduce(0, index, messages, "amax", include_self=False)
        total = empty.index_add(0, graph.targets, messages)
        return total / graph.degrees[:, None].to(h.dtype) if self.kind == "mean" else total

    def macs(self, *inputs: Any) -> int:
        return int(inputs[0].shape[1] * inputs[2].targets.shape[0])


def aggregation(name: str) -> nn.Module:
    """Return the module that maps ``(N, F)``, coefficients ``(E, heads)`` and a :class:`Graph` to ``(N, F)``.

    Raises:
        ValueError: ``name`` is none of ``AGGREGATIONS``.
    """
    if name not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {AGGREGATIONS}, got {name!r}")
    return _Aggregate(name)


def activation(name: str) -> nn.Module:
    """Return a new activation.

    Raises:
        ValueError: ``name`` is none of ``ACTIVATIONS``.
    """
    modules: dict[str, type[nn.Module]] = {
        "none": nn.Identity,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "softplus": nn.Softplus,
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "relu6": nn.ReLU6,
        "elu": nn.ELU,
    }
    if name not in modules:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {name!r}")
    return modules[name]()


@final
class OneOf(nn.Module):
    """One of several candidates, or all of them side by side, each under its name; their outputs have one shape.

    Args:
        members: name -> module.
    """

    def __init__(self, members: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, member in members.items():
            self.add_module(name, member)

    def forward(self, weights: Tensor | None, *inputs: Any) -> Tensor:
        """Return the output of the only member, or the sum of all under ``(members,)`` weights."""
        members = list(self.children())
        if weights is None:
            only: Tensor = members[0](*inputs)
            return only
        terms = [
            weight * member(*inputs)
            for member, weight in zip(members, weights.unbind(), strict=True)
            if weight.requires_grad or weight != 0
        ]
        return torch.stack(terms).sum(0)
