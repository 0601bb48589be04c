"""Are generated weights proportional to the condition, and does magnitude-invariant parametrization end that?

The slope of log norm of the weights over log norm of the condition, at initialisation, for conditions u s with a random
direction u of D components and s from 0.01 to 1: mean over seeds of the absolute slope, and the worst deviation from
what is asked. Ordinary parametrization: no encoding, final bias from zero. The argument of the paper (arXiv 2304.07645,
section 3) needs a generator that is positively homogeneous: a recurrent one is not, nor is a product of two generated
factors, so of those only the slope with the method is asked for.
"""

import functools
import statistics
from collections.abc import Callable, Mapping

import torch
from torch import nn

from benchmarks import Result
from hypernets import (
    ChunkedHyperNetwork,
    DenseHyperNetwork,
    HyperNetwork,
    Parametrization,
    RecurrentHyperNetwork,
    Target,
    Unit,
)

SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)
GENERATORS: Mapping[str, Callable[..., HyperNetwork]] = {
    "dense": functools.partial(DenseHyperNetwork, hidden=(16, 64, 128)),
    "chunked": functools.partial(ChunkedHyperNetwork, hidden=(16, 64, 128)),
    "chunked, products": functools.partial(ChunkedHyperNetwork, hidden=(16, 64, 128), low_rank_above=1000),
    "recurrent": functools.partial(RecurrentHyperNetwork, width=128),
}
HOMOGENEOUS = ("dense", "chunked")
SWITCHES = {
    "ordinary": Parametrization.ordinary(),
    "encoding only": Parametrization(residual="zero"),
    "residual only": Parametrization(encoding="none"),
    "both": Parametrization(),
}


def lenet() -> nn.Module:
    """24 thousand weights."""
    return nn.Sequential(nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3), nn.Linear(64, 10))


@torch.no_grad()
def slope(name: str, parametrization: Parametrization, components: int, seed: int) -> float:
    torch.manual_seed(seed)
    hypernet = GENERATORS[name](Target.of(lenet()), {"g": Unit(components)}, parametrization=parametrization)
    direction = torch.rand(components)
    direction /= direction.norm()
    weights = hypernet.generate({"g": direction * torch.tensor(SCALES)[:, None]})
    norms = torch.stack([value.flatten(1).square().sum(1) for value in weights.values()]).sum(0).sqrt()
    x, y = torch.tensor(SCALES).log(), norms.log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def run(quick: bool) -> Result:
    """Five seeds; ``quick`` takes one."""
    torch.set_num_threads(1)
    seeds = range(1 if quick else 5)
    rows, ordinary, invariant = [], 0.0, 0.0
    for name in GENERATORS:
        for components in (1, 2, 8):
            found = {
                label: [slope(name, switches, components, seed) for seed in seeds]
                for label, switches in SWITCHES.items()
            }
            rows.append(
                {"generator": name, "D": components}
                | {label: f"{statistics.fmean(values):.3f}" for label, values in found.items()}
                | {"worst with both": f"{max(map(abs, found['both'])):.3f}"}
            )
            invariant = max(invariant, statistics.fmean(map(abs, found["both"])))
            if name in HOMOGENEOUS:
                ordinary = max(ordinary, *(abs(value - 1) for value in found["ordinary"]))
    return Result(
        tuple(rows),
        f"slope of the ordinary parametrization within {ordinary:.3f} of 1 for {' and '.join(HOMOGENEOUS)} (asked: <= "
        f"0.02); with encoding and residual at most {invariant:.3f} for every generator, mean of {len(seeds)} seeds "
        "(asked: <= 0.02)",
        ordinary <= 0.02 and invariant <= 0.02,
    )
