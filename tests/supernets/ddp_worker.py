"""Two training steps of a supernet in one of several processes; writes its gradients and weights.

Usage: ddp_worker.py FOLDER WORLD_SIZE, with the rank in the environment as Lightning expects it.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from search_spaces import MLPSpace
from supernets import Classification, SandwichRule, Supernet


class Share(torch.utils.data.IterableDataset):
    """The rows of a fixed batch that belong to this process, in each of two steps."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            inputs, labels = torch.randn(8, 12, generator=generator), torch.randint(4, (8,), generator=generator)
            mine = slice(rank * 8 // self.world_size, (rank + 1) * 8 // self.world_size)
            yield inputs[mine], labels[mine]


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.gradients.append({name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named})


def train(folder: Path, world_size: int) -> dict[str, Any]:
    space = MLPSpace(12, 4, widths=(5, 9), depths=(1, 2, 3), batch_norm=False)
    supernet = Supernet(
        space,
        Classification(4, label_smoothing=0.1),
        rule=SandwichRule(2),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        clip=1.0,
    )
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=True) if world_size > 1 else "auto",
        max_steps=2,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        default_root_dir=folder,
    )
    loader = torch.utils.data.DataLoader(Share(world_size), batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(supernet, loader)
    return {"gradients": recorder.gradients, "weights": supernet.state_dict()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(train(Path(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[1]) / f"{os.environ['LOCAL_RANK']}.pt")
