"""Bits searched by gates (SBS) on CIFAR-10: bit operations and accuracy over the weight of the cost.

A convolutional network in full precision (20,000 images, 12 epochs), then three epochs for each weight lambda of the
cost, all from the same weights: two in which gates learn, one at the bits that they have found. For reference three
epochs at 8 bits everywhere, and at 4 bits everywhere, for which nothing is searched. Bits as selected by the gates,
evaluated as an ordinary architecture by single-shot rounding. Means over three seeds of initial weights and order.
Judged is the lambda of the fewest bit operations whose accuracy on the validation images is within one point of 8 bits;
test accuracy is what is reported.
"""

import itertools
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch

from benchmarks import Result
from benchmarks._bits import EPOCH, accuracy, cifar10, full_precision, quantized, space
from benchmarks._training import fit
from nas.bitops import BitOps
from nas.costs import measure
from search_spaces import Architecture, QuantizedSpace
from supernets import SBS, SamplingRule, SBSRule, SingleRule

LAMBDAS = (0.02, 0.05, 0.07, 0.1, 1.0)
SEEDS = (0, 1, 2)
REFERENCE = "8 bits"
Row = dict[str, float]


def bits_of(architecture: Architecture) -> tuple[float, float]:
    """Mean bits of weights and of inputs over the layers that are free to choose."""
    weights, inputs = (
        statistics.mean(architecture.integer(name) for name in architecture if name.endswith(kind))
        for kind in ("weight_bits", "input_bits")
    )
    return weights, inputs


def seed_rows(seed: int, quick: bool) -> dict[str, Row]:
    """What -> figures of one seed."""
    data = cifar10(seed)
    validation = list(data.val_dataloader())[: 1 if quick else None]
    test = list(data.test_dataloader())[: 1 if quick else None]
    trained = full_precision(data, epochs=1 if quick else 12, seed=seed)
    steps = EPOCH // 5 if quick else 3 * EPOCH
    given = QuantizedSpace(space())
    four = given.quantized(given.space.largest(), 4)
    rules: dict[str, SamplingRule] = {REFERENCE: SingleRule("largest"), "4 bits": SingleRule(dict(four))}
    rules |= {
        f"lambda {weight:g}": SBSRule(BitOps, weight, until=2 * steps // 3)
        for weight in LAMBDAS[: 2 if quick else None]
    }
    full = trained.space.largest()
    rows: dict[str, Row] = {
        "full precision": {"weights": 32, "inputs": 32, "test": accuracy(trained, full, data, test)}
    }
    for name, rule in rules.items():
        supernet = quantized(trained, data, quantizer=SBS(), rule=rule)
        torch.manual_seed(seed)
        fit(supernet, data, steps)
        selected = rule.selected()
        assert selected is not None
        (operations,) = measure([BitOps(supernet.space)], supernet.space, selected).values()
        weights, inputs = bits_of(selected)
        rows[name] = {
            "weights": weights,
            "inputs": inputs,
            "operations": operations,
            "share": operations / rows[REFERENCE]["operations"] if name != REFERENCE else 1.0,
            "validation": accuracy(supernet, selected, data, validation),
            "test": accuracy(supernet, selected, data, test),
        }
    return rows


def run(quick: bool = False) -> Result:
    """Search at five weights of the cost; ``quick`` takes one seed, trains one epoch and searches at two weights."""
    seeds = SEEDS[: 1 if quick else None]
    with ProcessPoolExecutor(min(2, len(seeds)), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(seed_rows, quick=quick), seeds))

    def mean(name: str, field: str) -> float:
        return statistics.mean(rows[name][field] for rows in found)

    rows = [
        {
            "what": name,
            "weight / input bits": f"{mean(name, 'weights'):.1f} / {mean(name, 'inputs'):.1f}",
            "M bit operations": f"{mean(name, 'operations') / 1e6:.1f}" if "share" in found[0][name] else "",
            "share of 8 bits": f"{mean(name, 'share'):.2f}" if "share" in found[0][name] else "",
            "accuracy": f"{mean(name, 'test'):.1f} %",
            "of each seed": ", ".join(f"{each[name]['test']:.1f}" for each in found),
        }
        for name in found[0]
    ]
    searched = [name for name in found[0] if name.startswith("lambda")]
    monotone = all(mean(a, "operations") >= mean(b, "operations") for a, b in itertools.pairwise(searched))
    close = [n for n in searched if mean(n, "validation") >= mean(REFERENCE, "validation") - 1.0] or searched[:1]
    chosen = min(close, key=lambda name: mean(name, "operations"))
    share, change = mean(chosen, "share"), mean(chosen, "test") - mean(REFERENCE, "test")
    return Result(
        tuple(rows),
        f"bit operations {'fall' if monotone else 'do not fall'} with lambda (asked: fall or stay); at {chosen}, "
        f"within one point of 8 bits by validation, {share:.2f} of their operations (asked: <= 0.45) with "
        f"{change:+.1f} points on test (asked: >= -1.0)",
        monotone and share <= 0.45 and change >= -1.0,
    )
