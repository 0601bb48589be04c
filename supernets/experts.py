"""Experts of a mixture: several versions of each stored tensor, and their weighted sum for a part of it."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from search_spaces import TensorSlice

__all__ = ["Experts", "FullExperts", "LowRankExperts", "blend"]


def blend(experts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return ``sum_k weights[..., k] experts[k]``.

    Args:
        experts: ``m`` tensors of one shape ``(rows, ...)``.
        weights: ``(m,)`` or ``(rows, m)``, summing to one over the last dimension.
    """
    shares = weights.unbind(-1)
    if weights.ndim > 1:
        shares = tuple(share.reshape(-1, *[1] * (experts[0].ndim - 1)) for share in shares)
    if len(experts) == 2:  # a single pass over memory
        return torch.lerp(experts[0], experts[1], shares[1])
    mixed = experts[0] * shares[0]
    for expert, share in zip(experts[1:], shares[1:], strict=True):
        mixed = torch.addcmul(mixed, expert, share)
    return mixed


@final
class _Tensors(nn.Module):
    """Parameters of one layer under the leaf names they have there, so that biases are known as biases.

    Attributes:
        undecayed: leaf names of parameters that weight decay spares like biases: scales of norms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.undecayed: set[str] = set()


class Experts(nn.Module, ABC):
    """Versions of stored tensors; which of them, :attr:`names` says."""

    names: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()

    @staticmethod
    def _key(owner: str) -> str:
        return "/" + owner.replace(".", "/")

    def _add(self, name: str, suffix: str, tensor: Tensor, *, flat: bool = False) -> None:
        owner, _, leaf = name.rpartition(".")
        key = self._key(owner)
        if key not in self.layers:
            self.layers[key] = _Tensors()
        layer = self.layers[key]
        assert isinstance(layer, _Tensors)  # noqa: S101 - made above
        layer.register_parameter(leaf + suffix, nn.Parameter(tensor))
        if flat:
            layer.undecayed.add(leaf + suffix)

    def _get(self, name: str, suffix: str = "") -> Tensor:
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.layers[self._key(owner)], leaf + suffix)
        return tensor

    @abstractmethod
    def forward(self, part: TensorSlice, stored: Tensor, weights: Tensor) -> Tensor:
        """Return the mixture of one part, every expert being cut before they are mixed.

        Args:
            part: what to cut.
            stored: the shared tensor.
            weights: ``(m,)`` or ``(rows of the part, m)``.
        """

    @abstractmethod
    def versions(self, name: str, stored: Tensor) -> list[Tensor]:
        """Return what tells the experts of one tensor apart, each as a flat tensor."""

    def similarity(self, stored: Mapping[str, Tensor]) -> float:
        """Return the cosine similarity of two experts, averaged over tensors and pairs; 1 means no mixture at all."""
        pairs = [
            torch.cosine_similarity(first, second, dim=0)
            for name in self.names
            for first, second in itertools.combinations(self.versions(name, stored[name]), 2)
        ]
        return float(torch.stack(pairs).mean())


@final
class FullExperts(Experts):
    """Experts of full size: ``W = sum_k p_k E_k`` with ``E_0`` the shared tensor (arXiv 2306.04845).

    Args:
        builds: for each further expert, tensor -> value.
    """

    def __init__(self, builds: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.names = tuple(builds[0])
        for name in self.names:
            self._add(name, "", torch.stack([build[name] for build in builds]), flat=builds[0][name].ndim < 2)

    def forward(self, part: TensorSlice, stored: Tensor, weights: Tensor) -> Tensor:
        """See :class:`Experts`."""
        others = self._get(part.source).unbind()
        return blend([part(stored), *(part(other) for other in others)], weights)

    def versions(self, name: str, stored: Tensor) -> list[Tensor]:
        """See :class:`Experts`."""
        return [stored.flatten(), *self._get(name).flatten(1).unbind()]

    @torch.no_grad()
    def copy(self, stored: Mapping[str, Tensor], noise: float, generator: torch.Generator) -> None:
        """Make every expert the shared tensor plus normal noise of ``noise`` times its standard deviation."""
        for name in self.names:
            experts = self._get(name)
            spread = noise * stored[name].std(correction=0)
            random = torch.randn(experts.shape, generator=generator).to(experts)
            experts.copy_(stored[name] + spread * random)


@final
class LowRankExperts(Experts):
    """Experts that differ from the shared tensor by a low rank: ``W = W_0 + sum_k p_k B_k A_k``.

    Kernels count as matrices of ``outputs`` by ``inputs * kernel``. ``A`` has normal entries of variance one over its
    columns, ``B`` starts at zero, so every architecture starts at the shared tensor; there is no further factor. Rows
    of ``B`` and columns of ``A`` are cut before they are multiplied.

    Args:
        shapes: tensor -> its largest shape, at least two-dimensional.
        experts: ``m``.
        rank: of each expert.
        generator: of the initial weights.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], experts: int, *, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.names = tuple(shapes)
        self._experts, self._rank = experts, rank
        for name, shape in shapes.items():
            columns = torch.randn(experts * rank, *shape[1:], generator=generator)
            self._add(name, "_rows", torch.zeros(shape[0], experts * rank))
            self._add(name, "_columns", columns / columns[0].numel() ** 0.5)

    def forward(self, part: TensorSlice, stored: Tensor, weights: Tensor) -> Tensor:
        """See :class:`Experts`."""
        top = tuple(cut for cut in part.cuts if cut[0] == 0)
        rest = tuple(cut for cut in part.cuts if cut[0] > 0)
        rows = TensorSlice(part.name, part.source, part.shape, top)(self._get(part.source, "_rows"))
        columns = TensorSlice(part.name, part.source, part.shape, rest)(self._get(part.source, "_columns"))
        shared = part(stored)
        scaled = rows * weights.repeat_interleave(self._rank, dim=-1)
        return torch.addmm(shared.flatten(1), scaled, columns.flatten(1)).view(shared.shape)

    def versions(self, name: str, stored: Tensor) -> list[Tensor]:
        """See :class:`Experts`; the differences from the shared tensor."""
        rows = self._get(name, "_rows").chunk(self._experts, dim=1)
        columns = self._get(name, "_columns").flatten(1).chunk(self._experts)
        return [(left @ right).flatten() for left, right in zip(rows, columns, strict=True)]
