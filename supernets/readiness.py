"""What a trainer must offer to train a supernet."""

import sys
from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from supernets.rules import SamplingRule

__all__ = ["check_trainer"]


def check_trainer(trainer: Any, rule: SamplingRule) -> None:
    """Refuse a length, a source of data or a distributed strategy that cannot work, before anything is trained.

    Raises:
        ValueError: the rule refuses the number of steps, learns from a validation split that is not there, or
            data-parallel training would wait for gradients of weights that no subnetwork has used.
    """
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
