"""Supernets of quantised weights whose scales have seen a batch."""

from typing import Any

import torch
from torch import Tensor

from search_spaces import SearchSpace
from supernets import SBS, Classification, QuantizedWeights, SamplingRule, SharedWeights, Supernet, WeightQuantizer


def made(
    space: SearchSpace,
    rule: SamplingRule,
    quantizer: WeightQuantizer | None = None,
    source: Any = SharedWeights,
    **more: Any,
) -> Supernet:
    """A supernet of three classes."""
    chosen = SBS() if quantizer is None else quantizer
    return Supernet(
        space,
        Classification(3),
        source=lambda s: QuantizedWeights(s, source=source, quantizer=chosen),
        rule=rule,
        **more,
    )


def observed(supernet: Supernet, *shape: int) -> tuple[Tensor, Tensor]:
    """A batch of 16 random inputs and labels, the inputs of which have set the scales."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(16, *shape, generator=generator), torch.randint(3, (16,), generator=generator)
    supernet.source.observe([batch[:1]])
    return batch
