"""Training in other precisions, and gradient clipping under a loss scale."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from search_spaces import ConvNetSpace, MLPSpace, Stage
from supernets import Classification, Slot, Supernet

Fit = Callable[..., L.Trainer]


def still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


class Given(L.LightningDataModule):
    """The same labelled batches for training and validation."""

    def __init__(self, batches: Any) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        return self.batches

    def val_dataloader(self) -> Any:
        return self.batches


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)], ids=["bf16", "64"]
)
def test_a_step_and_a_validation_run_in_the_precision_of_the_weights(
    labelled: Any, fit: Fit, precision: Any, dtype: torch.dtype
) -> None:
    space = ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), (1, 2), squeeze_excite=True)], 4, resolutions=(6, 8))
    supernet = Supernet(space, Classification(4), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), calibration=2)
    seen: set[torch.dtype] = set()
    step_loss = supernet.step_loss

    def recording(slot: Slot, batch: Any, teacher: Any) -> Any:
        loss, outputs = step_loss(slot, batch, teacher)
        seen.add(outputs.dtype)
        return loss, outputs

    supernet.step_loss = recording  # type: ignore[method-assign]
    before = [parameter.detach().clone() for parameter in supernet.parameters()]
    trainer = fit(supernet, None, steps=1, datamodule=Given(labelled(space)), precision=precision, val_check_interval=1)
    assert seen == {dtype}
    assert {parameter.dtype for parameter in supernet.parameters()} == {dtype}
    assert any(not torch.equal(p, old.to(dtype)) for p, old in zip(supernet.parameters(), before, strict=True))
    for anchor in supernet.anchors():
        assert trainer.callback_metrics[f"val/{anchor}/loss"].isfinite()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_after_the_loss_scale_is_taken_out(
    labelled: Any, fit: Fit, recorder: Any, algorithm: Any
) -> None:
    space = MLPSpace(12, 4, widths=(6, 10), depths=(1, 2))

    def gradients(clip: float | None) -> Tensor:
        supernet = Supernet(space, Classification(4), optimizer=still, clip=clip, clip_algorithm=algorithm)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        fit(supernet, labelled(space, count=1), steps=1, callbacks=[recorder], plugins=[plugin])
        return torch.cat([gradient.flatten() for gradient in recorder.gradients.values()])

    free, clipped = gradients(None), gradients(1e-2)
    assert free.norm() > 0.1
    assert free.abs().max() > 1e-2
    if algorithm == "norm":
        torch.testing.assert_close(clipped, free * (1e-2 / free.norm()), rtol=1e-3, atol=1e-7)
    else:
        torch.testing.assert_close(clipped, free.clamp(-1e-2, 1e-2))
