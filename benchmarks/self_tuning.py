"""Do dropout rates that are tuned while training get from a poor start to what good fixed rates reach?

A perceptron of 118,282 weights on 1,500 pooled MNIST digits, with a dropout rate in front of each of its three layers.
Fixed rates of 0.05 overfit. Self-tuning starts there and moves the rates along the gradient of the loss on 1,000 other
digits, through a learned best response: plain (Self-Tuning Networks), and in the two forms of Delta-STN, centred, and
centred and linearised. The plain response reads the hyperparameters themselves, and diverges at a learning rate of 0.1;
the centred one reads by how much they are perturbed, which is less, and takes this rate. As a control, the gradient is
that of the loss on the training digits, which ask for no dropout; and the rates that plain self-tuning ended with are
trained from scratch. Every row has the test loss at the step with the lowest loss on the 1,000 digits.
"""

import functools
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import Result
from benchmarks._hypernets import pooled_mnist
from hypernets import (
    BestResponseHyperNetwork,
    Hyperparameters,
    Parametrization,
    Real,
    Target,
    Tunable,
    apply,
    apply_linearized,
    apply_many,
)

SEEDS = (0, 1, 2)
STEPS, WARMUP, EVERY = 2000, 300, 5
GROUPS, GROUP = 8, 16
START, HIGHEST = 0.05, 0.95
RESPONSE_RATES = {"plain": 0.03, "centred": 0.1, "linearised": 0.1}
FIXED = (START, 0.3, 0.5)
LABELS = {
    "plain": "self-tuned (STN)",
    "centred": "self-tuned, centred (Delta-STN)",
    "linearised": "self-tuned, centred and linearised",
}
CONTROL = "self-tuned on the training digits"
AGAIN = "fixed at what STN ended with"

Digits = tuple[Tensor, Tensor]


class Perceptron(nn.Module):
    """Three linear layers, each behind dropout whose rate is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(196, 256), nn.Linear(256, 256), nn.Linear(256, 10)])

    def forward(self, images: Tensor, rates: Tensor | None = None) -> Tensor:
        for position, layer in enumerate(self.layers):
            if position:
                images = images.relu()
            if rates is not None:
                images = images * (torch.rand_like(images) >= rates[position]) / (1 - rates[position])
            images = layer(images)
        return images


@dataclass
class Best:
    """The lowest validation loss so far, and the test loss and accuracy of the same step.

    Attributes:
        validation: mean cross-entropy.
        test: mean cross-entropy.
        accuracy: on the test split.
        rates: dropout rates at the end.
    """

    validation: float = float("inf")
    test: float = float("nan")
    accuracy: float = float("nan")
    rates: tuple[float, ...] = ()

    @torch.no_grad()
    def look(self, weights: Mapping[str, Tensor]) -> None:
        """Evaluate weights without dropout."""
        module = Perceptron().to("meta")
        images, labels = digits()["validation"]
        loss = F.cross_entropy(apply(module, weights, images), labels).item()
        if loss < self.validation:
            images, labels = digits()["test"]
            outputs = apply(module, weights, images)
            self.validation, self.test = loss, F.cross_entropy(outputs, labels).item()
            self.accuracy = (outputs.argmax(1) == labels).float().mean().item()


@functools.cache
def digits() -> Mapping[str, Digits]:
    """1,500 digits to train on, 1,000 to tune with, both from the training split, and the test split."""
    images, labels = pooled_mnist()["train"]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, validation = order[:1500], order[1500:2500]
    return {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": pooled_mnist()["test"],
    }


def draw(split: str) -> Digits:
    """A batch in groups: images ``(GROUPS, GROUP, 196)`` and labels, flat."""
    images, labels = digits()[split]
    chosen = torch.randint(len(images), (GROUPS, GROUP))
    return images[chosen], labels[chosen].flatten()


def sgd(parameters: Any, rate: float = 0.03) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, rate, momentum=0.9)


def fixed(rates: tuple[float, ...], seed: int, steps: int) -> Best:
    """Train with dropout rates that stay."""
    torch.manual_seed(seed)
    module, best = Perceptron(), Best(rates=rates)
    descent = sgd(module.parameters())
    for step in range(steps):
        images, labels = draw("train")
        loss = F.cross_entropy(module(images.flatten(0, 1), torch.tensor(rates)), labels)
        descent.zero_grad()
        loss.backward()
        descent.step()
        if step % 100 == 99:
            best.look(dict(module.named_parameters()))
    return best


def tuned(form: str, seed: int, steps: int, *, tune_on: str = "validation") -> Best:
    """Train and tune, in one of the three forms."""
    torch.manual_seed(seed)
    module, best = Perceptron(), Best()
    centred = form != "plain"
    response = BestResponseHyperNetwork(
        Target.of(module),
        {"hyper": Real(3)},
        centred=centred,
        parametrization=Parametrization(encoding="none", head_init="zero") if centred else None,
    )
    response.start_from(module)
    module.to("meta")
    hyper = Hyperparameters({f"dropout {i}": Tunable(START, 0.0, HIGHEST) for i in range(3)})
    noise = torch.Generator().manual_seed(seed)
    weights_descent, response_descent = (
        sgd(response.residual.parameters()),
        sgd(response.response(), RESPONSE_RATES[form]),
    )
    tuning = torch.optim.RMSprop(hyper.parameters(), 1e-2)

    def rates(free: Tensor) -> Tensor:
        return torch.stack(list(hyper.values(free).values()), -1)

    def residual() -> dict[str, Tensor]:
        return {name: value for name in response.target.names if (value := response.residual(name)) is not None}

    def outputs(free: Tensor, images: Tensor, *rates: Tensor) -> Tensor:
        """Of the weights that answer each row of ``free``, ``(GROUPS * GROUP, 10)``."""
        if form == "linearised":
            still = {name: value.detach() for name, value in residual().items()}
            found = apply_linearized(module, still, response.deltas({"hyper": free}), images, *rates, shared=False)
        else:
            found = apply_many(module, response.generate({"hyper": free}), images, *rates, shared=False)
        return found.flatten(0, 1)

    for step in range(steps):
        images, labels = draw("train")
        now = hyper.free.detach()
        if centred:  # the weights learn without perturbation, the response with it
            response.recentre({"hyper": now[None]})
            loss = F.cross_entropy(apply(module, residual(), images.flatten(0, 1), rates(now)), labels)
            weights_descent.zero_grad()
            loss.backward()
            weights_descent.step()
        free = hyper.draw(GROUPS, generator=noise).detach()
        loss = F.cross_entropy(outputs(free, images, rates(free)), labels)
        weights_descent.zero_grad()
        response_descent.zero_grad()
        loss.backward()
        response_descent.step()
        if not centred:
            weights_descent.step()
        if step > WARMUP and step % EVERY == 0:
            images, labels = draw(tune_on)
            loss = F.cross_entropy(outputs(hyper.draw(GROUPS, generator=noise), images), labels)
            tuning.zero_grad()
            (loss - 1e-3 * hyper.entropy()).backward()
            tuning.step()
        if step % 100 == 99:
            with torch.no_grad():
                best.look({name: value[0] for name, value in response.generate({"hyper": now[None]}).items()})
    best.rates = tuple(rates(hyper.free.detach()).tolist())
    return best


Job = tuple[str, int]


def found(job: Job, *, steps: int) -> dict[str, Best]:
    """Label -> outcome of the runs that one job stands for."""
    torch.set_num_threads(1)
    kind, seed = job
    if kind == "fixed":
        return {f"fixed at {rate}": fixed((rate,) * 3, seed, steps) for rate in FIXED}
    if kind == "control":
        return {CONTROL: tuned("plain", seed, steps, tune_on="train")}
    best = tuned(kind, seed, steps)
    if kind == "plain":
        return {LABELS[kind]: best, AGAIN: fixed(best.rates, seed, steps)}
    return {LABELS[kind]: best}


def run(quick: bool = False) -> Result:
    """Three seeds (the control: one), two processes; ``quick`` takes one seed and 600 steps, which says little."""
    seeds, steps = (SEEDS[:1], 600) if quick else (SEEDS, STEPS)
    jobs: list[Job] = [(kind, seed) for kind in ("fixed", *LABELS) for seed in seeds] + [("control", seeds[0])]
    outcomes: dict[str, list[Best]] = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for each in pool.map(functools.partial(found, steps=steps), jobs):
            for label, best in each.items():
                outcomes.setdefault(label, []).append(best)
    order = [*(f"fixed at {rate}" for rate in FIXED), *LABELS.values(), CONTROL, AGAIN]
    rows = [{"dropout rates": label} | summary(outcomes[label]) for label in order]
    test = {label: statistics.fmean(best.test for best in outcomes[label]) for label in order}
    poor, plain, delta = test[f"fixed at {START}"], test[LABELS["plain"]], test[LABELS["centred"]]
    return Result(
        tuple(rows),
        f"self-tuned from {START}: test loss {plain:.3f} (asked: <= 0.225), {plain / poor:.2f} x that of these rates "
        f"fixed (asked: <= 0.85); centred {delta:.3f} (asked: at most the plain one's), and with the linearisation too "
        f"{test[LABELS['linearised']]:.3f}; means of {len(seeds)} seeds",
        plain <= min(0.225, 0.85 * poor) and delta <= plain,
    )


def summary(outcomes: list[Best]) -> dict[str, str]:
    """Means over the seeds."""
    ends = zip(*(best.rates for best in outcomes), strict=True)
    return {
        "test loss": f"{statistics.fmean(best.test for best in outcomes):.3f}",
        "each seed": " ".join(f"{best.test:.3f}" for best in outcomes),
        "test accuracy": f"{statistics.fmean(best.accuracy for best in outcomes):.4f}",
        "validation loss": f"{statistics.fmean(best.validation for best in outcomes):.3f}",
        "rates at the end": " ".join(f"{statistics.fmean(rates):.2f}" for rates in ends),
    }
