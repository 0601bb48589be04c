"""Training a supernet for a number of steps, without logging, and timing single steps."""

import statistics
import time
from typing import Any

import lightning as L
import torch

from supernets import Supernet

__all__ = ["Step", "fit", "in_turn"]


def fit(supernet: Supernet, data: L.LightningDataModule, steps: int) -> Supernet:
    """Train ``supernet`` on the CPU and return it in evaluation mode."""
    trainer = L.Trainer(
        max_steps=steps,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(supernet, datamodule=data)
    return supernet.eval()


class Step:
    """One training step on labels and a teacher, as the supernet takes it but for the trainer around it."""

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet.train()
        self.optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-4)

    def __call__(self, draw: int, batch: Any) -> float:
        """Return the CPU seconds of this process, which on one thread is the wall time of an idle machine."""
        start = time.process_time()
        self.optimizer.zero_grad()
        teacher = None
        for slot in self.supernet.rule.slots(self.supernet.space, seed=0, step=draw, score=lambda _: 0.0):
            loss, outputs = self.supernet.step_loss(slot, batch, teacher)
            loss.backward()
            teacher = outputs.detach() if slot.role == "teacher" else teacher
        self.optimizer.step()
        return time.process_time() - start


def in_turn(step: Step, reference: Step, batch: Any, draws: int) -> tuple[float, float, float]:
    """Return median seconds of both and the median of their ratios; each draw is warmed up, either one goes first."""
    times = []
    for draw in range(draws):
        for each in (reference, step):  # skeletons and plans are made, gradients and moments allocated
            each(draw, batch)
        for order in ((step, reference), (reference, step)):
            spent = {each: each(draw, batch) for each in order}
            times.append((spent[step], spent[reference]))
    first, second = zip(*times, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(a / b for a, b in times)
