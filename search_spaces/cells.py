"""The cell space of NAS-Bench-201 and NATS-Bench."""

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.architecture import Architecture, InvalidArchitectureError
from search_spaces.bare import layer
from search_spaces.cell_graph import EDGES, Edge, Equivalence, expression, from_text, live_edges, paths, to_text
from search_spaces.choice import Candidate, Choice
from search_spaces.operations import MixedOp, normal_convolution, operation
from search_spaces.space import SearchSpace

__all__ = ["CellSpace"]

OPERATIONS = ("skip_connect", "none", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3")


def _name(edge: Edge) -> str:
    return f"edge{edge[0]}_{edge[1]}"


@final
class Cell(nn.Module):
    """Three nodes, each the sum of operations on the nodes before it; the last one is the output.

    Args:
        edges: edge -> name of its operation; edges left out are absent.
        channels: of every node.
        affine: whether batch norms have scales and biases.
    """

    def __init__(self, edges: Mapping[Edge, str], channels: int, *, affine: bool) -> None:
        super().__init__()
        self.edges = tuple(edges)
        for edge, name in edges.items():
            chosen = OrderedDict({name: operation(name, channels, affine=affine)})
            self.add_module(_name(edge), nn.Sequential(chosen))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape; zeros where no edge leads to the output."""
        nodes = {0: x}
        for source, target in self.edges:
            term = self.get_submodule(_name((source, target)))(nodes[source])
            nodes[target] = nodes[target] + term if target in nodes else term
        return nodes[EDGES[-1][1]] if self.edges else torch.zeros_like(x)


@final
class RelaxedCell(nn.Module):
    """A :class:`Cell` with every operation on every edge.

    Args:
        operations: candidates of every edge.
        channels: of every node.
        affine: whether batch norms have scales and biases.
    """

    def __init__(self, operations: tuple[str, ...], channels: int, *, affine: bool) -> None:
        super().__init__()
        self.operations = operations
        for edge in EDGES:
            self.add_module(_name(edge), MixedOp(operations, channels, affine=affine))

    def forward(self, x: Tensor, relaxed: Mapping[str, Tensor]) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape; ``relaxed`` has the weights ``(operations,)`` of each edge."""
        nodes, absent = [x], [x.new_zeros(())]
        for target in range(1, EDGES[-1][1] + 1):
            total, empty = torch.zeros_like(x), x.new_ones(())
            for source in range(target):
                weights = relaxed[_name((source, target))]
                total = total + self.get_submodule(_name((source, target)))(nodes[source], weights, 1 - absent[source])
                none = weights[self.operations.index("none")] if "none" in self.operations else 0.0
                empty = empty * (1 - (1 - none) * (1 - absent[source]))
            nodes.append(total)
            absent.append(empty)
        return nodes[-1]


@final
class Reduction(nn.Module):
    """The residual block between stages: two 3x3 convolutions, the first of stride 2, and a pooled 1x1 shortcut.

    Args:
        in_channels: of ``(B, in_channels, H, W)``.
        out_channels: of ``(B, out_channels, ceil(H / 2), ceil(W / 2))``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = normal_convolution(in_channels, out_channels, 3, stride=2)
        self.conv2 = normal_convolution(out_channels, out_channels, 3)
        self.shortcut = layer(nn.Conv2d, in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features at half the resolution."""
        shortcut = self.shortcut(functional.avg_pool2d(x, 2, ceil_mode=True))
        reduced: Tensor = self.conv2(self.conv1(x)) + shortcut
        return reduced


@final
class CellNetwork(nn.Module):
    """Stem, stages of equal cells with reductions between them, head.

    Args:
        space: widths, depths and sizes.
        edges: edge -> operation of a static network; ``None`` puts every operation on every edge, and the network then
            needs their weights.
    """

    def __init__(self, space: "CellSpace", edges: Mapping[Edge, str] | None) -> None:
        super().__init__()
        first, last = space.widths[0], space.widths[-1]
        self.stem = layer(nn.Conv2d, space.in_channels, first, 3, padding=1, bias=False)
        self.stem_norm = layer(nn.BatchNorm2d, first)
        self.stages = len(space.widths)
        for number, width in enumerate(space.widths, 1):
            stage = nn.Module()
            if number > 1:
                stage.add_module("reduction", Reduction(space.widths[number - 2], width))
            for count in range(1, space.cells + 1):
                made = (
                    RelaxedCell(space.operations, width, affine=space.affine)
                    if edges is None
                    else Cell(edges, width, affine=space.affine)
                )
                stage.add_module(f"cell{count}", made)
            self.add_module(f"stage{number}", stage)
        self.head_norm = layer(nn.BatchNorm2d, last)
        self.classifier = layer(nn.Linear, last, space.num_classes)

    def forward(self, x: Tensor, relaxed: Mapping[str, Tensor] | None = None) -> Tensor:
        """Map images ``(B, in_channels, H, W)`` to logits ``(B, num_classes)``; ``relaxed`` for a network of all."""
        x = self.stem_norm(self.stem(x))
        for number in range(1, self.stages + 1):
            for name, part in self.get_submodule(f"stage{number}").named_children():
                x = part(x) if relaxed is None or name == "reduction" else part(x, relaxed)
        x = functional.relu(self.head_norm(x)).mean((2, 3))
        logits: Tensor = self.classifier(x)
        return logits


@final
class CellSpace(SearchSpace):
    """Image classifiers of one repeated cell: the topology space of NATS-Bench (Dong et al. 2021, arXiv 2009.00437).

    A cell has four nodes; each of its six edges, from every node to every later one, is one operation. Choices are
    ``edge{i}_{j}``, the operation from node i to node j. The network is a 3x3 stem, one stage of equal cells per width
    with residual reductions between them, and a linear head. In a build each edge is its operation and nothing else:
    edges of ``"none"`` are absent, and so are edges that nothing feeds or nothing reads.

    Operations share no weights. The supernet keeps each operation of each edge of each cell
    (:meth:`superset`) under the name it has where it is built, and :class:`search_spaces.MixedOp` sums them for
    differentiable search.

    Cells that are the same network are one architecture, the one of the fewest operations: see ``equivalence``.
    :meth:`from_text` and :meth:`to_text` read and write ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``.

    The last operation makes the largest architecture, which teaches in the sandwich rule, and the first the smallest:
    by default 3x3 convolutions everywhere, and skips everywhere, a network of stem, reductions and head.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images.
        resolution: side of the images, in pixels; networks take any, costs are counted for this one.
        widths: channels of the stages; each stage after the first halves the resolution.
        cells: cells in each stage.
        operations: candidates of every edge, among those of the default.
        equivalence: ``"nats_bench"`` tells cells apart exactly as the ``unique_str`` of the published table does, 6,466
            classes of 15,625 cells. Some of these compute the same function, the table being strict about zeros and
            the order of sums: ``"function"`` takes them together too, 4,930 classes.
        affine: whether norms of operations have scales and biases. Differentiable search sets it to ``False``, for a
            scale would undo the weight of its operation; the architecture found serves in a space of either kind.

    Raises:
        ValueError: a size is below one, or operations that are unknown, repeated, or begin or end with ``"none"``.

    >>> space = CellSpace(10)
    >>> space.to_text(space.from_text("|none~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|"))
    '|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|skip_connect~2|'
    """

    bare = True
    mixes_operations = True

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        resolution: int = 32,
        widths: tuple[int, ...] = (16, 32, 64),
        cells: int = 5,
        operations: tuple[str, ...] = OPERATIONS,
        equivalence: Equivalence = "nats_bench",
        affine: bool = True,
    ) -> None:
        self.num_classes, self.in_channels, self.resolution = num_classes, in_channels, resolution
        self.widths, self.cells, self.operations = tuple(widths), cells, tuple(operations)
        self.equivalence, self.affine = equivalence, affine
        if not self.widths or min(num_classes, in_channels, resolution, cells, *self.widths) < 1:
            raise ValueError(
                "CellSpace needs num_classes, in_channels, resolution, cells and every width to be at least 1, got "
                f"{num_classes=}, {in_channels=}, {resolution=}, {cells=}, widths={self.widths}"
            )
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError(f"CellSpace.operations must be one or more distinct names, got {self.operations}")
        if not set(self.operations) <= set(OPERATIONS):
            raise ValueError(f"CellSpace.operations must be among {OPERATIONS}, got {self.operations}")
        if "none" in (self.operations[0], self.operations[-1]):
            raise ValueError(
                "CellSpace.operations makes the smallest cell of its first operation and the largest of its last, and "
                f"cells of 'none' compute nothing; put 'none' between others, got {self.operations}"
            )
        if equivalence not in ("nats_bench", "function"):
            raise ValueError(f"CellSpace.equivalence must be 'nats_bench' or 'function', got {equivalence!r}")
        self.choices = tuple(Choice(_name(edge), self.operations, "categorical") for edge in EDGES)

    @cached_property
    def _representatives(self) -> dict[str, tuple[str, ...]]:
        """Expression -> operations of the cell that stands for it; one pass over all cells, a fifth of a second."""
        found: dict[str, tuple[int, tuple[str, ...]]] = {}
        for cell in itertools.product(self.operations, repeat=len(EDGES)):
            key = expression(dict(zip(EDGES, cell, strict=True)), self.equivalence)
            operations = len(EDGES) - cell.count("none")
            if key not in found or operations < found[key][0]:
                found[key] = operations, cell
        return {key: cell for key, (_, cell) in found.items()}

    def canonical(self, values: Mapping[str, Candidate]) -> Mapping[str, Candidate]:
        """Return the cell of the fewest operations among those that are the same network, the first of several."""
        cell = self._representatives[expression(self._operations(values), self.equivalence)]
        return {_name(edge): name for edge, name in zip(EDGES, cell, strict=True)}

    def size(self) -> int:
        """Return the number of different networks."""
        return len(self._representatives)

    @staticmethod
    def _operations(values: Mapping[str, Candidate]) -> dict[Edge, str]:
        return {edge: str(values[_name(edge)]) for edge in EDGES}

    def motifs(self, architecture: Architecture) -> Mapping[str, int]:
        """Return how often each sequence of operations leads from the input of the cell to its output."""
        return paths(self._operations(architecture))

    def to_text(self, architecture: Architecture) -> str:
        """Return the form of NAS-Bench-201: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``."""
        return to_text(self._operations(architecture))

    def from_text(self, text: str) -> Architecture:
        """Return the architecture of the cell written so.

        Raises:
            InvalidArchitectureError: the text is not of that form, or names an operation that is no candidate.
        """
        try:
            operations = from_text(text)
        except ValueError as error:
            raise InvalidArchitectureError(str(error)) from error
        return self.architecture({_name(edge): name for edge, name in operations.items()})

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static network: ``stem*``, ``stage{i}.reduction``, ``stage{i}.cell{j}.edge*``, head layers."""
        return CellNetwork(self, live_edges(self._operations(architecture)))

    def superset(self) -> nn.Module:
        """Return the network of every operation; its ``forward(images, relaxed)`` takes their weights per edge."""
        return CellNetwork(self, None)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, in_channels, resolution, resolution)``."""
        del architecture
        return (torch.zeros(batch_size, self.in_channels, self.resolution, self.resolution),)

    def zero_init(self) -> tuple[str, ...]:
        """Return the scale of the last norm of every reduction."""
        return tuple(f"stage{number}.reduction.conv2.norm.weight" for number in range(2, len(self.widths) + 1))
