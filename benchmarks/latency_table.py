"""Does a table of single operators rank whole networks by latency, across fp32 and int8, as ONNX Runtime measures them?

Forty random convolutional networks of 2 to 6 layers, half in fp32 and half W8A8, each exported and timed whole. The
table is fitted to twenty others. Networks are timed in three rounds, so that all see the same machine, one thread.
"""

import statistics
import tempfile
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks import Result
from nas.costs import MACs
from nas.latency import exclusively
from nas.latency_table import LatencyTable, affine_fit, make_latency_table, write_network
from nas.runtime import prepare, time_runs
from search_spaces import Architecture, FactorySpace, QuantizedSpace, cost_of

ASKED = 0.9
FITTED = 20
ROUNDS = 3  # over all networks; the least time of each counts


class Plain(nn.Module):
    """Convolutions with batch norm and ReLU, one after another, at half the size from the third one on."""

    def __init__(self, width: int = 16, growth: int = 16, kernel: int = 3, depth: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential()
        inputs = 8
        for index in range(depth):
            outputs = width + growth * index
            stride = 2 if index == 2 else 1
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            self.body.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
            inputs = outputs
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x).mean((2, 3)))
        return scores


def space() -> QuantizedSpace:
    plain = FactorySpace(
        Plain,
        {"width": [8, 16, 32, 48], "growth": [0, 8, 16], "kernel": [1, 3, 5], "depth": [2, 3, 4, 5, 6]},
        input_shape=(8, 24, 24),
    )
    return QuantizedSpace(plain, weight_bits=(8, 32), input_bits=(8, 32), ends=None, groups={"all": ["*"]})


def draw(space: QuantizedSpace, count: int, seed: int) -> list[Architecture]:
    """Different networks, every other one W8A8."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[Architecture, None] = {}
    while len(found) < count:
        base = space.space.sample(generator)
        found[space.quantized(base, 8 if len(found) % 2 else 32)] = None
    return list(found)


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    whole = space()
    count, fitted, repeats = (8, 4, 30) if quick else (40, FITTED, 300)
    architectures = draw(whole, count, seed=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [write_network(whole, architecture, folder) for architecture in architectures]
        table = folder / "table.json"
        make_latency_table(whole, table, networks=fitted, samples=0, repeats=repeats)
        cost = LatencyTable(whole, str(table))
        totals = [cost.total(architecture) for architecture in architectures]
        prepared = [
            prepare(file, whole.inputs(architecture, 1))
            for file, architecture in zip(files, architectures, strict=True)
        ]
        with exclusively(None):
            rounds = [
                [time_runs([one], warmup=5, repeats=repeats // ROUNDS)[0].minimum for one in prepared]
                for _ in range(ROUNDS)
            ]
        measured = [min(times) for times in zip(*rounds, strict=True)]
    predicted = [cost.fit(total) for total in totals]
    counted = cost_of(whole, MACs)
    macs = [counted(architecture) for architecture in architectures]
    eight = [any(bits == 8 for bits, _ in whole.bitwidths(a).values()) for a in architectures]
    rows = []
    for label, kept in (
        ("all", [True] * count),
        ("fp32", [not value for value in eight]),
        ("int8", eight),
    ):
        chosen = [index for index in range(count) if kept[index]]

        def pick(values: list[float], chosen: list[int] = chosen) -> list[float]:
            return [values[index] for index in chosen]

        raw, fit, truth = pick(totals), pick(predicted), pick(measured)
        own = affine_fit(raw, truth)
        rows.append(
            {
                "networks": f"{label}, {len(chosen)}",
                "measured, ms": f"{min(truth):.3f} to {max(truth):.3f}",
                "Spearman, table": f"{spearmanr(fit, truth).statistic:.3f}",
                "Spearman, MACs": f"{spearmanr(pick(macs), truth).statistic:.3f}",
                "error, sum": f"{100 * median_error(raw, truth):.1f} %",
                "error, fitted to others": f"{100 * median_error(fit, truth):.1f} %",
                "error, fitted to these": f"{100 * own.error:.1f} %",
            }
        )
    found = float(spearmanr(predicted, measured).statistic)
    verdict = (
        f"Spearman {found:.3f} between predicted and measured latency of {count} networks in fp32 and int8 (asked: >= "
        f"{ASKED}); median error {100 * median_error(predicted, measured):.1f} % after a fit to {fitted} others"
    )
    return Result(tuple(rows), verdict, found >= ASKED)


def median_error(given: list[float], wanted: list[float]) -> float:
    """Median of the relative error."""
    return statistics.median(abs(a - b) / b for a, b in zip(given, wanted, strict=True))
