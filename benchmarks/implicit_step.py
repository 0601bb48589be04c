"""One training step through implicit weights against the same step of the plain network.

LeNet is the network of the paper on MNIST. The residual network has 35 tensors and images of 8 x 8 only, so that making
the weights weighs most there.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import Result
from benchmarks.neumeta_resnet import make_space
from search_spaces import Architecture, FactorySpace, SearchSpace
from supernets import ImplicitWeights

BATCH, ROUNDS = 128, 3


class LeNet(nn.Module):
    """The network of the paper on MNIST: three convolutions of 5 x 5, of w, 2 w and 4 w channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 5, padding=2)
            for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``(B, 10)``."""
        for convolution in self.convolutions:
            images = F.max_pool2d(convolution(images).relu(), 2)
        logits: torch.Tensor = self.head(images.mean((2, 3)))
        return logits


def seconds(step: Callable[[], None]) -> list[float]:
    """CPU seconds of five calls, after two that are left out."""
    spent = []
    for _ in range(7):
        start = time.process_time()
        step()
        spent.append(time.process_time() - start)
    return spent[2:]


def compare(name: str, space: SearchSpace, architecture: Architecture, rounds: int) -> tuple[dict[str, object], float]:
    """Time both steps in turn, and return a row and their ratio."""
    shape = space.inputs(architecture, 1)[0].shape[1:]
    images, labels = torch.randn(BATCH, *shape), torch.randint(10, (BATCH,))
    source, module = ImplicitWeights(space).train(), space.build(architecture)
    plain = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    implicit = torch.optim.Adam(source.parameters(), 1e-3, fused=True)
    source.skeletons.borrow(architecture, source.device).train()

    def step_plain() -> None:
        plain.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        plain.step()

    def step_implicit() -> None:
        implicit.zero_grad()
        logits = source.skeletons.call(architecture, source.device, source(architecture), (images,))
        F.cross_entropy(logits, labels).backward()
        implicit.step()

    pairs = [(seconds(step_plain), seconds(step_implicit)) for _ in range(rounds)]
    ratio = statistics.median(statistics.median(b) / statistics.median(a) for a, b in pairs)
    first, second = (statistics.median(spent for pair in pairs for spent in pair[side]) for side in (0, 1))
    row: dict[str, object] = {
        "network": name,
        "weights": f"{sum(parameter.numel() for parameter in module.parameters()):,}",
        "plain step": f"{first * 1e3:.1f} ms",
        "implicit step": f"{second * 1e3:.1f} ms",
        "ratio": f"{ratio:.2f}",
    }
    return row, ratio


def run(quick: bool) -> Result:
    """Time several sizes on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lenet, residual = FactorySpace(LeNet, {"width": [16, 24, 32]}, input_shape=(1, 28, 28)), make_space()
    cases: list[tuple[str, SearchSpace, Architecture]] = [
        (f"LeNet, width {width}", lenet, lenet.architecture({"width": width})) for width in (16, 24, 32)
    ]
    ends = {"middle": residual.middle(), "largest": residual.largest()}
    cases += [(f"residual network, {name}", residual, architecture) for name, architecture in ends.items()]
    outcomes = [compare(*case, rounds=2 if quick else ROUNDS) for case in cases]
    worst = max(ratio for _, ratio in outcomes)
    verdict = f"an implicit step takes {worst:.2f} x the plain one at most (asked <= 1.7; published code 4.6)"
    return Result(tuple(row for row, _ in outcomes), verdict, worst <= 1.7)
