"""EfficientTDNN on spoken digits: error rates by elasticity, the worth of calibration, the front of error and MACs.

Protocol: three folds of the Free Spoken Digit Dataset, each with two of the six persons held out, of whom nothing is
trained or validated on. Every recording (one digit, 0.4 s on average) is used at five speeds, and a person at another
speed counts as another speaker: 20 training speakers, of whose recordings one in ten is for validation, and 10 speakers
of 5,000 recordings for trials, which are a million random pairs. Two persons alone make one pair of voices, whose error
rate says more about these two than about the networks; it is reported beside, over all pairs of their 1,000 recordings
as they are.

One supernet per fold and seed: first the largest network alone, then kernels, depth and widths become elastic, in each
step the largest network and a random one on labels. Reported are the equal error rates of the largest network, with all
kernels 1, then with the smallest depth too, then with the smallest widths too: each with its own batch-norm statistics,
and with those of the largest network cut to its size, which is what a supernet without calibration would use; on the
trials of held-out speakers, which decide, and on recordings that training has not seen of speakers that it has. The
front is that of random architectures by validation error rate and MACs; the picture beside the results shows their
error rates on trials.
"""

import functools
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import Result
from benchmarks._training import fit
from nas import MACs, SpeechData, WeightSharing
from nas.costs import measure
from nas.standalone import score
from search_spaces import Architecture, TDNNSpace
from supernets import Cosine, ProgressiveRule, SharedWeights, ShrinkingStage, SpeakerVerification, Supernet
from supernets.calibration import norms

FOLDS = (("george", "jackson"), ("lucas", "nicolas"), ("theo", "yweweler"))
SEEDS = (0,)
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.25)
STEPS = (300, 250, 150, 900)  # of each stage: largest, kernels, depth, widths
SAMPLED = 12
PICTURE = Path(__file__).with_suffix(".png")
RATES = ("held out", "held out, uncalibrated", "known", "known, uncalibrated", "two voices")
NESTED = ("largest", "kernels 1", "and smallest depth", "and smallest widths")


def make_space() -> TDNNSpace:
    """Up to three blocks of 64 channels on 40 mels: 68,000 networks of 0.6 to 9 million MACs for a second."""
    return TDNNSpace(
        20,
        mels=40,
        frames=100,
        widths=(16, 32, 48, 64),
        kernels=(1, 3, 5),
        depths=(1, 2, 3),
        head_widths=(48, 96, 192),
        bottleneck=32,
        embedding=64,
    )


def make_data(fold: tuple[str, str], test_speeds: tuple[float, ...] = SPEEDS) -> SpeechData:
    """Crops of 0.5 s to train on, of 0.64 s to score; shorter recordings are repeated."""
    return SpeechData(
        "fsdd",
        held_out=fold,
        speeds=SPEEDS,
        test_speeds=test_speeds,
        sample_rate=8000,
        mels=40,
        frames=50,
        eval_frames=64,
        batch_size=64,
        speakers=20,
    )


def nested(space: TDNNSpace) -> dict[str, Architecture]:
    """The largest network, and what is left as more and more choices go to their smallest candidate."""
    found, values = {}, dict(space.largest())
    for name, part in zip(NESTED, ("", "kernel", "depth", "width"), strict=True):
        values |= {c.name: c.candidates[0] for c in space.choices if part and c.name.endswith(part)}
        found[name] = space.architecture(values)
    return found


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of every run."""
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)


def train(space: TDNNSpace, data: SpeechData, seed: int, steps: tuple[int, ...]) -> Supernet:
    """Train one supernet in four stages."""
    ends = [sum(steps[: stage + 1]) for stage in range(3)]
    globs = ("*.kernel", "depth", "*width")
    stages = [ShrinkingStage(until=ends[0])] + [
        ShrinkingStage(until=end, elastic={glob: "all"}, smallest=False, distillation=False)
        for end, glob in zip([*ends[1:], None], globs, strict=True)
    ]
    supernet = Supernet(
        space,
        SpeakerVerification(),
        source=functools.partial(SharedWeights, seed=seed, kernel_transform=True),
        rule=ProgressiveRule(stages),
        optimizer=adamw,
        schedule=Cosine(warmup=0.05),
        calibration=16,
        seed=seed,
    )
    return fit(supernet, data, sum(steps))


def uncalibrated(supernet: Supernet, architecture: Architecture, largest: nn.Module) -> nn.Module:
    """Return a subnetwork with the statistics of the calibrated largest network, cut like the scales of its norms."""
    module, buffers = supernet.extract(architecture), dict(largest.named_buffers())
    assert isinstance(supernet.source, SharedWeights)
    parts = {part.name: part for part in supernet.source.plan(architecture)}
    for name, layer in norms(module).items():
        part = parts[f"{name}.weight"]
        for leaf in ("running_mean", "running_var"):
            layer.get_buffer(leaf).copy_(part(buffers[f"{name}.{leaf}"]))
    return module


def row_of(task: tuple[tuple[str, str], int], *, steps: tuple[int, ...], sampled: int) -> dict[str, Any]:
    """Everything measured for one fold and seed, error rates in percent."""
    torch.set_num_threads(1)
    fold, seed = task
    space, data = make_space(), make_data(fold)
    supernet = train(space, data, seed, steps)
    trials, validation = (WeightSharing(supernet, data, split=split) for split in ("test", "val"))
    recorded = list(make_data(fold, (1.0,)).test_dataloader())

    def eer(module: nn.Module, batches: list[Any]) -> float:
        return 100 * score(module, supernet.task, batches)["eer"]

    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {"fold": " ".join(fold), "seed": seed, "points": [], "rates": {}}
    largest, tested, known = trials.module(space.largest()), trials.batches()[1], validation.batches()[1]

    def add_point(architecture: Architecture, module: nn.Module) -> tuple[float, float]:
        macs = measure([MACs(space)], space, architecture)["macs"]
        rates = eer(module, known), eer(module, tested)
        found["points"].append((macs, *rates))
        return rates

    for name, architecture in nested(space).items():
        module, without = trials.module(architecture), uncalibrated(supernet, architecture, largest)
        familiar, unseen = add_point(architecture, module)
        rates = (unseen, eer(without, tested), familiar, eer(without, known), eer(module, recorded))
        found["rates"][name] = dict(zip(RATES, rates, strict=True))
    for _ in range(sampled):
        architecture = space.sample(generator)
        add_point(architecture, trials.module(architecture))
    return found


def front(points: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Return the points of which none has fewer MACs and a lower validation error rate, by MACs."""
    best: list[tuple[float, float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def draw(points: list[tuple[float, float, float]], best: list[tuple[float, float, float]], file: Path) -> None:
    """Plot the error rate on trials against MACs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.scatter([p[0] / 1e6 for p in points], [p[2] for p in points], s=14, color="0.6", label="architectures")
    axes.plot([p[0] / 1e6 for p in best], [p[2] for p in best], "o-", ms=4, label="front by validation")
    axes.set_xlabel("million MACs for one second")
    axes.set_ylabel("equal error rate, held-out speakers, %")
    axes.legend(frameon=False)
    figure.savefig(file)


def run(quick: bool = False) -> Result:
    """Three folds, two at a time; ``quick`` takes one fold, a tenth of the steps and three sampled architectures."""
    tasks = [(fold, seed) for seed in SEEDS for fold in FOLDS][: 1 if quick else None]
    steps = tuple(count // 10 for count in STEPS) if quick else STEPS
    with ProcessPoolExecutor(min(2, len(tasks)), mp_context=get_context("spawn")) as pool:
        found = list(pool.map(functools.partial(row_of, steps=steps, sampled=3 if quick else SAMPLED), tasks))
    mean = {
        name: {rate: statistics.mean(row["rates"][name][rate] for row in found) for rate in RATES} for name in NESTED
    }
    points = [
        tuple(map(statistics.mean, zip(*same, strict=True))) for same in zip(*(r["points"] for r in found), strict=True)
    ]
    best = front(points)
    if not quick:
        draw(points, best, PICTURE)
    rows: list[dict[str, object]] = [
        {"fold": fold, "network": name} | {rate: f"{value:.1f}" for rate, value in rates[name].items()}
        for fold, rates in [*((row["fold"], row["rates"]) for row in found), ("mean", mean)]
        for name in NESTED
    ]
    most, kernels, _, least = (mean[name]["held out"] for name in NESTED)
    gain, familiar = (1 - mean[NESTED[3]][rate] / mean[NESTED[3]][f"{rate}, uncalibrated"] for rate in RATES[:3:2])
    ends = (
        f"{best[0][0] / 1e6:.2f} million MACs {best[0][2]:.1f} % to {best[-1][0] / 1e6:.2f} million {best[-1][2]:.1f} %"
    )
    return Result(
        tuple(rows),
        f"equal error rate in percent: largest {most:.1f}, kernels 1 {kernels:.1f}, smallest {least:.1f} (asked: in "
        f"ascending order); calibration lowers that of the smallest by {gain:.0%} (asked: >= 20 %), by "
        f"{familiar:.0%} for known speakers; front of {len(best)} architectures from {ends}; means of {len(found)} "
        "runs",
        most < kernels < least and gain >= 0.2,
    )
