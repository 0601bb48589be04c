"""A grown network whose weights stay mixtures of templates while it is trained on."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Block", "MixedNetwork"]


@dataclass(frozen=True)
class Block:
    """A part of one tensor that is mixed from templates: ``scale * sum_t c_t T_t``, cropped to its place.

    Attributes:
        index: where it lies in the tensor.
        member: whose templates it is mixed from.
        coefficients: ``(T,)``.
        templates: ``(T, *shape)``, the same for every block of one tensor and member.
        scale: constant factor.
    """

    index: tuple[Tensor, ...]
    member: int
    coefficients: Tensor
    templates: Tensor
    scale: float = 1.0


@final
class MixedNetwork(nn.Module):
    """A network whose matrices and kernels are put together from mixtures of templates (MixtureGrowth, 2311.04251).

    Trained are coefficients and templates; the blocks of one tensor that come from one member share its templates, so
    that a new part is tuned by a few coefficients and by what the trained part learns. All other parameters are those
    of the module.

    Args:
        module: what runs; the blocks replace parts of its parameters.
        blocks: parameter -> its blocks. What they do not cover is trained as it is.
    """

    def __init__(self, module: nn.Module, blocks: Mapping[str, Sequence[Block]]) -> None:
        super().__init__()
        self.module = module
        self.coefficients, self.templates = nn.ParameterList(), nn.ParameterList()
        self._layout: dict[str, list[tuple[tuple[Tensor, ...], int, int, float]]] = {}
        for name, parts in blocks.items():
            covered = sum(math.prod(places.numel() for places in part.index) for part in parts)
            parameter = module.get_parameter(name)
            parameter.requires_grad_(covered < parameter.numel())
            numbers: dict[int, int] = {}
            layout = self._layout.setdefault(name, [])
            for part in parts:
                if part.member not in numbers:
                    numbers[part.member] = len(self.templates)
                    self.templates.append(nn.Parameter(part.templates.detach().clone()))
                layout.append((part.index, len(self.coefficients), numbers[part.member], part.scale))
                self.coefficients.append(nn.Parameter(part.coefficients.detach().clone()))

    def tensors(self) -> dict[str, Tensor]:
        """Return parameter -> mixed tensor."""
        made = {}
        for name, layout in self._layout.items():
            tensor: Tensor = self.module.get_parameter(name)
            for index, row, bank, scale in layout:
                shape = [places.numel() for places in index]
                mixed = torch.tensordot(self.coefficients[row], self.templates[bank], 1)
                tensor = tensor.index_put(index, scale * mixed[tuple(slice(size) for size in shape)])
            made[name] = tensor
        return made

    def forward(self, *inputs: Tensor) -> Any:
        """Run the module with the mixed tensors."""
        return functional_call(self.module, self.tensors(), inputs)

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """Return an independent copy of the module that computes the same without templates."""
        made = copy.deepcopy(self.module)
        for name, tensor in self.tensors().items():
            made.get_parameter(name).copy_(tensor).requires_grad_(True)
        return made
