"""Does the cell space call equal exactly the cells that the table of NATS-Bench calls equal?

Reads ``nats_bench/topology.parquet`` below ``NAS_DATA_DIR``. A cell agrees when the cells of its architecture are those
with its ``unique_str`` in the table, no more and no fewer. Reported beside it: the classes of
``equivalence="function"``, and how far the published test accuracies of the cells of one class lie apart (CIFAR-10, 200
epochs).
"""

import statistics
from collections import defaultdict
from typing import get_args

from benchmarks import Result
from nas.tabular import read_table
from search_spaces import CellSpace
from search_spaces.cell_graph import Equivalence


def run(quick: bool = False) -> Result:
    """The whole table; it takes seconds, so ``quick`` changes nothing."""
    del quick
    table = read_table("nats_bench/topology.parquet", ("unique_str", "cifar10_test_acc_200ep"))
    rows = []
    agreeing = 0
    for equivalence in get_args(Equivalence):
        space = CellSpace(10, equivalence=equivalence)
        found: dict[str, set[str]] = defaultdict(set)
        published: dict[object, set[str]] = defaultdict(set)
        for text, (unique, _) in table.items():
            found[space.from_text(text).arch_id].add(text)
            published[unique].add(text)
        agree = sum(found[space.from_text(text).arch_id] == published[unique] for text, (unique, _) in table.items())
        if equivalence == "nats_bench":
            agreeing = agree
        spreads = [statistics.pstdev(table[text][1] for text in cells) for cells in found.values() if len(cells) > 1]
        rows.append(
            {
                "equivalence": equivalence,
                "cells": len(table),
                "architectures": space.size(),
                "classes of the table": len(published),
                "cells that agree": agree,
                "mean spread within, points": f"{statistics.mean(spreads):.3f}",
            }
        )
    return Result(
        tuple(rows),
        f"{agreeing:,} of {len(table):,} cells have the class of the table (asked: all of 15,625)",
        agreeing == len(table) == 15_625,
    )
