"""Soft masks against the loop over all candidates: the same outputs and gradients, how much faster, in what memory.

Two networks in which one matrix depends on two choices of three candidates each: a feed-forward pair of a transformer
(embedding 384 to 768, ratio 2 to 4) and a convolution (64 to 128 channels in, kernels 3 to 7). The loop is the textbook
form of TangleNAS: every candidate is cut out, padded, weighted and added up, and the sum used once. Both sides run the
same network on the same batch of 64, forward and backward, so that what the network computes anyway (most of the time
of the convolution) is in both times. What is asked for is asked of the feed-forward pair. Memory is what autograd keeps
for the backward pass beside parameters and inputs. Milliseconds are medians, each run next to its counterpart.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import Result
from search_spaces import FactorySpace, RelaxedArchitecture
from supernets import SharedWeights

Forward = Callable[[SharedWeights, RelaxedArchitecture, Tensor], Tensor]
FEATURES = 64


class FeedForward(nn.Module):
    """The pair of matrices of a transformer block, between matrices that fix its ends."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.fc1 = nn.Linear(width, width * ratio)
        self.fc2 = nn.Linear(width * ratio, width)
        self.head = nn.Linear(width, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 64)`` to ``(B, 64)``."""
        outputs: Tensor = self.head(self.fc2(F.gelu(self.fc1(self.embed(x)))))
        return outputs


class Convolutions(nn.Module):
    """Two normalised convolutions, the second elastic in channels and kernel."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, 128, kernel, stride=2, padding=kernel // 2, bias=False)
        self.norm2 = nn.BatchNorm2d(128)
        self.head = nn.Linear(128, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 3, 8, 8)`` to ``(B, 64)``."""
        x = F.relu(self.norm1(self.conv1(x)))
        outputs: Tensor = self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))
        return outputs


def masked(source: SharedWeights, relaxed: RelaxedArchitecture, inputs: Tensor) -> Tensor:
    """One pass with soft masks."""
    outputs: Tensor = source.relaxation(relaxed, source.relaxed(relaxed), (inputs,))
    return outputs


def looped(source: SharedWeights, relaxed: RelaxedArchitecture, inputs: Tensor) -> Tensor:
    """One pass with sums over padded candidates, each tensor over the choices it depends on."""
    space, stored = source.space, source.stored()
    tensors: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        choices = [choice for choice in space.choices if choice.name in DEPENDS.get(name, ())]
        if not choices:
            tensors[name] = tensor
            continue
        total = torch.zeros_like(tensor)
        for positions in itertools.product(*(range(choice.size) for choice in choices)):
            chosen = {c.name: c.candidates[p] for c, p in zip(choices, positions, strict=True)}
            weight = torch.stack([relaxed[c.name][p] for c, p in zip(choices, positions, strict=True)]).prod()
            (part,) = [p for p in source.plan(space.architecture(dict(space.largest()) | chosen)) if p.name == name]
            cut, padding = tensor, [0, 0] * tensor.ndim
            for dim, start, length, _ in part.cuts:
                if dim:  # what is written stays whole
                    place = 2 * (tensor.ndim - 1 - dim)
                    padding[place], padding[place + 1] = start, tensor.shape[dim] - start - length
                    cut = cut.narrow(dim, start, length)
            total = total + weight * F.pad(cut, padding)
        tensors[name] = total
    source.skeletons.borrow(space.largest(), source.device).train()
    outputs: Tensor = source.skeletons.call(
        space.largest(), source.device, tensors | source.relaxed_buffers(), (inputs,)
    )
    return outputs


DEPENDS: Mapping[str, tuple[str, ...]] = {
    "fc1.weight": ("width",),
    "fc2.weight": ("width", "ratio"),
    "head.weight": ("width",),
    "conv2.weight": ("channels", "kernel"),
}


def spaces() -> dict[str, FactorySpace]:
    """The two networks."""
    return {
        "feed-forward 768 x 3072": FactorySpace(
            FeedForward, {"width": [384, 576, 768], "ratio": [2, 3, 4]}, input_shape=(FEATURES,)
        ),
        "convolution 128 x 128 x 7 x 7": FactorySpace(
            Convolutions, {"channels": [64, 96, 128], "kernel": [3, 5, 7]}, input_shape=(3, 8, 8)
        ),
    }


def kept(forward: Callable[[], Tensor], known: list[Tensor]) -> int:
    """Return the bytes that autograd keeps of one forward pass, ``known`` tensors left out."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in known}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in seen:
            found[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()
    del outputs
    return sum(found.values())


def compare(name: str, space: FactorySpace, repeats: int) -> dict[str, float | str]:
    """Run both sides of one network."""
    source = SharedWeights(space)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, *space.inputs(space.largest())[0].shape[1:], generator=generator)
    noise = torch.randn(64, FEATURES, generator=generator)
    relaxed = RelaxedArchitecture(
        {c.name: torch.randn(c.size, generator=generator).softmax(0).requires_grad_() for c in space.choices}
    )
    leaves = [*source.stored().values(), *relaxed.values()]

    def step(forward: Forward) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs = forward(source, relaxed, inputs)
        return outputs.detach(), torch.autograd.grad((outputs * noise).sum(), leaves)

    results = {forward: step(forward) for forward in (masked, looped)}
    (found, slopes), (wanted, exact) = results[masked], results[looped]

    def error(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    for forward in (masked, looped) * 2:  # memory is allocated and plans are made
        step(forward)
    times: dict[Forward, list[float]] = {masked: [], looped: []}
    for turn in range(repeats):
        for forward in (masked, looped) if turn % 2 else (looped, masked):
            start = time.process_time()
            step(forward)
            times[forward].append(time.process_time() - start)
    memory = {
        forward: kept(functools.partial(forward, source, relaxed, inputs), [*leaves, inputs]) for forward in times
    }
    speed = statistics.median(b / a for a, b in zip(times[masked], times[looped], strict=True))
    return {
        "network": name,
        "outputs, relative error": error(found, wanted),
        "gradients, relative error": max(error(a, b) for a, b in zip(slopes, exact, strict=True) if b.norm() > 1e-4),
        "loop ms": 1e3 * statistics.median(times[looped]),
        "mask ms": 1e3 * statistics.median(times[masked]),
        "times faster": speed,
        "loop MiB": memory[looped] / 2**20,
        "mask MiB": memory[masked] / 2**20,
        "times less memory": memory[looped] / memory[masked],
    }


def run(quick: bool = False) -> Result:
    """Both networks; ``quick`` takes fewer repeats."""
    torch.set_num_threads(1)
    found = [compare(name, space, 3 if quick else 15) for name, space in spaces().items()]
    worst = {
        key: max(float(row[key]) for row in found) for key in ("outputs, relative error", "gradients, relative error")
    }
    linear, convolution = ((float(row["times faster"]), float(row["times less memory"])) for row in found)
    rows = tuple(
        {k: v if isinstance(v, str) else f"{v:.1e}" if "error" in k else f"{v:.1f}" for k, v in row.items()}
        for row in found
    )
    error = max(worst.values())
    return Result(
        rows,
        f"outputs and gradients as the explicit sum to {error:.0e} (asked: <= 1e-5); feed-forward pair {linear[0]:.1f} "
        f"times faster (asked: >= 3) in {linear[1]:.1f} times less saved memory (asked: >= 3); convolution "
        f"{convolution[0]:.1f} times faster in {convolution[1]:.1f} times less",
        error <= 1e-5 and min(linear) >= 3,
    )
