"""What a trainer must offer to train a supernet."""

import sys
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy

from supernets.rules import SamplingRule

__all__ = ["check_options", "check_trainer"]

_NO_ACCUMULATION = (
    "cannot hold back the steps of a supernet, which sums the gradients of its subnetworks itself; raise "
    "data.batch_size instead"
)


def check_options(trainer: Any) -> None:
    """Refuse options of a trainer that Lightning itself refuses for a supernet, and name ours.

    Raises:
        ValueError: gradients are to be clipped or accumulated by the trainer.
    """
    if trainer.gradient_clip_val:
        raise ValueError(
            "trainer.gradient_clip_val cannot clip the summed gradients of several subnetworks, got "
            f"{trainer.gradient_clip_val}; set model.clip, and model.clip_algorithm to norm or value"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(f"trainer.accumulate_grad_batches {_NO_ACCUMULATION}, got {trainer.accumulate_grad_batches}")


def check_trainer(trainer: Any, rule: SamplingRule) -> None:
    """Refuse a length, a source of data or a distributed strategy that cannot work, before anything is trained.

    Raises:
        ValueError: the rule refuses the number of steps, learns from a validation split that is not there,
            data-parallel training would wait for gradients of weights that no subnetwork has used, a callback
            averages weights in a way that needs automatic optimisation, or the supernet is compiled.
    """
    if getattr(trainer.lightning_module, "_compiler_ctx", None) is not None:
        raise ValueError(
            "torch.compile cannot compile a supernet, whose networks change from step to step; train it as it is, and "
            "compile the module that supernet.extract returns"
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        raise ValueError(f"trainer.callbacks: GradientAccumulationScheduler {_NO_ACCUMULATION}")
    if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):
        raise ValueError(
            "trainer.callbacks: StochasticWeightAveraging cannot stop the backward passes of a supernet, and would "
            "train on from the average; use lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging"
        )
    if not trainer.fast_dev_run:
        rule.check_length(trainer.estimated_stepping_batches)
    if trainer.datamodule is None and rule.held_out_rows(sys.maxsize):
        raise ValueError(
            "the rule learns from the validation split of a datamodule, and the trainer has none; pass "
            "datamodule=... instead of dataloaders, or set schedule: single"
        )
    if isinstance(trainer.strategy, DDPStrategy) and not trainer.strategy._ddp_kwargs.get("find_unused_parameters"):
        raise ValueError(
            "a subnetwork uses some of the weights, so data-parallel training must look for unused parameters; "
            "set trainer.strategy to ddp_find_unused_parameters_true"
        )
