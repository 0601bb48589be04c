"""One network at several bitwidths at once: the weighted sum of its quantised weights and inputs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from search_spaces import FULL_PRECISION, Architecture, QuantizedSpace, RelaxedArchitecture
from search_spaces.quantizer import InputQuantizer, input_range, quantize_input
from supernets.bit_gates import residual_metric
from supernets.skeletons import Skeletons, ThreadCache

__all__ = ["BitRelaxation", "RelaxedInput", "pinned", "superposed"]

_WATCHED = 8  # examples of a batch whose residuals are measured


def pinned(space: QuantizedSpace, relaxed: RelaxedArchitecture) -> Architecture:
    """Return the architecture without bits on whose candidates ``relaxed`` puts all weight.

    Raises:
        TypeError: it mixes candidates of a choice that is not one of bits.
    """
    values = {}
    for choice in space.space.choices:
        weights = relaxed[choice.name].detach()
        if float(weights.max()) != 1.0:
            raise TypeError(
                f"bits alone can be mixed in one pass, not the candidates of {choice.name!r}; fix that choice, search "
                "it with SandwichRule and nas search, or relax the space without bits"
            )
        values[choice.name] = choice.candidates[int(weights.argmax())]
    return space.space.architecture(values)


def superposed(quantized: Sequence[Callable[[], Tensor]], weights: Tensor) -> Tensor:
    """Return ``sum_k p_k q_k`` as ``q_1 + sum_k P_k (q_k - q_(k-1))`` with ``P_k = sum_(i >= k) p_i``.

    With nested grids the differences are the residuals of shared bits. What is certain not to count and needs no
    gradient is not computed.

    Args:
        quantized: make the tensor at each bitwidth.
        weights: ``(K,)``, of the bitwidths.
    """
    if not weights.requires_grad:
        certain = (weights == 1).nonzero()
        if len(certain):
            return quantized[int(certain[0])]()
    reached = weights.flip(0).cumsum(0).flip(0)
    previous = total = quantized[0]()
    for position in range(1, len(weights)):
        present = quantized[position]()
        total = total + reached[position] * (present - previous)
        previous = present
    return total


@final
class RelaxedInput(nn.Module):
    """The weighted sum of one input at several bitwidths, in place of an :class:`InputQuantizer`.

    Args:
        bits: ascending.
        signed: whether inputs may be negative.

    Attributes:
        scales: ``(K,)``.
        shares: weights of the bitwidths ``(K,)``.
        residuals: metrics of all bitwidths but the last in the latest call, ``(K - 1,)``, see ``residual_metric``.
    """

    residuals: Tensor | None = None

    def __init__(self, bits: Sequence[int], *, signed: bool) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.signed = signed
        self.scales = nn.Parameter(torch.empty(len(self.bits)))
        self.register_buffer("shares", torch.empty(len(self.bits)))
        self._single = [None if b == FULL_PRECISION else InputQuantizer(b, signed=signed) for b in self.bits]

    def _at(self, x: Tensor, position: int) -> Tensor:
        single = self._single[position]
        if single is None:
            return x
        found: Tensor = functional_call(single, {"scale": self.scales[position]}, (x,))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, ...)`` to the same shape."""
        assert isinstance(self.shares, Tensor)  # noqa: S101 - a buffer
        with torch.no_grad():
            few = x[:_WATCHED]
            self.residuals = torch.stack(
                [
                    residual_metric(
                        few, self._at(few, k), self.scales[k], input_range(self.bits[k], signed=self.signed)
                    )
                    for k in range(len(self.bits) - 1)
                ]
            )
        return superposed([partial(self._at, x, k) for k in range(len(self.bits))], self.shares)


@final
class BitRelaxation:
    """Runs one architecture with the weighted sum of the bitwidths of its inputs.

    Args:
        space: with choices of bits.
        skeletons: of the wrapped space, without bits.

    Attributes:
        operations: none, see ``Relaxation``.
        listener: told choice -> metrics ``(K - 1,)`` of its bitwidths but the last after every call, see
            ``residual_metric``; the mean over layers where several share the choice.
    """

    operations: tuple[str, ...] = ()

    def __init__(self, space: QuantizedSpace, skeletons: Skeletons) -> None:
        self.space = space
        self.listener: Callable[[Mapping[str, Tensor]], None] | None = None
        self._skeletons = skeletons
        self._networks: ThreadCache[tuple[Architecture, torch.device], nn.Module] = ThreadCache(maxsize=2)
        self._of_weights: dict[str, list[Tensor]] = {}

    def note(self, choice: str, residuals: Tensor) -> None:
        """Keep metrics of a weight until the next call."""
        self._of_weights.setdefault(choice, []).append(residuals)

    def __call__(
        self,
        relaxed: RelaxedArchitecture,
        tensors: Mapping[str, Tensor],
        inputs: tuple[Any, ...],
        *,
        regularise: bool = True,
    ) -> Any:
        """Return the outputs; norms use the statistics of the batch.

        Args:
            relaxed: weights of all bitwidths, and a single candidate of each other choice.
            tensors: what the source gives for ``relaxed``.
            inputs: of the network.
            regularise: whether dropout is on.
        """
        base = pinned(self.space, relaxed)
        device = next(iter(tensors.values())).device
        module = self._networks.get((base, device), lambda: self._build(base, device))
        module.train(regularise)
        for layer in module.modules():
            if isinstance(layer, _NormBase | nn.RNNBase):
                layer.train()
        outputs = functional_call(module, dict(tensors), inputs, tie_weights=False)
        found, self._of_weights = self._of_weights, {}
        if self.listener is not None:
            for name, layer in module.named_modules():
                if isinstance(layer, RelaxedInput) and layer.residuals is not None:
                    choice = self.space.bit_choices(name.removesuffix(".input_quantizer"))[1]
                    found.setdefault(str(choice), []).append(layer.residuals)
            self.listener({choice: torch.stack(metrics).mean(0) for choice, metrics in found.items()})
        return outputs

    def _build(self, base: Architecture, device: torch.device) -> nn.Module:
        module = self._skeletons.take(base, device)
        with device:
            for layer in self.space.bitwidths(self.space.architecture({**self.space.largest(), **base})):
                bits = self.space.options(layer)[1]
                signed = self.space.signed_input(layer)
                if len(bits) > 1:
                    quantize_input(module.get_submodule(layer), RelaxedInput(bits, signed=signed))
                elif bits[0] < FULL_PRECISION:
                    quantize_input(module.get_submodule(layer), InputQuantizer(bits[0], signed=signed))
        return module
