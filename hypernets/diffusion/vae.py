"""A variational autoencoder of weight vectors."""

from typing import final

import torch
from torch import Tensor, nn

from hypernets.diffusion.codecs import WeightCodec

__all__ = ["VAECodec"]


@final
class VAECodec(WeightCodec):
    """Encodes weights by a perceptron and decodes them by another (Kingma, Welling, arXiv 1312.6114).

    ``fit`` minimises ``|v - decode(m + s e)|^2 / P + kl KL(N(m, s^2) | N(0, 1)) / P`` over the zoo, with noise e, by
    Adam with a cosine. Latents are the means m, brought to mean 0 and deviation 1 over the zoo afterwards. Both
    perceptrons are linear maps plus two layers, so that what principal components can do is within reach.

    Differs from the paper of D2NWG: vectors, not images, and no perceptual loss; ``kl`` is small, as there, since the
    prior does the sampling.

    Args:
        width: length of the latents.
        hidden: width of the inner layers.
        steps: of training.
        batch: networks in a step.
        lr: highest learning rate.
        kl: weight of the divergence.

    Raises:
        ValueError: an argument is out of range.
    """

    centre: Tensor
    deviation: Tensor

    def __init__(
        self,
        width: int = 64,
        hidden: int = 256,
        steps: int = 2000,
        batch: int = 64,
        lr: float = 1e-3,
        kl: float = 1e-3,
    ) -> None:
        super().__init__()
        if min(width, hidden, steps, batch) < 1 or lr <= 0 or kl < 0:
            raise ValueError(
                f"sizes must be >= 1, lr > 0 and kl >= 0, got {width=}, {hidden=}, {steps=}, {batch=}, {lr=}, {kl=}"
            )
        self.width, self.hidden, self.steps, self.batch, self.lr, self.kl = width, hidden, steps, batch, lr, kl

    def allocate(self, numel: int) -> None:  # noqa: D102
        self.encoder = _Map(numel, self.hidden, 2 * self.width)
        self.decoder = _Map(self.width, self.hidden, numel)
        self.register_buffer("centre", torch.zeros(self.width))
        self.register_buffer("deviation", torch.ones(self.width))

    def fit(self, vectors: Tensor, *, generator: torch.Generator) -> None:
        """Train; see the class."""
        if len(vectors) < 2:
            raise ValueError(f"VAECodec needs two models or more, got {len(vectors)}")
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        descent = torch.optim.Adam(parameters, self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, self.steps)
        with torch.enable_grad():
            for _ in range(self.steps):
                chosen = torch.randint(len(vectors), (self.batch,), generator=generator)
                loss = self.loss(vectors[chosen], generator=generator)
                descent.zero_grad()
                torch.autograd.backward(loss)
                descent.step()
                schedule.step()
        with torch.no_grad():
            means = self._moments(vectors)[0]
            self.centre.copy_(means.mean(0))
            self.deviation.copy_(means.std(0).clamp(min=1e-4))

    def loss(self, vectors: Tensor, *, generator: torch.Generator | None) -> Tensor:
        """Return the training loss of vectors ``(B, P)``."""
        mean, log_variance = self._moments(vectors)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        wrong = self.decoder(mean + (log_variance / 2).exp() * noise) - vectors
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        found: Tensor = wrong.square().mean() + self.kl * divergence / vectors.shape[1]
        return found

    def encode(self, vectors: Tensor) -> Tensor:  # noqa: D102
        return (self._moments(vectors)[0] - self.centre) / self.deviation

    def decode(self, latents: Tensor) -> Tensor:  # noqa: D102
        found: Tensor = self.decoder(latents * self.deviation + self.centre)
        return found

    def _moments(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(vectors).chunk(2, dim=-1)
        return mean, log_variance.clamp(-12, 4)


@final
class _Map(nn.Module):
    """A linear map plus a perceptron."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.straight = nn.Linear(inputs, outputs)
        self.bent = nn.Sequential(
            nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.straight(values) + self.bent(values)
        return found
