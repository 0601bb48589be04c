"""What the command line adds to a Trainer: progress on one line, metrics that are not dropped, the configuration."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor

from nas.progress import Progress
from supernets import Task
from trials.logger import TrackingLogger

__all__ = ["FitProgress", "KeepConfig", "LogOften"]


class FitProgress(ProgressBar):
    """Training as one line: steps, loss and the last validation of the largest subnetwork."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._validated = ""

    @property
    def is_enabled(self) -> bool:
        """Whether progress is shown."""
        return self._enabled

    def enable(self) -> None:
        """Show progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing, as Lightning asks of all ranks but one."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        if self._progress is not None:
            self._progress.close()
        print(*args, **kwargs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the line."""
        if self._enabled:
            self._progress = Progress("fit", int(trainer.estimated_stepping_batches), "steps")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance it."""
        if self._progress is not None:
            self._progress.update(trainer.global_step, self._detail(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the headline of the largest subnetwork."""
        task = getattr(pl_module, "task", None)
        if not isinstance(task, Task):
            return
        score = trainer.callback_metrics.get(f"val/largest/{task.headline}")
        if score is not None:
            fraction = task.quantities[task.headline][0] == "fraction"
            shown = f"{100 * float(score):.1f} %" if fraction else f"{task.headline} {float(score):.3f}"
            self._validated = f", validation {shown}"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End it."""
        if self._progress is not None:
            self._progress.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End it where it is."""
        if self._progress is not None:
            self._progress.close()

    def _detail(self, trainer: L.Trainer) -> str:
        loss = trainer.callback_metrics.get("train/loss")
        shown = f"loss {float(loss):.3f}" if isinstance(loss, Tensor) else ""
        return f"epoch {trainer.current_epoch + 1}, {shown}{self._validated}"


class LogOften(Callback):
    """Logs at least once an epoch; a run with fewer steps than ``log_every_n_steps`` would log no loss at all."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lower the interval to the number of batches of an epoch."""
        batches = trainer.num_training_batches
        if isinstance(batches, int) and batches > 0:
            trainer.log_every_n_steps = min(trainer.log_every_n_steps, batches)  # type: ignore[attr-defined]


class KeepConfig(SaveConfigCallback):
    """Keeps the complete configuration with the run, where Lightning's callback needs a log folder that we have not."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write ``config.yaml`` to every MLflow run of the trainer."""
        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, TrackingLogger):
                logger.log_config(text)
