"""What the progress of training says of the last validation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from nas.callbacks import FitProgress
from supernets import Classification, LanguageModelling, Task


class Validated(L.LightningModule):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task


@pytest.mark.parametrize(
    ("task", "metrics", "expected"),
    [
        (Classification(3), {"accuracy": 0.9876, "loss": 0.2}, "validation 98.8 %"),
        (LanguageModelling(), {"loss": 1.98765, "perplexity": 7.3}, "validation loss 1.988"),
    ],
)
def test_progress_shows_the_headline_of_the_largest_subnetwork(
    task: Task, metrics: dict[str, float], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    logged = {f"val/largest/{name}": torch.tensor(value) for name, value in metrics.items()}
    trainer: Any = SimpleNamespace(
        callback_metrics=logged, estimated_stepping_batches=2, global_step=2, current_epoch=0
    )
    progress = FitProgress()
    progress.on_train_start(trainer, Validated(task))
    progress.on_validation_end(trainer, Validated(task))
    progress.on_train_batch_end(trainer, Validated(task), None, None, 0)
    assert expected in capsys.readouterr().err


class Speaking(Validated):
    """Says something in a step of its own making, as a supernet does of sorted channels."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.print("sorted")

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize("shown", [True, False])
def test_what_training_says_is_printed_whether_or_not_progress_is_shown(
    shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = FitProgress()
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[progress], default_root_dir=tmp_path, **options)
    if not shown:
        progress.disable()
    trainer.fit(Speaking(Classification(3)), [torch.zeros(1)])
    assert capsys.readouterr().out == "sorted\n"
