"""The graph of a NAS-Bench-201 cell: its text form, and which cells are the same network."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal

__all__ = ["EDGES", "Edge", "Equivalence", "expression", "from_text", "live_edges", "paths", "to_text"]

Edge = tuple[int, int]
Equivalence = Literal["nats_bench", "function"]

NODES = 4
EDGES: tuple[Edge, ...] = tuple((source, target) for target in range(1, NODES) for source in range(target))
"""(source, target) of every edge; node 0 is the input of the cell, node 3 its output."""


def expression(operations: Mapping[Edge, str], equivalence: Equivalence) -> str:
    """Return the output of a cell as text that is equal for cells that are the same network.

    ``"function"``: no input and no zero contributes, a skip is what it skips from, and a sum is flat and has no order.
    ``"nats_bench"``: the text of the table of NATS-Bench (Dong et al. 2021, arXiv 2009.00437), which differs in two
    ways. It keeps zeros as terms and knows only a single zero to be one, so a node with two absent inputs is not zero
    there; and it sorts a sum that was skipped as one term, so ``(a + c) + b`` and ``a + (b + c)`` remain apart. Its
    classes are those of ``"function"``, some of them divided.
    """
    exact = equivalence == "function"
    nodes: list[tuple[str, ...]] = [("0",)]
    for target in range(1, NODES):
        terms: list[str] = []
        for source in range(target):
            name, inputs = operations[source, target], nodes[source]
            if name == "none" or inputs in ((), ("#",)):
                terms += () if exact else ("#",)
            elif name == "skip_connect":
                terms += inputs
            else:
                terms.append(f"({'+'.join(inputs)})@{name}")
        nodes.append(tuple(sorted(terms)) if exact else ("+".join(sorted(terms)),))
    return "+".join(nodes[-1])


def live_edges(operations: Mapping[Edge, str]) -> dict[Edge, str]:
    """Return the edges on a path from the input of the cell to its output: what has to be built."""
    present = [edge for edge in EDGES if operations[edge] != "none"]
    fed, used = {0}, {NODES - 1}
    for source, target in present:  # EDGES ascend in the target
        if source in fed:
            fed.add(target)
    for source, target in reversed(present):
        if target in used:
            used.add(source)
    return {
        (source, target): operations[source, target]
        for source, target in present
        if source in fed & used and target in used
    }


def paths(operations: Mapping[Edge, str]) -> dict[str, int]:
    """Return how many paths from the input of the cell to its output apply each sequence of operations.

    Skips are left out of a sequence, and ``none`` ends it. Cells whose ``expression(..., "function")`` is equal have
    equal counts: this is a path encoding (White et al., arXiv 1910.11858) that does not see how a cell is written.
    """
    found: list[list[str]] = [[""]]
    for target in range(1, NODES):
        reaching = []
        for source in range(target):
            name = operations[source, target]
            if name == "skip_connect":
                reaching += found[source]
            elif name != "none":
                reaching += [f"{path}>{name}" for path in found[source]]
        found.append(reaching)
    return dict(Counter(found[-1]))


def to_text(operations: Mapping[Edge, str]) -> str:
    """Return the form of NAS-Bench-201: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|``, nodes 1 to 3 and their inputs."""
    nodes = (
        "".join(f"|{operations[source, target]}~{source}" for source in range(target)) + "|" for target in (1, 2, 3)
    )
    return "+".join(nodes)


def from_text(text: str) -> dict[Edge, str]:
    """Read :func:`to_text` back; the inputs of a node may come in any order.

    Raises:
        ValueError: the text is not of that form, or does not name every edge once.
    """
    found: dict[Edge, str] = {}
    nodes = text.strip().split("+")
    for target, node in enumerate(nodes, 1):
        inner = node.strip().strip("|").split("|")
        for part in inner:
            match = re.fullmatch(r"(\w+)~(\d)", part)
            if match is None or (int(match[2]), target) not in EDGES or (int(match[2]), target) in found:
                raise ValueError(
                    "a cell is written |op~0|+|op~0|op~1|+|op~0|op~1|op~2| with one operation for each input of nodes "
                    f"1 to 3, got {text!r}, where {part!r} of node {target} does not fit"
                )
            found[int(match[2]), target] = match[1]
    missing = [edge for edge in EDGES if edge not in found]
    if missing:
        raise ValueError(
            f"a cell is written |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, got {text!r}, which lacks the edges "
            + ", ".join(f"{source} -> {target}" for source, target in missing)
        )
    return found
