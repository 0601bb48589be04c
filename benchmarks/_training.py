"""Training a supernet for a number of steps, without logging."""

import lightning as L

from supernets import Supernet

__all__ = ["fit"]


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
