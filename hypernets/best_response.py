"""Best-response hypernetworks: how trained weights would move with the hyperparameters, learned while training.

MacKay et al., "Self-Tuning Networks" (ICLR 2019, arXiv 1903.03088), and its centred form, Bae and Grosse, "Delta-STN"
(NeurIPS 2020, arXiv 2010.13514). Training alternates: a few steps on the training loss with perturbed hyperparameters
teach weights and response; then one step on the validation loss, with the weights at rest, moves the hyperparameters
along the response.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypernets.base import Condition, HyperNetwork
from hypernets.card import HyperCard
from hypernets.fields import Field
from hypernets.parametrization import Parametrization
from hypernets.target import Target, TensorSpec

__all__ = ["BestResponseHyperNetwork", "Hyperparameters", "Tunable"]


@final
class BestResponseHyperNetwork(HyperNetwork):
    """Weights that answer hyperparameters by gates on their rows (Self-Tuning Networks, Eq. 11).

    For a weight with rows ``o``:  ``W(x)_o = W_o + (U x)_o * V_o``, and alike for biases, with ``x`` the condition, and
    ``W`` the residual. ``centred`` puts ``x - centre`` in the place of ``x`` (Delta-STN, Eq. 6), so that the residual
    alone is what is generated at the present hyperparameters; move the centre along with :meth:`recentre`.

    The response is linear around the residual, so the encoding must be ``none``, which is the default here;
    ``head_init='zero'`` starts without any response, as Delta-STN does.

    >>> from hypernets import Real
    >>> hypernet = BestResponseHyperNetwork(Target.of(nn.Linear(3, 2)), {"hyper": Real(2)}, centred=True)
    >>> hypernet.recentre({"hyper": torch.tensor([[1.0, -1.0]])})
    >>> hypernet.deltas({"hyper": torch.tensor([[1.0, -1.0]])})["bias"].abs().max().item()
    0.0

    Args:
        target: what is generated.
        conditions: name -> field of numbers, best :class:`Real`, the unconstrained hyperparameters.
        centred: see above.
        parametrization: without encoding and with a residual.

    Raises:
        ValueError: the parametrization asks for an encoding or has no residual.
    """

    def __init__(
        self,
        target: Target,
        conditions: Mapping[str, Field],
        *,
        centred: bool = False,
        parametrization: Parametrization | None = None,
    ) -> None:
        chosen = Parametrization(encoding="none") if parametrization is None else parametrization
        if chosen.encoding != "none" or chosen.residual == "none":
            raise ValueError(
                "a best response is linear around a residual: it needs encoding='none' and a residual, got "
                f"encoding={chosen.encoding!r}, residual={chosen.residual!r}"
            )
        super().__init__(target, conditions, parametrization=chosen)
        self.centred = centred
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(self.encoder.width))
        self._keys = {spec.name: spec.name.replace(".", "/") for spec in target}
        self.gates, self.directions = nn.ParameterDict(), nn.ParameterDict()
        for spec in target:
            self.gates[self._keys[spec.name]] = nn.Parameter(0.01 * torch.randn(_rows(spec), self.encoder.width))
            start = spec.initial() if spec.deviation else torch.ones(spec.shape)
            self.directions[self._keys[spec.name]] = nn.Parameter(start)
        self.finish()

    @property
    def card(self) -> HyperCard:  # noqa: D102
        return HyperCard.of(
            type(self).__name__,
            self.conditions.values(),
            outputs="multi-head",
            architecture="gates",
            reference="MacKay et al.: Self-Tuning Networks, arXiv 1903.03088",
        )

    def response(self) -> list[nn.Parameter]:
        """Return the parameters of the response, which Delta-STN trains apart from the weights themselves."""
        return [*self.gates.parameters(), *self.directions.parameters()]

    @torch.no_grad()
    def recentre(self, condition: Condition) -> None:
        """Measure conditions from this one on.

        Raises:
            ValueError: K is not 1.
        """
        code = self._code(condition)
        if len(code) != 1:
            raise ValueError(f"a centre is one condition, got K = {len(code)}")
        self.centre.copy_(code[0])

    def emit(  # noqa: D102
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        del generator
        moved = code - self.centre if self.centred else code
        made = {}
        for spec in specs:
            gates = F.linear(moved, self.gates[self._keys[spec.name]])  # (K, rows)
            made[spec.name] = gates.view(len(code), *_gate_shape(spec)) * self.directions[self._keys[spec.name]]
        return made

    @torch.no_grad()
    def rescale(self, name: str, factor: float) -> None:  # noqa: D102
        self.gates[self._keys[name]] *= factor


def _rows(spec: TensorSpec) -> int:
    return spec.shape[0] if spec.shape else 1


def _gate_shape(spec: TensorSpec) -> tuple[int, ...]:
    return (spec.shape[0], *[1] * (len(spec.shape) - 1)) if spec.shape else ()


@final
@dataclass(frozen=True)
class Tunable:
    """One hyperparameter that is tuned.

    Attributes:
        start: first value.
        low: open lower bound.
        high: open upper bound; infinite by default.
    """

    start: float
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.start < self.high:
            raise ValueError(f"low < start < high must hold and low be finite, got {self}")

    def value(self, free: Tensor) -> Tensor:
        """Map an unconstrained number to the hyperparameter: a stretched logistic function, or softplus."""
        if self.high == math.inf:
            return self.low + F.softplus(free)
        return self.low + (self.high - self.low) * free.sigmoid()

    def free(self) -> float:
        """Return the unconstrained number that ``start`` comes from."""
        if self.high == math.inf:
            above = self.start - self.low
            return above + math.log(-math.expm1(-above))
        share = (self.start - self.low) / (self.high - self.low)
        return math.log(share) - math.log1p(-share)


@final
class Hyperparameters(nn.Module):
    """Hyperparameters with a learned scale of exploration: ``u + softplus(s) * noise`` in unconstrained space.

    >>> hyper = Hyperparameters({"dropout": Tunable(0.05, 0.0, 0.95), "decay": Tunable(1e-3)})
    >>> {name: round(value.item(), 4) for name, value in hyper.values().items()}
    {'dropout': 0.05, 'decay': 0.001}

    Args:
        tunables: name -> hyperparameter.
        scale: first standard deviation of the noise, in unconstrained space.

    Raises:
        ValueError: there is none, or the scale is not positive and finite.
    """

    def __init__(self, tunables: Mapping[str, Tunable], *, scale: float = 1.0) -> None:
        super().__init__()
        if not tunables or not 0 < scale < math.inf:
            raise ValueError(f"at least one hyperparameter and 0 < scale < inf are needed, got {tunables}, {scale=}")
        self.tunables, self.scale = dict(tunables), scale
        self.free = nn.Parameter(torch.tensor([tunable.free() for tunable in tunables.values()]))
        self.spread = nn.Parameter(torch.full((len(tunables),), scale + math.log(-math.expm1(-scale))))

    def draw(self, count: int, *, generator: torch.Generator) -> Tensor:
        """Return perturbed unconstrained values ``(count, n)``, differentiable in both parameters."""
        noise = torch.randn((count, len(self.tunables)), generator=generator).to(self.free)
        return self.free + F.softplus(self.spread) * noise

    def values(self, free: Tensor | None = None) -> dict[str, Tensor]:
        """Return name -> value, of the present hyperparameters or of unconstrained values ``(..., n)``."""
        chosen = self.free if free is None else free
        return {name: tunable.value(chosen[..., i]) for i, (name, tunable) in enumerate(self.tunables.items())}

    def entropy(self) -> Tensor:
        """Return the entropy of the perturbations, ``sum log(softplus(s) sqrt(2 pi e))``.

        A small multiple of it, subtracted from the validation loss, keeps the exploration from dying out.
        """
        return (F.softplus(self.spread) * math.sqrt(2 * math.pi * math.e)).log().sum()
