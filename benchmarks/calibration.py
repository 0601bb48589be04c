"""Does temperature scaling lower the calibration error of subnetworks, and does it change which are best?

Two supernets of multi-layer perceptrons (1 to 4 layers of 32 to 512 units), on MNIST at 14 x 14 and on CIFAR-10 at
8 x 8 pixels, are trained with the sandwich rule on labels, without label smoothing. Random subnetworks are then
measured on the test split, the temperature of each fitted on the validation split; and on one half of the validation
split with the temperature from the other, as a search sees them.
"""

import statistics
from typing import Any

import torch
from scipy.stats import spearmanr

from benchmarks import Result
from benchmarks._training import fit
from nas import Confidence, ImageData, WeightSharing
from search_spaces import MLPSpace
from supernets import Classification, SandwichRule, SharedWeights, Supernet

SEEDS = (0, 1, 2)
DATA = {
    "mnist": {"size": 14, "train_limit": 5_000},
    "cifar10": {"size": 8, "train_limit": 10_000},
}
FEATURES = {"mnist": 196, "cifar10": 192}
STEPS = 1500
SUBNETWORKS = 40


def train(name: str, data: ImageData, seed: int, steps: int) -> Supernet:
    """Train one supernet on labels."""
    space = MLPSpace(FEATURES[name], 10, widths=(32, 64, 128, 256, 512), depths=(1, 2, 3, 4))
    supernet = Supernet(
        space,
        Classification(10),
        source=lambda given: SharedWeights(given, seed=seed),
        rule=SandwichRule(2, distillation=False),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01),
        schedule=lambda progress: min(1.0, progress * 20) * max(0.02, 1 - progress),
        seed=seed,
    )
    return fit(supernet, data, steps)


def measure(name: str, seed: int, *, steps: int, subnetworks: int) -> dict[str, Any]:
    """Train a supernet and measure random subnetworks of it."""
    data = ImageData(name, batch_size=128, validation_fraction=0.4, **DATA[name])
    supernet = train(name, data, seed, steps)
    drawn = [supernet.space.sample(torch.Generator().manual_seed(draw)) for draw in range(2 * subnetworks)]
    architectures = list(dict.fromkeys(drawn))[:subnetworks]
    found: dict[str, dict[str, list[float]]] = {}
    for split in ("val", "test"):
        objective = WeightSharing(supernet, data, split=split, confidence=Confidence())
        measured = [objective(architecture, seed=0).measurements for architecture in architectures]
        found[split] = {key: [values[key] for values in measured] for key in measured[0]}
    return found


def _rank(x: list[float], y: list[float]) -> float:
    return float(spearmanr(x, y).statistic)


def run(quick: bool = False) -> Result:
    """Two data sets and 3 seeds; ``quick`` takes MNIST, one seed, a tenth of the steps and 8 subnetworks."""
    rows: list[dict[str, object]] = []
    lowered = []
    for name in ("mnist",) if quick else DATA:
        for seed in SEEDS[: 1 if quick else None]:
            found = measure(name, seed, steps=STEPS // (10 if quick else 1), subnetworks=8 if quick else SUBNETWORKS)
            val, test = found["val"], found["test"]
            mean = {key: statistics.mean(values) for key, values in test.items()}
            lowered.append(mean["ece_scaled"] < mean["ece"])
            pairs = list(zip(test["ece"], test["ece_scaled"], strict=True))
            rows.append(
                {
                    "data": name,
                    "seed": seed,
                    "accuracy": f"{100 * mean['accuracy']:.1f}",
                    "temperature": f"{min(test['temperature']):.2f} to {max(test['temperature']):.2f}",
                    "ECE": f"{100 * mean['ece']:.2f}",
                    "scaled": f"{100 * mean['ece_scaled']:.2f}",
                    "adaptive ECE": f"{100 * mean['ece_adaptive']:.2f}",
                    "scaled, adaptive": f"{100 * mean['ece_adaptive_scaled']:.2f}",
                    "NLL": f"{mean['nll']:.3f}",
                    "scaled NLL": f"{mean['nll_scaled']:.3f}",
                    "lower": f"{sum(after < before for before, after in pairs)} of {len(pairs)}",
                    "rho raw, scaled": f"{_rank(test['ece'], test['ece_scaled']):.2f}",
                    "rho val, test": f"{_rank(val['ece'], test['ece']):.2f}",
                    "rho val, test, scaled": f"{_rank(val['ece_scaled'], test['ece_scaled']):.2f}",
                    "rho accuracy, scaled": f"{_rank(test['accuracy'], test['ece_scaled']):.2f}",
                }
            )
    return Result(
        tuple(rows),
        f"temperature scaling lowers the mean ECE on the test split in {sum(lowered)} of {len(lowered)} supernets "
        "(asked: all); how it changes the ranking is reported, not judged",
        all(lowered),
    )
