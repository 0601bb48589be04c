"""One training step of a mixture of two experts against the same step under plain sharing.

A decoder-only transformer space (context 64, width up to 128, up to 3 blocks) and batches of 64 x 64 tokens, one
sandwich step of four architectures with its AdamW step. The mixture holds two experts of both linear maps of every
feed-forward network, as in the paper. Both sides take the same architectures on the same batch, either one first in
turn; the figure is the median of the ratios. Other mixtures are reported beside it.
"""

import statistics
import time
from functools import partial

import torch
from torch import Tensor

from benchmarks import Result
from search_spaces import TransformerSpace
from supernets import LanguageModelling, MixtureWeights, SandwichRule, SharedWeights, Supernet

ASKED = 1.15
BATCH, CONTEXT, VOCABULARY = 64, 64, 65
MIXED = ("*.ffn.*",)
MIXTURES = {
    "2 experts, by layer": partial(MixtureWeights, mixed=MIXED),
    "2 experts, by neuron": partial(MixtureWeights, mixed=MIXED, routing="neuron"),
    "4 experts, by layer": partial(MixtureWeights, mixed=MIXED, experts=4),
    "4 experts of rank 8": partial(MixtureWeights, mixed=MIXED, experts=4, rank=8),
}


def make_space() -> TransformerSpace:
    return TransformerSpace(
        VOCABULARY, CONTEXT, widths=(64, 96, 128), depths=(2, 3), heads=(2, 3, 4), ffn_ratios=(2, 3, 4), head_dim=32
    )


class Step:
    """One sandwich step, as :meth:`Supernet.training_step` takes it but for the trainer around it."""

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self.optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-4)

    def __call__(self, draw: int, batch: tuple[Tensor, Tensor]) -> float:
        """Return the CPU time of this process, which on one thread is the wall time of an idle machine."""
        start = time.process_time()
        self.optimizer.zero_grad()
        teacher = None
        for slot in self.supernet.rule.slots(self.supernet.space, seed=0, step=draw, score=lambda _: 0.0):
            loss, outputs = self.supernet.step_loss(slot, batch, teacher)
            loss.backward()
            teacher = outputs.detach() if slot.role == "teacher" else teacher
        self.optimizer.step()
        return time.process_time() - start


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    space, rule = make_space(), SandwichRule(2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=generator)
    batch = tokens[:, :-1], tokens[:, 1:]
    plain = Step(Supernet(space, LanguageModelling(), source=SharedWeights, rule=rule))
    rows, ratios = [], {}
    for name, source in MIXTURES.items():
        mixed = Step(Supernet(space, LanguageModelling(), source=source, rule=rule))
        times = []
        for draw in range(3 if quick else 20):
            for step in (plain, mixed):  # skeletons and plans are made, gradients and moments allocated
                step(draw, batch)
            for turn in range(2):
                order = (plain, mixed) if turn % 2 else (mixed, plain)
                spent = {step: step(draw, batch) for step in order}
                times.append((spent[mixed], spent[plain]))
        ratios[name] = statistics.median(a / b for a, b in times)
        rows.append(
            {
                "weights": name,
                "mixture, ms": f"{statistics.median(a for a, _ in times) * 1e3:.0f}",
                "plain sharing, ms": f"{statistics.median(b for _, b in times) * 1e3:.0f}",
                "median ratio": f"{ratios[name]:.3f}",
            }
        )
    ratio = ratios["2 experts, by layer"]
    return Result(
        tuple(rows),
        f"a training step of two experts by layer takes {ratio:.3f} x that of plain sharing (asked: <= {ASKED} x)",
        ratio <= ASKED,
    )
