"""The cell space of DARTS."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture, InvalidArchitectureError
from search_spaces.bare import layer
from search_spaces.choice import Candidate, Choice
from search_spaces.operations import FactorizedReduce, MixedOp, normal_convolution, operation
from search_spaces.space import SearchSpace

__all__ = ["DARTSSpace"]

OPERATIONS = (
    "skip_connect",
    "avg_pool_3x3",
    "max_pool_3x3",
    "dil_conv_3x3",
    "sep_conv_3x3",
    "dil_conv_5x5",
    "sep_conv_5x5",
)
KINDS = ("normal", "reduction")
Genotype = Mapping[str, Sequence[tuple[str, int]]]


def _pairs(node: int) -> list[tuple[int, int]]:
    """Return the pairs of nodes that may feed ``node``."""
    return list(itertools.combinations(range(node), 2))


@final
class DARTSCell(nn.Module):
    """Nodes 0 and 1 are the outputs of the two cells before; each later node is the sum of operations on earlier ones.

    The output is the later nodes, side by side.

    Args:
        space: nodes and operations.
        edges: (source, target) -> operation of a static cell; ``None`` puts every operation on every edge.
        channels: of the outputs of the two cells before, and of every node.
        reduction: whether the cell halves the resolution.
        after_reduction: whether the cell before did, so that the one before that has twice the resolution.
    """

    def __init__(
        self,
        space: "DARTSSpace",
        edges: Mapping[tuple[int, int], str] | None,
        channels: tuple[int, int, int],
        *,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        before, last, width = channels
        self.kind = KINDS[reduction]
        self.space = space
        self.preprocess0 = (
            FactorizedReduce(before, width, affine=space.affine)
            if after_reduction
            else normal_convolution(before, width, 1, affine=space.affine)
        )
        self.preprocess1 = normal_convolution(last, width, 1, affine=space.affine)
        every = [(source, target) for target in space.targets for source in range(target)]
        self.edges = every if edges is None else sorted(edges, key=lambda edge: (edge[1], edge[0]))
        for source, target in self.edges:
            stride = 2 if reduction and source < 2 else 1
            made: nn.Module
            if edges is None:
                made = MixedOp(space.operations, width, stride=stride, affine=space.affine)
            else:
                name = edges[source, target]
                made = nn.Sequential(OrderedDict({name: operation(name, width, stride=stride, affine=space.affine)}))
            self.add_module(f"edge{source}_{target}", made)

    def forward(self, before: Tensor, last: Tensor, relaxed: Mapping[str, Tensor] | None = None) -> Tensor:
        """Map the outputs of two cells ``(B, C, H, W)`` to ``(B, nodes x width, H / stride, W / stride)``."""
        nodes = {0: self.preprocess0(before), 1: self.preprocess1(last)}
        weights = {} if relaxed is None else self.space.edge_weights(self.kind, relaxed)
        for source, target in self.edges:
            edge = self.get_submodule(f"edge{source}_{target}")
            if relaxed is None:
                term = edge(nodes[source])
            else:
                term = edge(nodes[source], weights[source, target], last.new_ones(()))
            nodes[target] = nodes[target] + term if target in nodes else term
        return torch.cat([nodes[target] for target in self.space.targets], 1)


@final
class DARTSNetwork(nn.Module):
    """Stem, cells of which two are reductions, head.

    Args:
        space: sizes.
        edges: kind -> (source, target) -> operation of a static network; ``None`` puts every operation on every edge,
            and the network then needs their weights.
    """

    def __init__(self, space: "DARTSSpace", edges: Mapping[str, Mapping[tuple[int, int], str]] | None) -> None:
        super().__init__()
        before = last = 3 * space.width
        self.stem = layer(nn.Conv2d, space.in_channels, last, 3, padding=1, bias=False)
        self.stem_norm = layer(nn.BatchNorm2d, last)
        self.cells = nn.ModuleList()
        width, after_reduction = space.width, False
        for number in range(space.cells):
            reduction = number in (space.cells // 3, 2 * space.cells // 3)
            width *= 2 if reduction else 1
            chosen = None if edges is None else edges[KINDS[reduction]]
            cell = DARTSCell(space, chosen, (before, last, width), reduction=reduction, after_reduction=after_reduction)
            self.cells.append(cell)
            before, last, after_reduction = last, space.nodes * width, reduction
        self.classifier = layer(nn.Linear, last, space.num_classes)

    def forward(self, x: Tensor, relaxed: Mapping[str, Tensor] | None = None) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``; ``relaxed`` for a network of all."""
        before = last = self.stem_norm(self.stem(x))
        for cell in self.cells:
            before, last = last, cell(before, last, relaxed)
        logits: Tensor = self.classifier(last.mean((2, 3)))
        return logits


@final
class DARTSSpace(SearchSpace):
    """Image classifiers of a normal and a reduction cell (Liu et al. 2019, arXiv 1806.09055, Sec. 2.1).

    In each cell every node takes exactly two different nodes before it, each through one operation. Choices are
    ``{normal,reduction}.node{i}.inputs``, the pair of them (left out for the first node, which has one), and
    ``.first`` and ``.second``, the operations on the earlier and the later of the pair. Nodes 0 and 1 are the outputs
    of the two cells before. The cells at a third and two thirds of the depth are reductions and double the width.

    Operations share no weights; :meth:`superset` has all of them, and its ``forward(images, relaxed)`` weights them.
    The last operation makes the largest architecture, which teaches in the sandwich rule.

    Differs from the paper: no auxiliary head and no drop-path; pooling has no batch norm in search either, so that a
    subnetwork is the network searched. The nodes of a cell are not interchanged to find equal ones.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        resolution: side of the images, in pixels; networks take any, costs are counted for this one.
        width: channels of a node of the first cell; even.
        cells: cells in all, at least 3.
        nodes: nodes of a cell beside its two inputs.
        operations: candidates of every edge: skips, pooling and convolutions of ``search_spaces.operations``.
        affine: whether norms have scales and biases; ``False`` for differentiable search, where a scale would undo the
            weight of its operation.

    Raises:
        ValueError: a size is out of range, or operations that are unknown or repeated.
    """

    bare = True
    mixes_operations = True

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        resolution: int = 32,
        width: int = 16,
        cells: int = 8,
        nodes: int = 4,
        operations: tuple[str, ...] = OPERATIONS,
        affine: bool = True,
    ) -> None:
        self.num_classes, self.in_channels, self.resolution = num_classes, in_channels, resolution
        self.width, self.cells, self.nodes, self.operations = width, cells, nodes, tuple(operations)
        self.affine = affine
        if min(num_classes, in_channels, resolution, width, nodes) < 1 or cells < 3 or width % 2:
            raise ValueError(
                "DARTSSpace needs num_classes, in_channels, resolution and nodes of at least 1, an even width and at "
                f"least 3 cells, got {num_classes=}, {in_channels=}, {resolution=}, {nodes=}, {width=}, {cells=}"
            )
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError(f"DARTSSpace.operations must be one or more distinct names, got {self.operations}")
        with torch.device("meta"):
            for name in self.operations:
                operation(name, 2)
        self.targets = range(2, nodes + 2)
        self.choices = tuple(
            choice
            for kind in KINDS
            for node in self.targets
            for choice in (
                Choice(f"{kind}.node{node}.inputs", tuple(f"{a},{b}" for a, b in _pairs(node)), "categorical"),
                Choice(f"{kind}.node{node}.first", self.operations, "categorical"),
                Choice(f"{kind}.node{node}.second", self.operations, "categorical"),
            )
            if choice.size > 1 or not choice.name.endswith("inputs")
        )

    def genotype(self, architecture: Architecture) -> dict[str, list[tuple[str, int]]]:
        """Return ``{"normal": [...], "reduction": [...]}``: for each node two pairs of operation and input node."""
        found: dict[str, list[tuple[str, int]]] = {}
        for kind in KINDS:
            found[kind] = []
            for node in self.targets:
                inputs = str(architecture.get(f"{kind}.node{node}.inputs", "0,1")).split(",")
                for place, source in zip(("first", "second"), inputs, strict=True):
                    found[kind].append((str(architecture[f"{kind}.node{node}.{place}"]), int(source)))
        return found

    def from_genotype(self, genotype: Genotype) -> Architecture:
        """Return the architecture of :meth:`genotype`; the two pairs of a node may come in any order.

        Raises:
            InvalidArchitectureError: a cell or node is missing, a node has one input twice, or an operation or input is
                no candidate.
        """
        values: dict[str, Candidate] = {}
        for kind in KINDS:
            pairs = [(str(name), int(source)) for name, source in genotype.get(kind, ())]
            if len(pairs) != 2 * self.nodes:
                raise InvalidArchitectureError(
                    f"genotype[{kind!r}] must have two (operation, input) for each of {self.nodes} nodes, got {pairs}"
                )
            for node in self.targets:
                (first, low), (second, high) = sorted(pairs[2 * node - 4 : 2 * node - 2], key=lambda pair: pair[1])
                if node > 2 or (low, high) != (0, 1):
                    values[f"{kind}.node{node}.inputs"] = f"{low},{high}"
                values |= {f"{kind}.node{node}.first": first, f"{kind}.node{node}.second": second}
        return self.architecture(values)

    def probes(self) -> Iterator[Architecture]:
        """Yield architectures that between them take every candidate of every choice, all choices moving on together.

        Operations share no weights, so no choice has to be looked at by itself, which would take ten times as many.
        """
        for position in range(max(choice.size for choice in self.choices)):
            yield self.architecture({c.name: c.candidates[-1 - position % c.size] for c in self.choices})

    def edge_weights(self, kind: str, relaxed: Mapping[str, Tensor]) -> dict[tuple[int, int], Tensor]:
        """Return (source, target) -> expected weights ``(operations,)`` in cells of ``kind``, choices independent."""
        found: dict[tuple[int, int], Tensor] = {}
        for node in self.targets:
            operations = relaxed[f"{kind}.node{node}.first"], relaxed[f"{kind}.node{node}.second"]
            pairs = relaxed[f"{kind}.node{node}.inputs"] if node > 2 else operations[0].new_ones(1)
            for source in range(node):
                found[source, node] = torch.zeros_like(operations[0])
            for pair, weight in zip(_pairs(node), pairs.unbind(), strict=True):
                for source, weights in zip(pair, operations, strict=True):
                    found[source, node] = found[source, node] + weight * weights
        return found

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static network: ``stem*``, ``cells.{i}.preprocess*``, ``cells.{i}.edge*``, ``classifier``."""
        edges = {
            kind: {(source, 2 + position // 2): name for position, (name, source) in enumerate(pairs)}
            for kind, pairs in self.genotype(architecture).items()
        }
        return DARTSNetwork(self, edges)

    def superset(self) -> nn.Module:
        """Return the network of every operation; its ``forward(images, relaxed)`` takes the weights of the choices."""
        return DARTSNetwork(self, None)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, in_channels, resolution, resolution)``."""
        del architecture
        return (torch.zeros(batch_size, self.in_channels, self.resolution, self.resolution),)
