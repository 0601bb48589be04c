"""The functions of position that implicit hypernetworks are made of, all tensors in one module."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from hypernets.coordinates import fourier, positions
from hypernets.target import Target, TensorSpec

__all__ = ["PositionFunctions"]

_SMALL = 0.1
_KEPT = 256

_Arrangement = tuple[tuple[tuple[tuple[int, ...], tuple[str, ...]], ...], Tensor, Tensor, Tensor]


@final
class PositionFunctions(nn.Module):
    """All ``g_l``, their weights stacked; tensors of one shape are made together.

    Attributes:
        constant: ``C`` ``(T, width, code)``.
        shift: ``(T, width)``, added to it.
        axes: ``A`` and ``B`` ``(2, T, width, 2 F)``.
        hidden: ``W`` ``(layers - 1, T, width, width)``.
        hidden_shift: ``(layers - 1, T, width)``, added to it.
        gates: ``s`` ``(layers - 1, T)``.
        head: ``V`` of all tensors ``(sum of outputs, width)``.
        head_shift: ``(sum of outputs,)``, added to it.
        undecayed: names of those that act as biases, which weight decay spares.
    """

    undecayed = frozenset({"shift", "hidden_shift", "gates", "head_shift"})

    def __init__(self, target: Target, frequencies: int, code: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self._arrangements: dict[Any, _Arrangement] = {}
        self._known: dict[Any, Tensor] = {}
        count = len(target.tensors)
        outputs = [math.prod(spec.shape[2:]) for spec in target]
        starts = [sum(outputs[:place]) for place in range(count)]
        self._rows = {
            spec.name: (place, starts[place], outputs[place], (spec.deviation or _SMALL) / math.sqrt(width))
            for place, spec in enumerate(target)
        }
        spread = math.sqrt(2 / 3)  # three sums of features of norm 1
        self.constant = nn.Parameter(torch.randn(count, width, code) * spread)
        self.shift = nn.Parameter(torch.zeros(count, width))
        self.axes = nn.Parameter(torch.randn(2, count, width, 2 * frequencies) * spread)
        self.hidden = nn.Parameter(torch.randn(layers - 1, count, width, width) * math.sqrt(2 / width))
        self.hidden_shift = nn.Parameter(torch.zeros(layers - 1, count, width))
        self.gates = nn.Parameter(torch.full((layers - 1, count), 0.1))
        deviations = [
            0.0 if spec.role in {"bias", "norm_bias"} else math.sqrt(2 / max(size, 1))
            for spec, size in zip(target, outputs, strict=True)
        ]
        scale = torch.tensor(deviations).repeat_interleave(torch.tensor(outputs))
        self.head = nn.Parameter(torch.randn(sum(outputs), width) * scale[:, None])
        self.head_shift = nn.Parameter(torch.zeros(sum(outputs)))

    @torch.no_grad()
    def rescale(self, name: str, factor: float) -> None:
        """Multiply all values of one tensor."""
        _, start, size, _ = self._rows[name]
        for parameter in (self.head, self.head_shift):
            parameter[start : start + size] *= factor

    def _arranged(self, specs: Sequence[TensorSpec], like: Tensor) -> _Arrangement:
        """Tensors by shape, and their rows in the stacks in that order; kept, as the same are asked for again."""
        key = (tuple((spec.name, spec.shape) for spec in specs), like.device, like.dtype)
        if key not in self._arrangements:
            groups: dict[tuple[int, ...], list[str]] = {}
            for spec in specs:
                groups.setdefault(spec.shape, []).append(spec.name)
            rows = [self._rows[name] for names in groups.values() for name in names]
            outputs = [row for _, start, size, _ in rows for row in range(start, start + size)]
            scale = [factor for _, _, size, factor in rows for _ in range(size)]
            if len(self._arrangements) >= _KEPT:
                self._arrangements.clear()
            with torch.inference_mode(False):  # they serve training too
                self._arrangements[key] = (
                    tuple((shape, tuple(names)) for shape, names in groups.items()),
                    torch.tensor([row[0] for row in rows], device=like.device),
                    torch.tensor(outputs, device=like.device, dtype=torch.int64),
                    torch.tensor(scale, device=like.device, dtype=like.dtype),
                )
        return self._arrangements[key]

    def _features(self, size: int, like: Tensor) -> Tensor:
        """Fourier features of an axis without noise, kept."""
        key = (size, like.device, like.dtype)
        if key not in self._known:
            with torch.inference_mode(False):
                self._known[key] = fourier(positions(size).to(like.device, like.dtype), self.frequencies)
        return self._known[key]

    def forward(
        self, code: Tensor, specs: Sequence[TensorSpec], *, noise: float, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """Return name -> ``(K, *shape)``, still without the factor of narrower inputs."""
        if not specs:
            return {}
        width = self.head.shape[1]
        groups, tensors, outputs, scale = self._arranged(specs, code)
        constant = self.constant.index_select(0, tensors) @ code.T + self.shift.index_select(0, tensors)[..., None]
        axes = self.axes.index_select(1, tensors)
        hidden, shift = self.hidden.index_select(1, tensors), self.hidden_shift.index_select(1, tensors)
        gates = self.gates.index_select(1, tensors)
        head = self.head.index_select(0, outputs) * scale[:, None]
        head_shift = self.head_shift.index_select(0, outputs) * scale
        found: dict[str, Tensor] = {}
        first = row = 0
        for shape, group in groups:
            count, sizes, made = len(group), shape[:2], math.prod(shape[2:])
            part = slice(first, first + count)
            values = constant[part].mT.reshape(count, len(code), *[1] * len(sizes), width)
            for place, size in enumerate(sizes):
                if noise and generator is not None:
                    places = torch.stack([positions(size, noise=noise, generator=generator) for _ in group])
                    features = fourier(places.to(code), self.frequencies)
                else:
                    features = self._features(size, code)
                lines = features @ axes[place, part].mT  # (G, size, width)
                along = [size if axis == place else 1 for axis in range(len(sizes))]
                values = values + lines.reshape(count, 1, *along, width)
            values = values.reshape(count, len(code) * math.prod(sizes), width).relu()
            for layer in range(len(hidden)):
                inner = torch.baddbmm(shift[layer, part, None], values, hidden[layer, part].mT).relu()
                values = values + gates[layer, part, None, None] * inner
            rows = slice(row, row + count * made)
            values = torch.baddbmm(
                head_shift[rows].reshape(count, 1, made), values, head[rows].reshape(count, made, width).mT
            )
            for name, value in zip(group, values, strict=True):
                found[name] = value.reshape(len(code), *shape)
            first, row = first + count, row + count * made
        return found
