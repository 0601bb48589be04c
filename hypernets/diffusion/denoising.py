"""Denoising diffusion over latent weights."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from hypernets.diffusion.priors import ConditionedMLP, Prior, check_sizes

__all__ = ["Denoising"]

_LOW, _HIGH, _REFERENCE = 0.0015, 0.0155, 1000


@final
class Denoising(Prior):
    """Latent diffusion by noise prediction (DDPM: Ho et al., arXiv 2006.11239; DDIM: Song et al., arXiv 2010.02502).

    ``x_t = sqrt(a_t) x + sqrt(1 - a_t) e`` with ``a_t`` the product of ``1 - beta_s`` over s <= t, ``beta`` linear in
    its square root from 0.0015 to 0.0155 at a thousand timesteps and scaled so that the end is the same for other
    numbers; the network is trained on ``|e(x_t, code, t) - e|^2``. Sampling goes from pure noise through ``steps`` of
    the timesteps: with ``x0 = (x - sqrt(1 - a) e) / sqrt(a)`` the next is
    ``sqrt(a') x0 + sqrt(1 - a' - s^2) e + s n``, ``s = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a')``.

    Args:
        hidden: widths of the network.
        timesteps: of training.
        steps: of sampling, at most ``timesteps``.
        eta: 0 samples by DDIM, without further noise; 1 with all timesteps is the ancestral sampling of DDPM.

    Raises:
        ValueError: an argument is out of range.
    """

    remaining: Tensor

    def __init__(
        self, hidden: Sequence[int] = (256, 256), timesteps: int = 1000, steps: int = 50, eta: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = check_sizes(hidden, timesteps=timesteps, steps=steps)
        if steps > timesteps or not 0 <= eta <= 1:
            raise ValueError(f"steps <= timesteps and 0 <= eta <= 1 must hold, got {steps=}, {timesteps=}, {eta=}")
        self.timesteps, self.steps, self.eta = timesteps, steps, eta

    def allocate(self, width: int, code: int) -> None:  # noqa: D102
        self.network = ConditionedMLP(width, code, self.hidden)
        betas = torch.linspace(_LOW**0.5, _HIGH**0.5, self.timesteps, dtype=torch.float64).square()
        betas = (betas * _REFERENCE / self.timesteps).clamp(max=0.999)
        self.register_buffer("remaining", (1 - betas).cumprod(0).float(), persistent=False)

    def loss(self, latents: Tensor, code: Tensor, *, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        time = torch.randint(self.timesteps, (len(latents),), generator=generator).to(latents.device)
        left = self.remaining[time][:, None].to(latents)
        wrong: Tensor = self.network(
            left.sqrt() * latents + (1 - left).sqrt() * noise, code, self._scaled(time, latents)
        )
        return (wrong - noise).square().mean()

    def sample(  # noqa: D102
        self, code: Tensor, *, generator: torch.Generator | None, temperature: float = 1.0
    ) -> Tensor:
        found = temperature * torch.randn(len(code), self.network.width, generator=generator).to(code)
        places = torch.linspace(self.timesteps - 1, 0, self.steps).round().long().tolist()
        for place, after in zip(places, [*places[1:], -1], strict=True):
            left = self.remaining[place].to(code)
            then = self.remaining[after].to(code) if after >= 0 else torch.ones_like(left)
            noise = self.network(found, code, self._scaled(torch.full((len(code),), place, device=code.device), code))
            clean = (found - (1 - left).sqrt() * noise) / left.sqrt()
            spread = self.eta * ((1 - then) / (1 - left)).sqrt() * (1 - left / then).sqrt()
            found = then.sqrt() * clean + (1 - then - spread**2).clamp(min=0).sqrt() * noise
            if self.eta > 0:
                found = found + temperature * spread * torch.randn(found.shape, generator=generator).to(code)
        return found

    def _scaled(self, time: Tensor, like: Tensor) -> Tensor:
        return time.to(like) / self.timesteps
