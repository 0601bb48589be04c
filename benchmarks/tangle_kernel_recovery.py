"""Does differentiable search find the kernel that the data was made with?

A teacher convolves ``(4, 16)`` signals with a random kernel of 3, 5 or 7 taps and adds noise of deviation one; the
student is one convolution whose kernel is the only choice. 48 examples train the weights, 48 others alpha, 400 steps,
bilevel. Eight teachers of each size. Trying every size alone is the reference. Plain softmax is reported beside the
samplers because it shows why weights must be drawn: without noise the shared kernel absorbs any positive mask.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal, final

import lightning as L
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import Result
from benchmarks._training import fit
from search_spaces import Architecture, Choice, SearchSpace
from supernets import (
    AlphaSampler,
    DifferentiableRule,
    DrNASSampler,
    GDASSampler,
    SharedWeights,
    SoftmaxSampler,
    SPOSSampler,
    Supernet,
    Task,
)

KERNELS = (3, 5, 7)
CHANNELS, LENGTH, EXAMPLES = 4, 16, 48
STEPS, TEACHERS = 400, 8
SAMPLERS: Mapping[str, Callable[[], AlphaSampler]] = {
    "DrNAS": DrNASSampler,
    "GDAS": lambda: GDASSampler(STEPS, (1.0, 1.0)),
    "softmax": SoftmaxSampler,
    "SPOS, then the best of three": SPOSSampler,
}


class OneConvolution(SearchSpace):
    """A convolution of elastic kernel.

    Args:
        kernels: candidates.
    """

    def __init__(self, kernels: tuple[int, ...] = KERNELS) -> None:
        self.kernels = kernels
        self.choices = (Choice("kernel", kernels),)

    def build(self, architecture: Architecture) -> nn.Module:
        """Return the convolution, which keeps the length."""
        kernel = architecture.integer("kernel")
        return nn.Conv1d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, bias=False)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return zeros ``(batch_size, 4, 16)``."""
        return (torch.zeros(batch_size, CHANNELS, LENGTH),)


@final
class Regression(Task):
    """Mean squared error against a target of the outputs' shape."""

    headline = "loss"
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = {"loss": ("1", "minimize")}

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the signals."""
        return (batch[0],)

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(outputs, batch[1])

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean squared error against the teacher."""
        return F.mse_loss(outputs, teacher)

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return the mean squared error."""
        return torchmetrics.MetricCollection({"loss": torchmetrics.MeanSquaredError()})

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add a batch."""
        metrics.update(outputs, batch[1])


class Forever:
    """One batch, again and again."""

    def __init__(self, batch: tuple[Tensor, Tensor], count: int) -> None:
        self.batch, self.count = batch, count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.count)

    def __len__(self) -> int:
        return self.count


class Teacher(L.LightningDataModule):
    """Signals and what a random kernel makes of them."""

    def __init__(self, kernel: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed * 10 + kernel)
        weight = torch.randn(CHANNELS, CHANNELS, kernel, generator=generator) / (CHANNELS * kernel) ** 0.5

        def draw() -> tuple[Tensor, Tensor]:
            signals = torch.randn(EXAMPLES, CHANNELS, LENGTH, generator=generator)
            clean = F.conv1d(signals, weight, padding=kernel // 2)
            return signals, clean + torch.randn(clean.shape, generator=generator)

        self.training, self.held_out = draw(), draw()

    def train_dataloader(self) -> Forever:
        """Return the training batch, a long epoch of it."""
        return Forever(self.training, 10_000)

    def val_dataloader(self) -> Forever:
        """Return the batch that alpha learns from."""
        return Forever(self.held_out, 1)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of the weights."""
    return torch.optim.Adam(parameters, lr=1e-2)


def held_out_loss(supernet: Supernet, data: Teacher, architecture: Architecture) -> float:
    """Loss of one size on the held-out batch."""
    with torch.no_grad():
        return float(F.mse_loss(supernet.bind(architecture)(data.held_out[0]), data.held_out[1]))


def recovered(kernel: int, seed: int, steps: int) -> dict[str, bool]:
    """Whether each way finds the kernel of one teacher."""
    torch.set_num_threads(1)
    space, data = OneConvolution(), Teacher(kernel, seed)
    found: dict[str, bool] = {}

    def trained(given: SearchSpace, rule: DifferentiableRule) -> Supernet:
        net = Supernet(
            given,
            Regression(),
            source=functools.partial(SharedWeights, seed=seed),
            rule=rule,
            optimizer=adam,
            seed=seed,
        )
        return fit(net, data, steps)

    for name, sampler in SAMPLERS.items():
        net = trained(space, DifferentiableRule(sampler(), lr=0.02, weight_decay=0.0, held_out=EXAMPLES))
        best = net.rule.selected() or min(space.architectures(), key=lambda a: held_out_loss(net, data, a))
        found[name] = best.integer("kernel") == kernel
    alone = {size: trained(OneConvolution((size,)), DifferentiableRule(SPOSSampler())) for size in KERNELS}
    losses = {size: held_out_loss(net, data, net.space.largest()) for size, net in alone.items()}
    found["each size alone"] = min(losses, key=lambda size: losses[size]) == kernel
    return found


def run(quick: bool = False) -> Result:
    """Twenty-four teachers, two at a time; ``quick`` takes three teachers and a tenth of the steps."""
    steps, teachers = (STEPS // 10, 1) if quick else (STEPS, TEACHERS)
    jobs = [(kernel, seed) for kernel in KERNELS for seed in range(teachers)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(recovered, *zip(*jobs, strict=True), [steps] * len(jobs)))
    rows = []
    for name in found[0]:
        by_size = {
            f"teacher {kernel}": sum(f[name] for (k, _), f in zip(jobs, found, strict=True) if k == kernel)
            for kernel in KERNELS
        }
        rows.append({"method": name, **by_size, "recovered": f"{sum(by_size.values())}/{len(jobs)}"})
    right = {name: sum(f[name] for f in found) for name in found[0]}
    return Result(
        tuple(rows),
        f"DrNAS finds the teacher's kernel in {right['DrNAS']} of {len(jobs)} (asked: >= 22 of 24); GDAS "
        f"{right['GDAS']}, softmax {right['softmax']}",
        right["DrNAS"] >= 22 * len(jobs) / 24,
    )
