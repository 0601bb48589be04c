"""Bits searched by gates (SBS) on CIFAR-10: bit operations and accuracy over the weight of the cost.

A convolutional network in full precision (20,000 images, 12 epochs), then three epochs of search for each weight
lambda of the cost, all from the same weights; for reference three epochs at 8 bits everywhere. Bits as selected by the
gates, evaluated as an ordinary architecture by single-shot rounding, without fine-tuning. Test accuracy.
"""

import itertools

import torch

from benchmarks import Result
from benchmarks._bits import EPOCH, accuracy, cifar10, full_precision, quantized
from benchmarks._training import fit
from nas.allocation import BitCost
from nas.bitops import BitOps
from nas.costs import measure
from search_spaces import Architecture
from supernets import SBS, SamplingRule, SBSRule, SingleRule

LAMBDAS = (0.02, 0.1, 1.0)


def bits_of(architecture: Architecture) -> str:
    """Mean bits of weights and inputs over the layers that are free to choose."""
    means = []
    for kind in ("weight_bits", "input_bits"):
        found = [architecture.integer(name) for name in architecture if name.endswith(kind)]
        means.append(f"{sum(found) / len(found):.1f}")
    return " / ".join(means)


def run(quick: bool = False) -> Result:
    """Search at three weights of the cost; ``quick`` trains one epoch and searches a fifth of one, at two weights."""
    data = cifar10()
    test = list(data.test_dataloader())[: 1 if quick else None]
    trained = full_precision(data, epochs=1 if quick else 12)
    steps = EPOCH // 5 if quick else 3 * EPOCH
    rules: dict[str, SamplingRule] = {"8 bits": SingleRule("largest")}
    rules |= {f"lambda {weight:g}": SBSRule(BitCost(BitOps), weight) for weight in LAMBDAS[: 2 if quick else None]}
    rows: list[dict[str, object]] = [
        {
            "what": "full precision",
            "weight / input bits": "32.0 / 32.0",
            "M bit operations": "",
            "share of 8 bits": "",
            "accuracy": f"{accuracy(trained, trained.space.largest(), data, test):.1f} %",
        }
    ]
    found: dict[str, tuple[float, float]] = {}
    for name, rule in rules.items():
        supernet = quantized(trained, data, quantizer=SBS(), rule=rule)
        torch.manual_seed(0)
        fit(supernet, data, steps)
        selected = rule.selected()
        assert selected is not None
        (operations,) = measure([BitOps(supernet.space)], supernet.space, selected).values()
        found[name] = operations, accuracy(supernet, selected, data, test)
        rows.append(
            {
                "what": name,
                "weight / input bits": bits_of(selected),
                "M bit operations": f"{operations / 1e6:.1f}",
                "share of 8 bits": f"{operations / found['8 bits'][0]:.2f}",
                "accuracy": f"{found[name][1]:.1f} %",
            }
        )
    falling = [operations for name, (operations, _) in found.items() if name != "8 bits"]
    monotone = all(a >= b for a, b in itertools.pairwise(falling))
    share = found["lambda 0.1"][0] / found["8 bits"][0]
    change = found["lambda 0.1"][1] - found["8 bits"][1]
    return Result(
        tuple(rows),
        f"bit operations {'fall' if monotone else 'do not fall'} with lambda (asked: fall or stay); at lambda 0.1 "
        f"{share:.2f} of those of 8 bits (asked: <= 0.45) with {change:+.1f} points (asked: >= -1.0), before any "
        "fine-tuning",
        monotone and share <= 0.45 and change >= -1.0,
    )
