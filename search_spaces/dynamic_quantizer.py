"""Quantisation whose step follows from the tensor itself, for tensors of any kind and bitwidths that are mixed."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from search_spaces.quantizer import FULL_PRECISION, fake_quantize

__all__ = ["DynamicQuantizer", "dynamic_quantize"]

_AWAY = 1 + 1e-5
"""Ties go away from zero, whatever the last bit of a value: products of rounded tensors are full of them."""


def dynamic_quantize(values: Tensor, bits: int, active: Tensor | None = None) -> Tensor:
    """Return ``values`` on the symmetric grid of ``bits`` bits whose step follows from them, differentiably.

    From 3 bits on ``x^ = s round(x / s)`` with ``s = max|x| / (2^(b-1) - 1)``, so that nothing is clipped. With 2 bits
    (ternary) ``s = 1.4 mean|x|``, with 1 bit (binary) ``x^ = +-mean|x|``: a maximum would round nearly all to zero.
    Straight-through gradients: that of the values where they are not clipped, none for the step.

    Args:
        values: of any shape.
        bits: at least 1; 32 and more return ``values``.
        active: broadcastable to ``values``, 1 or 0: which of them the step follows from; default all. The others
            come back as anything.
    """
    if bits >= FULL_PRECISION:
        return values
    sizes = values.detach().abs()
    if active is not None:
        sizes = sizes * active
    if bits > 2:
        high = 2 ** (bits - 1) - 1
        return fake_quantize(values * _AWAY, (sizes.max() / high).clamp_min(1e-12), -high - 1, high + 1)
    count = sizes.numel() if active is None else active.expand_as(sizes).sum()
    mean = (sizes.sum() / count).clamp_min(1e-12)
    if bits == 2:
        return fake_quantize(values * _AWAY, 1.4 * mean, -1, 1)
    signs = fake_quantize(values, 2 * mean, -1, 0, offset=0.5)
    return signs if active is None else signs * active  # the others are no zeros on a grid without one


@final
class DynamicQuantizer(nn.Module):
    """Rounds a tensor by :func:`dynamic_quantize`, without parameters; see there.

    Args:
        bits: of a static network one number; of a network of several candidates all of them.

    Raises:
        ValueError: there are none, or one is below 1.
    """

    def __init__(self, bits: Sequence[int]) -> None:
        super().__init__()
        self.bits = tuple(bits)
        if not self.bits or min(self.bits) < 1:
            raise ValueError(f"DynamicQuantizer.bits must be one or more numbers of at least 1, got {self.bits}")

    def forward(self, x: Tensor, weights: Tensor | None = None, active: Tensor | None = None) -> Tensor:
        """Return ``x`` rounded, or the sum of all its roundings under ``(candidates,)`` weights.

        Args:
            x: dense, or sparse COO, of which the non-zeros are rounded.
            weights: of the candidates.
            active: see :func:`dynamic_quantize`.
        """
        if x.is_sparse:
            return torch.sparse_coo_tensor(
                x._indices(), self(x._values(), weights), x.shape, check_invariants=False, is_coalesced=True
            )
        if weights is None:
            return dynamic_quantize(x, self.bits[0], active)
        terms = [
            weight * dynamic_quantize(x, bits, active)
            for bits, weight in zip(self.bits, weights.unbind(), strict=True)
            if weight.requires_grad or weight != 0
        ]
        return torch.stack(terms).sum(0)

    def extra_repr(self) -> str:
        """Return the bits for ``repr``."""
        return f"bits={self.bits[0] if len(self.bits) == 1 else list(self.bits)}"
