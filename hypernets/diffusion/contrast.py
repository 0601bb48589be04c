"""Contrastive alignment of data sets and weights."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ContrastiveAlignment"]


@final
class ContrastiveAlignment(nn.Module):
    """Brings the code of a data set near the latent of a network trained on it, and away from those of others.

    With unit vectors ``d_i`` of the codes and ``w_i`` of the latents, both by linear maps, and a learned temperature,
    ``logits = D W^T / temperature``; the loss is the mean of the cross entropies of its rows and of its columns, i
    belonging to i (CLIP: Radford et al., arXiv 2103.00020; for weights: Soro et al., arXiv 2402.18153, Sec. 3).

    Args:
        code: length of the codes.
        latent: length of the latents.
        width: of the common space.
    """

    def __init__(self, code: int, latent: int, width: int = 64) -> None:
        super().__init__()
        self.of_data, self.of_weights = nn.Linear(code, width), nn.Linear(latent, width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Return the loss of codes ``(B, code)`` and latents ``(B, latent)`` of the same B tasks."""
        data, weights = (
            F.normalize(layer(given), dim=-1) for layer, given in ((self.of_data, codes), (self.of_weights, latents))
        )
        logits = data @ weights.T * self.log_scale.clamp(max=4.6).exp()
        truth = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
