"""Handing out a subnetwork never asked for before, against ``copy.deepcopy`` of the same static network.

The MobileNetV3-size space of AttentiveNAS with 1,000 classes; a new architecture every time, so nothing is cached.
Each is timed next to a copy of the same architecture. What comes second finds memory warm, so the order alternates and
a ratio is that of the sums over two neighbours, one of either order; the figure is the median of these ratios.
"""

import copy
import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks import Result
from search_spaces import Architecture, SearchSpace, mobilenet_v3_space
from supernets import Classification, Supernet

ASKED = {"bind": 0.7, "extract": 1.0}


def seconds(call: Callable[[], nn.Module]) -> float:
    """CPU time of one call, which on one thread is the wall time of an idle machine; freeing the module is left out."""
    start = time.process_time()
    made = call()
    elapsed = time.process_time() - start
    del made
    return elapsed


def paired(space: SearchSpace, architecture: Architecture, make: Callable[[Architecture], nn.Module], *, first: bool):
    """Seconds of ``make`` and of copying the same network; ``first`` says which of them begins."""
    with torch.random.fork_rng():
        static = space.build(architecture).eval()
    if first:
        made = seconds(lambda: make(architecture))
        return made, seconds(lambda: copy.deepcopy(static))
    copied = seconds(lambda: copy.deepcopy(static))
    return seconds(lambda: make(architecture)), copied


def ratio(times: Sequence[tuple[float, float]]) -> float:
    """Median over neighbouring pairs of the ratio of their sums."""
    neighbours = zip(times[::2], times[1::2], strict=True)
    return statistics.median((a + c) / (b + d) for (a, b), (c, d) in neighbours)


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    space = mobilenet_v3_space(1000)
    supernet = Supernet(space, Classification(1000)).eval()
    warmup, count = 4, 20 if quick else 150
    fresh = iter(supernet.sample(2 * (warmup + count), generator=torch.Generator().manual_seed(0)))
    pairs: dict[str, list[tuple[float, float]]] = {"bind": [], "extract": []}
    gc.disable()
    try:
        for step in range(warmup + count):
            for name, make in (("bind", supernet.bind), ("extract", supernet.extract)):
                times = paired(space, next(fresh), make, first=step % 2 == 0)
                if step >= warmup:
                    pairs[name].append(times)
                gc.collect()
    finally:
        gc.enable()
    ratios = {name: ratio(times) for name, times in pairs.items()}
    rows = tuple(
        {
            "operation": name,
            "median, ms": f"{statistics.median(made for made, _ in times) * 1e3:.2f}",
            "deepcopy, ms": f"{statistics.median(copied for _, copied in times) * 1e3:.2f}",
            "median ratio": f"{ratios[name]:.2f}",
            "asked": f"<= {ASKED[name]}",
        }
        for name, times in pairs.items()
    )
    verdict = ", ".join(f"{name} {ratio:.2f} x deepcopy (asked <= {ASKED[name]})" for name, ratio in ratios.items())
    return Result(
        rows,
        f"{verdict}, each over {count} new architectures",
        all(ratio <= ASKED[name] for name, ratio in ratios.items()),
    )
