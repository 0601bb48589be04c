"""A weight source in which each architecture bends the shared weights a little, by a low-rank difference."""

from typing import final

import torch
from torch import Tensor, nn

from search_spaces import Architecture, SearchSpace
from supernets import SharedWeights, WeightSource


@final
class LowRankDelta(WeightSource):
    """Shared weights plus, for every matrix, ``U diag(s(a)) V`` with scales linear in the encoding of ``a``.

    Subnetworks that pull the shared weights in different directions can part company at the price of
    ``rank * (rows + columns)`` numbers a matrix. The scales start at zero, so training starts from plain sharing. The
    difference is made for the largest build and then cut with the weights, so every slicing rule holds for it too.

    Args:
        space: the space whose architectures are filled.
        rank: of the difference.
        seed: of the shared weights and the factors.
    """

    def __init__(self, space: SearchSpace, *, rank: int = 2, seed: int = 0) -> None:
        super().__init__(space)
        self.rank, self.seed = rank, seed
        self.shared = SharedWeights(space, seed=seed)
        matrices = {name: tensor for name, tensor in self.shared.stored().items() if tensor.ndim > 1}
        generator = torch.Generator().manual_seed(seed)

        def factor(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) / (rank * columns) ** 0.5

        self.names = tuple(matrices)
        self.left = nn.ParameterList(factor(len(tensor), rank) for tensor in matrices.values())
        self.right = nn.ParameterList(factor(rank, tensor[0].numel()) for tensor in matrices.values())
        features = len(space.encode(space.largest()))
        self.scale = nn.Parameter(torch.zeros(len(matrices), rank, features))

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Return the bent weights of ``architecture``."""
        tensors = self.shared.stored()
        scales = self.scale @ self.space.encode(architecture).to(self.device)  # (matrices, rank)
        for name, left, right, scale in zip(self.names, self.left, self.right, scales, strict=True):
            tensors[name] = tensors[name] + ((left * scale) @ right).view_as(tensors[name])
        return self.shared.plan(architecture)(tensors) | self.buffers_of(architecture)
