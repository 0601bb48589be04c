"""The largest build, run with gated blocks and weighted norms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from supernets.laws import Presence, RelaxationError

__all__ = ["Gate", "MaskedNetwork", "weighted_norm"]


@dataclass(frozen=True)
class Gate:
    """Modules that run one after another and are left out together.

    Attributes:
        names: of the modules, in order; the input of the first and the output of the last have one shape.
        presences: where they exist.
    """

    names: tuple[str, ...]
    presences: tuple[Presence, ...]

    def __call__(self, relaxed: Mapping[str, Tensor]) -> Tensor:
        """Return the probability ``()`` that the modules exist."""
        return torch.stack([presence(relaxed) for presence in self.presences]).prod()


def weighted_norm(
    x: Tensor, weights: Tensor, *, scale: Tensor | None, bias: Tensor | None, eps: float, centre: bool = True
) -> Tensor:
    """Normalise the last dimension with moments under ``weights``.

    ``mu = sum_i w_i x_i`` (0 unless ``centre``), ``v = sum_i w_i (x_i - mu)^2``, ``(x - mu) / sqrt(v + eps) * scale +
    bias`` with ``w = weights / sum weights``. At weights of 1 for the first n and 0 for the others this is the layer
    norm of the first n features.

    Args:
        x: ``(..., n)``.
        weights: ``(n,)``, not all zero.
        scale: ``(n,)`` or none.
        bias: ``(n,)`` or none.
        eps: added to the variance.
        centre: whether the mean is taken off (layer norm) or not (root-mean-square norm).
    """
    shares = weights / weights.sum()
    if centre:
        x = x - (x @ shares)[..., None]
    x = x * torch.rsqrt(x.square() @ shares + eps)[..., None]
    if scale is not None:
        x = x * scale
    return x if bias is None else x + bias


@final
class _WeightedNorm(nn.Module):
    """A ``LayerNorm`` or ``RMSNorm`` whose features have weights, with parameters of the same names."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm, weights: Callable[[], Tensor]) -> None:
        super().__init__()
        for leaf in ("weight", "bias"):
            self.register_parameter(leaf, norm._parameters.get(leaf))
        self.eps = norm.eps
        self.centre = isinstance(norm, nn.LayerNorm)
        self._weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised features."""
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        scale, bias = self._parameters["weight"], self._parameters["bias"]
        wide = torch.promote_types(x.dtype, torch.float32)  # sums of squares overflow in half precision
        with torch.autocast(x.device.type, enabled=False):
            return weighted_norm(
                x.to(wide), self._weights().to(wide), scale=scale, bias=bias, eps=eps, centre=self.centre
            )


@final
class MaskedNetwork:
    """One thread's copy of the largest build, with gates and weighted norms in place.

    Args:
        module: the largest build; it is changed, and its own parameters are never read.
        gates: of blocks.
        norms: names of norms of elastic features.
        mixes: whether the module takes the weights of its operations as last argument.
    """

    def __init__(self, module: nn.Module, gates: Sequence[Gate], norms: Sequence[str], *, mixes: bool) -> None:
        self.module = module
        self.mixes = mixes
        self._gates = tuple(gates)
        self._probabilities: list[Tensor] = []
        self._features: dict[str, Tensor] = {}
        self._entered: dict[int, Tensor] = {}
        for name in norms:
            parent, _, leaf = name.rpartition(".")
            owner = module.get_submodule(parent)
            setattr(owner, leaf, _WeightedNorm(getattr(owner, leaf), partial(self._feature_weights, name)))
        for number, gate in enumerate(gates):
            module.get_submodule(gate.names[0]).register_forward_pre_hook(self._enter(number), with_kwargs=True)
            module.get_submodule(gate.names[-1]).register_forward_hook(self._leave(number, gate))
        for parameter in module.parameters():
            parameter.untyped_storage().resize_(0)

    def _feature_weights(self, name: str) -> Tensor:
        return self._features[name]

    def _enter(self, number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            del module
            self._entered[number] = args[0] if args else next(iter(kwargs.values()))

        return hook

    def _leave(self, number: int, gate: Gate) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
            del module, args
            x = self._entered.pop(number, None)
            if x is None or not isinstance(output, Tensor) or x.shape != output.shape:
                shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (x, output)]
                raise RelaxationError(
                    f"choices {[presence.choice for presence in gate.presences]} leave out {list(gate.names)}, which "
                    f"cannot be gated: input and output must be tensors of one shape, got {shapes[0]} and {shapes[1]}; "
                    "make what is left out one module that keeps the shape, fix the choice, or use SandwichRule"
                )
            return x + self._probabilities[number] * (output - x)

        return hook

    def __call__(
        self,
        relaxed: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        inputs: tuple[Any, ...],
        *,
        regularise: bool,
    ) -> Any:
        """Run the network.

        Args:
            relaxed: choice -> weights of its candidates.
            features: norm -> weights of its features.
            tensors: of the largest build, masked, by name.
            inputs: of the network.
            regularise: whether dropout is on; norms use the statistics of the batch in any case.
        """
        self._probabilities = [gate(relaxed) for gate in self._gates]
        self._features = dict(features)
        self.module.train(regularise)
        for layer in self.module.modules():
            if isinstance(layer, _NormBase | nn.RNNBase):
                layer.train()
        try:
            return functional_call(
                self.module, dict(tensors), (*inputs, relaxed) if self.mixes else inputs, tie_weights=False
            )
        finally:
            self._probabilities, self._features = [], {}
            self._entered.clear()
