"""Scales of a trained network that is quantised as it is: those of least squared error."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from search_spaces import FULL_PRECISION, Architecture
from search_spaces.quantizer import fake_quantize, input_range
from supernets.quantized import QuantizedWeights

__all__ = ["fit_scales"]

_FACTORS = torch.logspace(-4, 2, 73, base=2.0)  # on the scale that training would start from
_VALUES = 65_536  # of an input that are looked at


@torch.no_grad()
def fit_scales(source: QuantizedWeights, architecture: Architecture, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Set the scales of every layer of one network, for all its bits, to those of least mean squared error, in place.

    ``s = argmin_s mean (x - Q_b(x; s))^2`` over a grid of 73 scales, 2^-4 to 2^2 times the one that training would
    start from, for the weights (each output channel by itself where it has its own scale) and for inputs on
    ``batches``. A range that all bitwidths share gets the least product of their errors.

    Args:
        source: its wrapped source is trained.
        architecture: the network, without its bits; scales of layers that it does not have start as in training.
        batches: inputs of the network; it runs in full precision, norms on the statistics of the batch.

    Raises:
        ValueError: an input taken for one that is never negative is.
    """
    source.observe(batches)
    space = source.quantized_space
    base = space.base(architecture)
    tensors = source.wrapped(base)
    inputs = _inputs(source, base, batches)
    for layer, given in inputs.items():
        weights, bits = space.options(layer)
        weight = tensors[f"{layer}.weight"]
        _fit_weight(source, layer, weight, [b for b in weights if b < FULL_PRECISION], base)
        for b in bits:
            if b < FULL_PRECISION:
                low, high = input_range(b, signed=space.signed_input(layer))
                start = source.input_scales(layer, b)
                errors = [(fake_quantize(given, start * f, low, high) - given).square().mean() for f in _FACTORS]
                source.input_scales.set(layer, b, start * _FACTORS[int(torch.stack(errors).argmin())])


def _fit_weight(source: QuantizedWeights, layer: str, weight: Tensor, bits: Sequence[int], base: Architecture) -> None:
    quantizer = source.quantizer
    if not quantizer.learned:
        return
    for group in [bits] if quantizer.shared else [[b] for b in bits]:
        start = source.scale(layer, group[0], base)
        assert start is not None  # noqa: S101 - learned
        dims = tuple(range(1, weight.ndim)) if start.ndim else None
        errors = []
        for factor in _FACTORS:
            squares = [(quantizer(weight, b, start * factor) - weight).square() for b in group]
            means = [s.mean(dims, keepdim=True) if dims else s.mean() for s in squares]
            errors.append(torch.stack([m.clamp(min=1e-30).log() for m in means]).sum(0))
        best = torch.stack(errors).argmin(0)
        source.set_scale(layer, group[0], base, start * _FACTORS.to(start)[best])


def _inputs(source: QuantizedWeights, base: Architecture, batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Return layer -> values of its input in full precision, as many as are looked at."""
    found: dict[str, list[Tensor]] = {}

    def watch(layer: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given: Tensor = args[0] if args else kwargs["input"]
            share = _VALUES // len(batches) + 1
            found.setdefault(layer, []).append(given.flatten()[:: max(1, given.numel() // share)])

        return hook

    device = source.device
    module = source.wrapped.skeletons.borrow(base, device).eval()
    with contextlib.ExitStack() as stack:
        for child in module.modules():
            if isinstance(child, _NormBase):
                child.train()
        names = {name for name, _ in module.named_modules()}
        for site in source.quantized_space.sites:
            if site.name in names:
                handle = module.get_submodule(site.name).register_forward_pre_hook(watch(site.name), with_kwargs=True)
                stack.callback(handle.remove)
        for inputs in batches:
            source.wrapped.skeletons.call(base, device, source.wrapped(base), inputs)
    return {layer: torch.cat(values) for layer, values in found.items()}
