"""Does a deep target train through a hypernetwork, with the ordinary and with the magnitude-invariant parametrization?

A dense hypernetwork generates an MLP of six layers for 14 x 14 MNIST digits from one random number per step, for 300
steps; the accuracy is the mean over 16 conditions, on the test split. Nothing in the task depends on the condition: it
is a disturbance that the parametrization has to bear.
"""

import functools
import statistics

import torch

from benchmarks import Result
from benchmarks._hypernets import OPTIMIZERS, generator_of, train
from hypernets import Parametrization

SEEDS = (0, 1, 2)
SWITCHES = {"ordinary": Parametrization.ordinary(), "magnitude-invariant": Parametrization()}
ASKED = {
    ("Adam 1e-3", "ordinary"): (0.0, 0.70),
    ("Adam 1e-3", "magnitude-invariant"): (0.92, 1.0),
    ("SGD 1e-2", "ordinary"): (0.0, 0.15),
    ("SGD 1e-2", "magnitude-invariant"): (0.91, 1.0),
}


def run(quick: bool) -> Result:
    """Three seeds; ``quick`` takes one and 100 steps, which says little."""
    torch.set_num_threads(1)
    seeds, steps = (SEEDS[:1], 100) if quick else (SEEDS, 300)
    rows, figures, passed = [], [], True
    for (optimizer, label), (low, high) in ASKED.items():
        fit = functools.partial(train, optimizer=OPTIMIZERS[optimizer], steps=steps)
        found = [fit(generator_of("dense", SWITCHES[label], seed), seed=seed) for seed in seeds]
        mean = statistics.fmean(outcome.accuracy for outcome in found)
        asked = f">= {low:.2f}" if low else f"<= {high:.2f}"
        rows.append(
            {
                "optimizer": optimizer,
                "parametrization": label,
                "accuracy": f"{mean:.3f}",
                "asked": asked,
                "each seed": " ".join(f"{outcome.accuracy:.3f}" for outcome in found),
                "worst condition": f"{min(outcome.lowest for outcome in found):.3f}",
                "loss, steps 50-100": f"{statistics.fmean(outcome.early for outcome in found):.2f}",
                "norm of deltas / weights": f"{statistics.fmean(outcome.delta for outcome in found):.2f}",
            }
        )
        figures.append(f"{optimizer} {label} {mean:.3f} (asked: {asked})")
        passed = passed and low <= mean <= high
    return Result(tuple(rows), f"test accuracy, mean of {len(seeds)} seeds: {'; '.join(figures)}", passed)
