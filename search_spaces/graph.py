"""Graph networks of elastic width and depth, with the operations of every block to choose."""

from collections.abc import Mapping, Sequence
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from search_spaces.architecture import Architecture
from search_spaces.choice import Choice
from search_spaces.graph_layers import ACTIVATIONS, AGGREGATIONS, ATTENTIONS, FIXED
from search_spaces.graph_network import HEAD, SITES, BlockPlan, GraphNetwork, block_name
from search_spaces.quantizer import FULL_PRECISION
from search_spaces.slicing import TensorRule
from search_spaces.space import SearchSpace

__all__ = ["GraphSpace"]

T = TypeVar("T", int, str)


@final
class GraphSpace(SearchSpace):
    """Node classifiers on a graph: the space of LPGNAS (Zhao et al. 2020, arXiv 2009.09232), as we read it.

    A block is a linear map, attention coefficients on the edges, an aggregation over neighbours and an activation, in
    series. ``depth`` hidden blocks are followed by a block ``head`` that gives logits. Choices of a block:

    - ``{block}.width`` (hidden blocks): features of one head.
    - ``{block}.attention``, one of ``const`` 1, ``gcn`` 1 / sqrt(d_i d_j), ``gat`` LeakyReLU(a . h_i + b . h_j),
      ``sym_gat`` e_ij + e_ji of these, ``cos`` <W1 h_i, W2 h_j>, ``linear`` tanh(w . h_j) and ``gene_linear``
      W_b tanh(W1 h_i + W2 h_j). Learned ones go through a softmax over the neighbours of a node.
    - ``{block}.aggregation``: ``mean``, ``max`` or ``sum``; ``{block}.activation`` (hidden blocks).
    - ``{block}.shortcut{j}``: 1 adds a linear map of the output of block j to the input, for blocks that j does not
      feed anyway.
    - ``{block}.bits.{site}``: bits of a site, see ``sites``.

    What has one candidate is no choice. The step of a quantised tensor follows from the tensor itself
    (:func:`search_spaces.dynamic_quantizer.dynamic_quantize`), so that bits need no parameters, and every weight source
    serves. Vectors of attention, biases and shortcuts stay in full precision; the output of the head does too.

    The module takes ``(features (N, in_features), edge_index (2, E))``; features may be sparse COO. An example, in
    ``inputs`` and in counts of multiply-accumulates, is one node with its share of the edges.

    Differs from the paper, of which only the abstract could be read: formats are symmetric grids of a number of bits.

    Args:
        in_features: features of a node.
        num_classes: number of logits.
        widths: ascending candidates for the features of one head of a hidden block.
        depths: ascending candidates for the number of hidden blocks.
        heads: heads of a hidden block, side by side; the head block has one.
        attentions: candidates, the smallest first.
        aggregations: candidates.
        activations: candidates.
        shortcuts: whether outputs of earlier blocks may be routed to later ones.
        scores: inner size of ``cos`` and ``gene_linear``.
        dropout: share of the inputs of every block that is dropped in training.
        weight_bits: ascending candidates; 32 is full precision, and ``(32,)`` leaves the site out.
        activation_bits: ascending candidates of every other site.
        sites: what is quantised beside the weights: ``features`` (input of the linear map), ``linear`` (its output),
            ``attention`` (coefficients) and ``aggregation`` (the sum over neighbours).
        nodes: of the graph; with ``edges`` what buffers and multiply-accumulates are counted for.
        edges: of the graph, each direction counted.

    Raises:
        ValueError: a size is below 1, candidates do not ascend, or a name is unknown or repeated.

    >>> space = GraphSpace(8, 3, widths=(4, 8), attentions=("gcn", "gat"))
    >>> space.size(), dict(space.smallest())
    (8, {'block1.attention': 'gcn', 'block1.width': 4, 'head.attention': 'gcn'})
    """

    bare = True
    mixes_operations = True

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        widths: Sequence[int] = (8, 16, 32),
        depths: Sequence[int] = (1,),
        heads: int = 1,
        attentions: Sequence[str] = ("gcn",),
        aggregations: Sequence[str] = ("sum",),
        activations: Sequence[str] = ("relu",),
        shortcuts: bool = False,
        scores: int = 8,
        dropout: float = 0.5,
        weight_bits: Sequence[int] = (FULL_PRECISION,),
        activation_bits: Sequence[int] = (FULL_PRECISION,),
        sites: Sequence[str] = SITES[1:],
        nodes: int = 1,
        edges: int = 4,
    ) -> None:
        self.in_features, self.num_classes, self.heads, self.scores = in_features, num_classes, heads, scores
        self.widths, self.depths, self.shortcuts, self.dropout = tuple(widths), tuple(depths), shortcuts, dropout
        self.attentions, self.aggregations = tuple(attentions), tuple(aggregations)
        self.activations = tuple(activations)
        self.weight_bits, self.activation_bits, self.sites = tuple(weight_bits), tuple(activation_bits), tuple(sites)
        self.nodes, self.edges = nodes, edges
        self._check()
        self._bits = {"weights": self.weight_bits, **{site: self.activation_bits for site in SITES if site in sites}}
        self._bits = {site: bits for site, bits in self._bits.items() if bits != (FULL_PRECISION,)}
        blocks = [*range(1, self.depths[-1] + 1), None]
        depth = [Choice("depth", self.depths)] if len(self.depths) > 1 else []
        self.choices = (*depth, *(choice for number in blocks for choice in self._block_choices(number)))

    def _check(self) -> None:
        sizes = {name: getattr(self, name) for name in ("in_features", "heads", "scores", "nodes")}
        low = [name for name, value in sizes.items() if value < 1]
        low += [name for name in ("widths", "depths", "weight_bits", "activation_bits") if not self._ascends(name)]
        if low or self.num_classes < 2 or self.edges < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                "GraphSpace needs sizes and ascending candidates of at least 1, num_classes >= 2, edges >= 0 and "
                f"0 <= dropout < 1; look at {low or ['num_classes', 'edges', 'dropout']}, got "
                f"{ {name: getattr(self, name) for name in low} or (self.num_classes, self.edges, self.dropout) }"
            )
        for name in ("weight_bits", "activation_bits"):
            given = getattr(self, name)
            if any(bits > 16 and bits != FULL_PRECISION for bits in given):
                raise ValueError(
                    f"GraphSpace.{name} must be 1 to 16, or {FULL_PRECISION} for full precision, got {given}"
                )
        for name, known in (
            ("attentions", ATTENTIONS),
            ("aggregations", AGGREGATIONS),
            ("activations", ACTIVATIONS),
            ("sites", SITES[1:]),
        ):
            given = getattr(self, name)
            unknown = sorted(set(given) - set(known))
            if unknown or len(set(given)) < len(given) or not (given or name == "sites"):
                raise ValueError(f"GraphSpace.{name} must be distinct names of {known}, got {given}")

    def _ascends(self, name: str) -> bool:
        given = getattr(self, name)
        return bool(given) and min(given) >= 1 and list(given) == sorted(set(given))

    def _block_choices(self, number: int | None) -> list[Choice]:
        """Return the choices of a hidden block, or of the head."""
        name = HEAD if number is None else block_name(number)
        elastic = len(self.depths) > 1
        requires = ("depth", float(number)) if elastic and number is not None else None
        found = [Choice(f"{name}.width", self.widths, requires=requires)] if number is not None else []
        named = [("attention", self.attentions), ("aggregation", self.aggregations)]
        named += [("activation", self.activations)] if number is not None else []
        found += [Choice(f"{name}.{kind}", given, "categorical", requires) for kind, given in named]
        last = self.depths[-1] if number is None else number - 1
        for earlier in range(1, last) if self.shortcuts else ():
            needed = ("depth", float(earlier + 1)) if elastic and number is None else requires
            found.append(Choice(f"{name}.shortcut{earlier}", (0, 1), requires=needed))
        found += [
            Choice(f"{name}.bits.{site}", bits, requires=requires)
            for site, bits in self._bits.items()
            if number is not None or site != "aggregation"
        ]
        return [choice for choice in found if choice.size > 1]

    def _plan(self, number: int | None, architecture: Architecture | None, *, every: bool = False) -> BlockPlan:
        """Return what a block is made of: of everything, or of what ``architecture`` says, but ``every`` operation."""
        name = HEAD if number is None else block_name(number)

        def kept(choice: str, given: tuple[T, ...]) -> tuple[T, ...]:
            if architecture is None or len(given) == 1 or (every and choice != "width"):
                return given
            return (architecture[f"{name}.{choice}"],)  # type: ignore[return-value]

        depth = self._depth(architecture)
        before = range(1, depth if number is None else number - 1)
        routed = {
            earlier: self._plan(earlier, architecture).features
            for earlier in before
            if self.shortcuts and (architecture is None or architecture[f"{name}.shortcut{earlier}"])
        }
        return BlockPlan(
            name=name,
            widths=(self.num_classes,) if number is None else kept("width", self.widths),
            heads=1 if number is None else self.heads,
            attentions=kept("attention", self.attentions),
            aggregations=kept("aggregation", self.aggregations),
            activations=("none",) if number is None else kept("activation", self.activations),
            routed=routed,
            bits={
                site: kept(f"bits.{site}", bits)
                for site, bits in self._bits.items()
                if number is not None or site != "aggregation"
            },
        )

    def _depth(self, architecture: Architecture | None) -> int:
        return self.depths[-1] if architecture is None or len(self.depths) == 1 else architecture.integer("depth")

    def _network(self, architecture: Architecture | None, *, every: bool = False) -> GraphNetwork:
        numbers = [*range(1, self._depth(architecture) + 1), None]
        plans = [self._plan(number, architecture, every=every) for number in numbers]
        return GraphNetwork(plans, self.in_features, scores=self.scores, dropout=self.dropout, depths=self.depths)

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the static network: ``block{i}`` and ``head`` with ``linear``, ``attention`` and ``bias``."""
        return self._network(architecture)

    def superset(self) -> nn.Module:
        """Return the network of all operations; its ``forward(features, edge_index, relaxed)`` weights them."""
        return self._network(None)

    def superposition(self, architecture: Architecture) -> nn.Module:
        """Return the network of all operations in the sizes of ``architecture``."""
        return self._network(architecture, every=True)

    def weighted(self) -> tuple[str, ...]:
        """Return the categorical choices and the bits."""
        return tuple(c.name for c in self.choices if c.kind == "categorical" or ".bits." in c.name)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, in_features)`` and as many edges ``(2, E)`` as so many nodes have."""
        del architecture
        places = torch.arange(round(batch_size * self.edges / self.nodes))
        targets = (places * (places + 1)).div(2, rounding_mode="floor")  # nodes of different degrees
        return torch.zeros(batch_size, self.in_features), torch.stack([places, targets]) % batch_size

    def rules(self) -> Mapping[str, TensorRule]:
        """Cut the features of every head by themselves."""
        if self.heads == 1:
            return {}
        with torch.device("meta"):
            names = [name for name, _ in self.superset().named_parameters()]
        found = {name: TensorRule(blocks=dict.fromkeys(self._dims(name), self.heads)) for name in names}
        return {name: rule for name, rule in found.items() if rule.blocks}

    @staticmethod
    def _dims(name: str) -> tuple[int, ...]:
        """Return the dimensions of a tensor that are features of all heads of a hidden block."""
        block, part = name.split(".", 1)
        if part == "bias":
            return () if block == HEAD else (0,)
        if part == "linear.weight":
            return (1,) if block == HEAD else (0,) if block == block_name(1) else (0, 1)
        if part.startswith("shortcut"):
            return 0, 1
        return () if block == HEAD or part.endswith("mix.weight") else (1,)

    def bitwidths(self, architecture: Architecture) -> Mapping[str, tuple[int, int]]:
        """Return the bits of the weights and the input of each linear map that is quantised."""
        found: dict[str, tuple[int, int]] = {}
        for number in [*range(1, self._depth(architecture) + 1), None]:
            plan = self._plan(number, architecture)
            bits = tuple(plan.bits.get(site, (FULL_PRECISION,))[0] for site in ("weights", "features"))
            if min(bits) < FULL_PRECISION:
                found[f"{plan.name}.linear"] = bits[0], bits[1]
        return found

    def activations_of(self, architecture: Architecture) -> Mapping[str, tuple[int, int]]:
        """Return tensor -> (values, bits) of what the network writes for the whole graph of ``nodes`` and ``edges``.

        ``features`` are the inputs of the linear maps; those of the first block are the data. Coefficients that follow
        from degrees alone belong to the graph and are left out, and so is the output of the head.
        """
        found: dict[str, tuple[int, int]] = {}
        features = self.in_features
        for number in [*range(1, self._depth(architecture) + 1), None]:
            plan = self._plan(number, architecture)
            values = {"features": self.nodes * features, "linear": self.nodes * plan.features}
            if plan.attentions[0] not in FIXED:
                values["attention"] = (self.nodes + self.edges) * plan.heads
            if number is not None:
                values["aggregation"] = self.nodes * plan.features
            for site, count in values.items():
                found[f"{plan.name}.{site}"] = count, plan.bits.get(site, (FULL_PRECISION,))[0]
            features = plan.features
        return found

    def mixed(self) -> tuple[str, ...]:
        """Return the weights of the linear maps of the blocks."""
        return tuple(f"{name}.linear.weight" for name in (*map(block_name, range(1, self.depths[-1] + 1)), HEAD))
