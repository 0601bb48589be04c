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
from supernets.masked_network import MaskedNetwork
from supernets.pruning import ChannelGroups
from supernets.relaxation import Relaxation
from supernets.skeletons import Skeletons, ThreadCache

__all__ = ["BitRelaxation", "RelaxedInput", "pinned", "superposed"]

_WATCHED = 8  # examples of a batch whose residuals are measured


def pinned(space: QuantizedSpace, relaxed: RelaxedArchitecture) -> Architecture | None:
    """Return the architecture without bits on whose candidates ``relaxed`` puts all weight.

    ``None`` where it mixes candidates of a choice that is not one of bits, or is to learn from its gradient.
    """
    values = {}
    for choice in space.space.choices:
        weights = relaxed[choice.name]
        if choice.size > 1 and (weights.requires_grad or float(weights.max()) != 1.0):
            return None
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
    """Runs networks with the weighted sum of the bitwidths of their inputs.

    Where all weight is on one candidate of each other choice it is that network that runs, else the largest build under
    the masks of the wrapped space.

    Args:
        space: with choices of bits.
        skeletons: of the wrapped space, without bits.
        masks: returns the relaxation of the wrapped space, or raises ``TypeError`` where its weights have none.

    Attributes:
        operations: none, see ``Relaxation``.
        groups: channels whose importance the listener is told too; none at first.
        listener: told choice -> metrics ``(K - 1,)`` after every call: of its bitwidths but the last, see
            ``residual_metric``, the mean over layers where several share the choice; and of ``groups`` where the
            largest build has run.
    """

    operations: tuple[str, ...] = ()

    def __init__(self, space: QuantizedSpace, skeletons: Skeletons, masks: Callable[[], Relaxation]) -> None:
        self.space = space
        self.masks = masks
        self.groups: ChannelGroups | None = None
        self.listener: Callable[[Mapping[str, Tensor]], None] | None = None
        self._skeletons = skeletons
        self._networks: ThreadCache[tuple[Architecture, torch.device], nn.Module] = ThreadCache(maxsize=2)
        self._masked: ThreadCache[torch.device, MaskedNetwork] = ThreadCache(maxsize=2)
        self._noted: dict[str, list[Tensor]] = {}

    def note(self, choice: str, metrics: Tensor) -> None:
        """Keep metrics of weights until the next call."""
        self._noted.setdefault(choice, []).append(metrics)

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
            relaxed: weights of all candidates.
            tensors: what the source gives for ``relaxed``.
            inputs: of the network.
            regularise: whether dropout is on.
        """
        base = pinned(self.space, relaxed)
        device = next(iter(tensors.values())).device
        if base is None:
            network = self._masked.get(device, lambda: self._dressed(device))
            outputs = self.masks().run(network, relaxed, tensors, inputs, regularise=regularise)
            self._tell(network.module)
            return outputs
        module = self._networks.get((base, device), lambda: self._build(base, device))
        module.train(regularise)
        for layer in module.modules():
            if isinstance(layer, _NormBase | nn.RNNBase):
                layer.train()
        outputs = functional_call(module, dict(tensors), inputs, tie_weights=False)
        self._tell(module)
        return outputs

    def _tell(self, module: nn.Module) -> None:
        found, self._noted = self._noted, {}
        if self.listener is None:
            return
        for name, layer in module.named_modules():
            if isinstance(layer, RelaxedInput) and layer.residuals is not None:
                choice = self.space.bit_choices(name.removesuffix(".input_quantizer"))[1]
                found.setdefault(str(choice), []).append(layer.residuals)
        self.listener({choice: torch.stack(metrics).mean(0) for choice, metrics in found.items()})

    def _dressed(self, device: torch.device) -> MaskedNetwork:
        network = self.masks().network(device)
        with device:
            self._quantize(network.module, self.space.space.largest())
        return network

    def _build(self, base: Architecture, device: torch.device) -> nn.Module:
        module = self._skeletons.take(base, device)
        with device:
            self._quantize(module, base)
        return module

    def _quantize(self, module: nn.Module, base: Architecture) -> None:
        """Put a quantiser of all its bitwidths in front of each layer of ``base``."""
        for layer in self.space.bitwidths(self.space.architecture({**self.space.largest(), **base})):
            bits = self.space.options(layer)[1]
            signed = self.space.signed_input(layer)
            if len(bits) > 1:
                quantize_input(module.get_submodule(layer), RelaxedInput(bits, signed=signed))
            elif bits[0] < FULL_PRECISION:
                quantize_input(module.get_submodule(layer), InputQuantizer(bits[0], signed=signed))
