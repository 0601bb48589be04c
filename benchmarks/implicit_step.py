"""One training step through implicit weights against the same step of the plain network."""

import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import Result
from search_spaces import FactorySpace
from supernets import ImplicitWeights

BATCH, ROUNDS = 128, 30


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


def seconds(step: object, rounds: int) -> list[float]:
    """CPU seconds of every call, the first two left out."""
    spent = []
    for _ in range(rounds + 2):
        start = time.process_time()
        step()  # type: ignore[operator]
        spent.append(time.process_time() - start)
    return spent[2:]


def run(quick: bool) -> Result:
    """Time both at the smallest and the largest width, in turn, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = FactorySpace(LeNet, {"width": [16, 24, 32]}, input_shape=(1, 28, 28))
    images, labels = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    source = ImplicitWeights(space).train()
    implicit = torch.optim.Adam(source.parameters(), 1e-3, fused=True)
    rows, ratios = [], []
    for width in (16, 24, 32):
        architecture = space.architecture({"width": width})
        module = space.build(architecture)
        plain = torch.optim.Adam(module.parameters(), 1e-3, fused=True)

        def step_plain(module: nn.Module = module, plain: torch.optim.Optimizer = plain) -> None:
            plain.zero_grad()
            F.cross_entropy(module(images), labels).backward()
            plain.step()

        def step_implicit(architecture: object = architecture) -> None:
            implicit.zero_grad()
            tensors = source(architecture)
            logits = source.skeletons.call(architecture, source.device, tensors, (images,))  # type: ignore[arg-type]
            F.cross_entropy(logits, labels).backward()
            implicit.step()

        rounds = 2 if quick else ROUNDS // 5
        pairs = [(seconds(step_plain, 5), seconds(step_implicit, 5)) for _ in range(rounds)]
        ratio = statistics.median(statistics.median(b) / statistics.median(a) for a, b in pairs)
        ratios.append(ratio)
        first, second = (statistics.median(t for pair in pairs for t in pair[side]) for side in (0, 1))
        rows.append(
            {
                "width": width,
                "weights": f"{sum(p.numel() for p in module.parameters()):,}",
                "plain step": f"{first * 1e3:.1f} ms",
                "implicit step": f"{second * 1e3:.1f} ms",
                "ratio": f"{ratio:.2f}",
            }
        )
    verdict = f"an implicit step takes {max(ratios):.2f} x the plain one at most (asked <= 1.7; published code 4.6)"
    return Result(tuple(rows), verdict, max(ratios) <= 1.7)
