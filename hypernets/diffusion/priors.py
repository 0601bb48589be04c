"""Priors over latent weights: generative models of ``p(latent | condition)``."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from hypernets.diffusion.parts import Part

__all__ = ["FlowMatching", "Prior"]

_FREQUENCIES = 8


class Prior(Part):
    """Learns to make latents of a condition from noise.

    Life cycle: the hypernetwork calls :meth:`allocate` once; :meth:`loss` is minimised over latents of a zoo and the
    codes of their conditions; :meth:`sample` generates.
    """

    @abstractmethod
    def allocate(self, width: int, code: int) -> None:
        """Create parameters for latents of length ``width`` and codes of length ``code``."""

    @abstractmethod
    def loss(self, latents: Tensor, code: Tensor, *, generator: torch.Generator | None) -> Tensor:
        """Return the training loss, a scalar, of latents ``(B, width)`` and their codes ``(B, code)``."""

    @abstractmethod
    def sample(self, code: Tensor, *, generator: torch.Generator | None, temperature: float = 1.0) -> Tensor:
        """Return one latent for each code ``(K, code)``: ``(K, width)``.

        Args:
            code: encoded conditions.
            generator: of the noise.
            temperature: factor on the noise; below 1 latents come closer to the middle of what the code allows.
        """


@final
class ConditionedMLP(nn.Module):
    """A perceptron that reads latents, codes and a time in [0, 1]; codes are brought to unit deviation first.

    Args:
        width: length of the latents and of the outputs.
        code: length of the codes.
        hidden: widths of the layers.
    """

    frequencies: Tensor

    def __init__(self, width: int, code: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(_FREQUENCIES), persistent=False)
        self.scale = nn.LayerNorm(code)
        sizes = [width + code + 2 * _FREQUENCIES, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], width))

    def forward(self, latents: Tensor, code: Tensor, time: Tensor) -> Tensor:
        """Map ``(B, width)``, ``(B, code)`` and ``(B,)`` to ``(B, width)``."""
        angle = time[:, None] * self.frequencies
        found: Tensor = self.layers(torch.cat([latents, self.scale(code), angle.sin(), angle.cos()], dim=-1))
        return found


def check_sizes(hidden: Sequence[int], **counts: int) -> tuple[int, ...]:
    """Return ``hidden`` as a tuple.

    Raises:
        ValueError: there is no layer, or a size is below 1.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must name at least one layer width >= 1, got {tuple(hidden)}")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")
    return tuple(hidden)


@final
class FlowMatching(Prior):
    """Conditional flow matching with straight paths (Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003).

    With noise ``x0``, a latent ``x1`` and a time t, uniform in [0, 1], ``x_t = (1 - t) x0 + t x1``; the network v is
    trained on ``|v(x_t, code, t) - (x1 - x0)|^2``, and sampling solves ``dx/dt = v`` from noise at 0 to 1 by the
    midpoint rule.

    Args:
        hidden: widths of the network.
        steps: of the midpoint rule; each takes two passes of the network.
    """

    def __init__(self, hidden: Sequence[int] = (256, 256), steps: int = 20) -> None:
        super().__init__()
        self.hidden, self.steps = check_sizes(hidden, steps=steps), steps

    def allocate(self, width: int, code: int) -> None:  # noqa: D102
        self.network = ConditionedMLP(width, code, self.hidden)

    def loss(self, latents: Tensor, code: Tensor, *, generator: torch.Generator | None) -> Tensor:  # noqa: D102
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        time = torch.rand(len(latents), generator=generator).to(latents)
        moved = torch.lerp(noise, latents, time[:, None])
        wrong: Tensor = self.network(moved, code, time) - (latents - noise)
        return wrong.square().mean()

    def sample(  # noqa: D102
        self, code: Tensor, *, generator: torch.Generator | None, temperature: float = 1.0
    ) -> Tensor:
        found = temperature * torch.randn(len(code), self.network.width, generator=generator).to(code)
        for step in range(self.steps):
            time = code.new_full((len(code),), step / self.steps)
            half = found + self.network(found, code, time) / (2 * self.steps)
            found = found + self.network(half, code, time + 0.5 / self.steps) / self.steps
        return found
