"""Weight codecs: from weight vectors to short latent vectors and back."""

from abc import abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from hypernets.diffusion.parts import Part

__all__ = ["PCACodec", "WeightCodec"]


class WeightCodec(Part):
    """Encodes weight vectors ``(N, P)`` as latents ``(N, width)``, and decodes latents.

    Life cycle: the hypernetwork that it is given to calls :meth:`allocate` once with the number of target weights P;
    :meth:`fit` learns from the vectors of a zoo, which the hypernetwork has centred and scaled tensor by tensor. After
    it the latents of that zoo have about unit deviation in every component, which is what priors expect.

    Attributes:
        width: length of the latents.
    """

    width: int

    @abstractmethod
    def allocate(self, numel: int) -> None:
        """Create parameters and buffers for vectors of length ``numel``."""

    @abstractmethod
    def fit(self, vectors: Tensor, *, generator: torch.Generator) -> None:
        """Learn from vectors ``(N, P)`` of mean zero; ``generator`` decides all that is random.

        Raises:
            ValueError: there are too few of them.
        """

    @abstractmethod
    def encode(self, vectors: Tensor) -> Tensor:
        """Return latents ``(N, width)`` of vectors ``(N, P)``."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return vectors ``(K, P)`` of latents ``(K, width)``."""


@final
class PCACodec(WeightCodec):
    """The first principal components, each divided by its deviation over the zoo: ``z = S^-1 B v``, ``v = B^T S z``.

    ``B`` ``(width, P)`` has orthonormal rows. It takes ``width * P`` values, and cannot leave the span of the zoo.

    Args:
        width: number of components, less than the number of models.

    Raises:
        ValueError: ``width`` is below 1.
    """

    basis: Tensor
    deviation: Tensor

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be >= 1, got {width}")
        self.width = width

    def allocate(self, numel: int) -> None:
        """Start from random directions."""
        if self.width > numel:
            raise ValueError(f"PCACodec(width={self.width}) needs a target of at least as many weights, got {numel}")
        self.register_buffer("basis", nn.init.orthogonal_(torch.empty(self.width, numel)))
        self.register_buffer("deviation", torch.ones(self.width))

    @torch.no_grad()
    def fit(self, vectors: Tensor, *, generator: torch.Generator) -> None:
        """Compute the components."""
        del generator
        if len(vectors) <= self.width:
            raise ValueError(
                f"PCACodec(width={self.width}) needs more models than that, got {len(vectors)}; lower the width or "
                "train a larger zoo"
            )
        _, singular, rows = torch.linalg.svd(vectors, full_matrices=False)
        floor = singular[0].clamp(min=torch.finfo(vectors.dtype).tiny) * 1e-6
        self.basis.copy_(rows[: self.width])
        self.deviation.copy_(singular[: self.width].clamp(min=floor) / (len(vectors) - 1) ** 0.5)

    def encode(self, vectors: Tensor) -> Tensor:
        """Return ``S^-1 B v``."""
        return vectors @ self.basis.T / self.deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Return ``B^T S z``."""
        return (latents * self.deviation) @ self.basis
