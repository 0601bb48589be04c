"""Rungs of a search: what share of an evaluation each takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

__all__ = ["Rungs"]


@final
@dataclass(frozen=True)
class Rungs:
    """Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) for any controller and any number of objectives.

    The architectures of a rung are evaluated at its fidelity; one in ``eta`` is promoted to the next rung, by
    constrained non-dominated rank and crowding, and the last rung is the search itself with its ``search.trials``
    evaluations at full fidelity. The controller chooses on the first rung; on later ones it is asked only where a rung
    promotes too few.

    What a fidelity is depends on the objective: the share of the training steps of :class:`nas.FromScratch`, the share
    of the scored batches of :class:`nas.WeightSharing`.

    Differs from asynchronous halving (Li et al., arXiv 1810.05934): a rung is complete before it promotes, so the
    result does not depend on which evaluation ends first.

    Args:
        fidelities: of the rungs before the last, rising, each between 0 and 1.
        eta: how many architectures there are on a rung for each on the next.

    Raises:
        ValueError: fidelities do not rise, are out of range or missing, or ``eta`` is not above 1.
    """

    fidelities: Sequence[float]
    eta: float = 3.0

    def __post_init__(self) -> None:
        given = list(self.fidelities)
        if not given or sorted(set(given)) != given or not all(0 < fidelity < 1 for fidelity in given):
            raise ValueError(f"search.rungs: fidelities must rise and lie between 0 and 1, got {given}")
        if self.eta <= 1:
            raise ValueError(f"search.rungs: eta must be above 1, got {self.eta}")
