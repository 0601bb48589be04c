"""One sandwich training step against the same architectures as separate static modules.

Both sides run the same forward passes, distillation and backward passes on the same batch; modules and skeletons of
both exist already. The separate modules need an optimiser step each, the supernet one over its largest architecture;
the second row leaves optimisers out. Each step is timed next to its counterpart, either one first in turn; the figure
is the median of the ratios.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks import Result
from search_spaces import Architecture, ConvNetSpace, Head, Stage, Stem
from supernets import Classification, SandwichRule, Slot, Supernet

ASKED = 1.05
BATCH = 32


def inverted_space() -> ConvNetSpace:
    stages = [
        Stage((16, 24), (1, 2), (3, 5), (3, 4), stride=2, activation="silu"),
        Stage((24, 32), (2, 3), (3, 5), (3, 4), stride=2, squeeze_excite=True, activation="silu"),
        Stage((48, 64), (2, 3), (3, 5), (3, 4), stride=2, squeeze_excite=True, activation="silu"),
    ]
    return ConvNetSpace(stages, 10, resolutions=(32,), stem=Stem((16,)), head=Head((128,), activation="silu"))


def optimizer(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)


class Together:
    """The supernet's step, as :meth:`Supernet.training_step` takes it but for the trainer around it."""

    def __init__(self, supernet: Supernet, *, step: bool) -> None:
        self.supernet = supernet
        self.optimizer = optimizer(list(supernet.parameters()))
        self.step = step

    def __call__(self, slots: Sequence[Slot], batch: tuple[Tensor, Tensor]) -> None:
        self.optimizer.zero_grad()
        teacher = None
        for slot in slots:
            loss, outputs = self.supernet.step_loss(slot, batch, teacher)
            loss.backward()
            teacher = outputs.detach() if slot.role == "teacher" else teacher
        if self.step:
            self.optimizer.step()


class Apart:
    """The same architectures as separate modules, each with an optimiser of its own."""

    def __init__(self, supernet: Supernet, slots: Sequence[Slot], *, step: bool) -> None:
        self.task = supernet.task
        architectures = [slot.architecture for slot in slots if isinstance(slot.architecture, Architecture)]
        self.modules = [supernet.extract(architecture).train() for architecture in architectures]
        self.optimizers = [optimizer(list(module.parameters())) for module in self.modules]
        self.step = step

    def __call__(self, slots: Sequence[Slot], batch: tuple[Tensor, Tensor]) -> None:
        teacher = None
        for slot, module, optimizer in zip(slots, self.modules, self.optimizers, strict=True):
            optimizer.zero_grad()
            outputs = module(batch[0])
            if slot.role == "student":
                loss = self.task.distil(outputs, teacher)
            else:
                loss = self.task.loss(outputs, batch, regularise=True)
            loss.backward()
            teacher = outputs.detach() if slot.role == "teacher" else teacher
            if self.step:
                optimizer.step()


Step = Callable[[Sequence[Slot], tuple[Tensor, Tensor]], None]


def seconds(step: Step, slots: Sequence[Slot], batch: tuple[Tensor, Tensor]) -> float:
    """CPU time of this process, which on one thread is the wall time of an idle machine."""
    start = time.process_time()
    step(slots, batch)
    return time.process_time() - start


def compare(supernet: Supernet, *, count: int, step: bool) -> list[tuple[float, float]]:
    """(together, apart) seconds per step, over new random architectures every few steps."""
    generator = torch.Generator().manual_seed(0)
    batch = (torch.randn(BATCH, 3, 32, 32, generator=generator), torch.randint(10, (BATCH,), generator=generator))
    together = Together(supernet, step=step)
    times = []
    for draw in range(count):
        slots = supernet.rule.slots(supernet.space, seed=0, step=draw, score=lambda _: 0.0)
        apart = Apart(supernet, slots, step=step)
        together(slots, batch)  # both sides warm: skeletons made, gradients and momenta allocated
        apart(slots, batch)
        for turn in range(4):
            order = (together, apart) if turn % 2 else (apart, together)
            spent = {step: seconds(step, slots, batch) for step in order}
            times.append((spent[together], spent[apart]))
    return times


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    supernet = Supernet(inverted_space(), Classification(10), rule=SandwichRule(2))
    count = 3 if quick else 15
    times = {
        "whole step": compare(supernet, count=count, step=True),
        "without optimisers": compare(supernet, count=count, step=False),
    }
    ratios = {name: statistics.median(a / b for a, b in pairs) for name, pairs in times.items()}
    rows = tuple(
        {
            "what": name,
            "supernet, ms": f"{statistics.median(a for a, _ in pairs) * 1e3:.1f}",
            "separate modules, ms": f"{statistics.median(b for _, b in pairs) * 1e3:.1f}",
            "median ratio": f"{ratios[name]:.3f}",
        }
        for name, pairs in times.items()
    )
    ratio = ratios["whole step"]
    return Result(
        rows,
        f"a sandwich step of four architectures takes {ratio:.3f} x the time of four separate modules "
        f"(asked: <= {ASKED} x)",
        ratio <= ASKED,
    )
