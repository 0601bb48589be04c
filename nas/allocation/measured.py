"""The table of a trained network: one site at a time gets other bits, and the change of the output is measured."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from nas.allocation.program import Allocation, RateDistortionTable, allocate, front
from nas.costs import Cost, CostMeter
from search_spaces import Architecture, Candidate, SearchSpace

__all__ = ["Allocated", "Distortion", "RateDistortion", "distortion_between", "sites_of"]

Distortion = Literal["mse", "kl", "worst"]


def distortion_between(reference: Tensor, outputs: Tensor, kind: Distortion) -> float:
    """Return how far ``outputs`` are from ``reference``, both ``(samples, features)``.

    - ``"mse"``: ``mean_n mean_i (y_ni - y'_ni)^2``, of logits;
    - ``"kl"``: ``mean_n sum_i p_ni (log p_ni - log p'_ni)`` of the softmax of logits;
    - ``"worst"``: ``max_n mean_i (y_ni - y'_ni)^2``, the sample that suffers most.

    Raises:
        ValueError: shapes differ, or an output is not finite.
    """
    if reference.shape != outputs.shape:
        raise ValueError(f"outputs must be as large as the reference, {tuple(reference.shape)}, got {outputs.shape}")
    reference, outputs = reference.double(), outputs.double()
    if kind == "kl":
        found = torch.nn.functional.kl_div(
            outputs.log_softmax(-1), reference.log_softmax(-1), reduction="batchmean", log_target=True
        )
    else:
        samples = (reference - outputs).square().mean(-1)
        found = samples.max() if kind == "worst" else samples.mean()
    value = float(found)
    if not math.isfinite(value):
        raise ValueError("a network with these bits gives outputs that are no numbers; its distortion is undefined")
    return value


def sites_of(space: SearchSpace, architecture: Architecture) -> tuple[tuple[str, ...], ...]:
    """Return the choices of bits that ``architecture`` has, those of one module or group together.

    These are the choices called ``MODULE.weight_bits``, ``MODULE.input_bits`` and whatever else ends in ``bits``; those
    called ``MODULE.bits.SITE`` are sites by themselves.

    Raises:
        ValueError: the architecture has none.
    """
    groups: dict[str, list[str]] = {}
    for choice in space.choices:
        if choice.size == 1 or choice.name not in architecture:
            continue
        owner, _, leaf = choice.name.rpartition(".")
        if owner.endswith(".bits"):
            groups[choice.name] = [choice.name]
        elif leaf.endswith("bits"):
            groups.setdefault(owner, []).append(choice.name)
    if not groups:
        raise ValueError(
            f"there are no bits to allocate: no choice of {type(space).__name__} with two candidates or more ends in "
            "'bits'; put the space into search_spaces.QuantizedSpace"
        )
    return tuple(tuple(names) for names in groups.values())


@dataclass(frozen=True)
class Allocated:
    """An architecture whose bits were allocated.

    Attributes:
        architecture: of the space.
        predicted: distortion by the table, a sum over sites.
        measured: distortion of the whole network.
        costs: name -> value, measured for the whole network.
    """

    architecture: Architecture
    predicted: float
    measured: float
    costs: Mapping[str, float]


@final
class RateDistortion:
    """Distortion and costs of the bits of one network, measured one site at a time, and allocations from them.

    A table is measured around a present choice of bits: option ``o`` of site ``l`` has the distortion
    ``D(present with o at l) - D(present) + D(present) / L``, so that their sum is exact at the present choice and to
    first order near it. Around the reference, where ``D = 0``, this is the one-at-a-time distortion of Xu et al.
    (ICCV 2023). An allocation is measured as a whole, and tables around it follow: the best of all that were measured
    is the answer.

    Every measurement is remembered by architecture, so tables and rounds share them.

    Args:
        space: with choices of bits, see :func:`sites_of`.
        architecture: all that is not bits is kept; the bits are its highest unless ``reference`` is given.
        outputs: architecture -> ``(samples, features)``, always for the same samples.
        costs: what budgets are for. A table holds their differences, one site at a time, which is exact for costs that
            are sums over modules, as bit operations and bytes are.
        distortion: see :func:`distortion_between`.
        reference: ``(samples, features)`` of the network in full precision; default those of the highest bits.

    Raises:
        ValueError: the architecture has no bits to allocate.
    """

    def __init__(
        self,
        space: SearchSpace,
        architecture: Architecture,
        outputs: Callable[[Architecture], Tensor],
        costs: Sequence[Cost],
        *,
        distortion: Distortion = "mse",
        reference: Tensor | None = None,
    ) -> None:
        self.space = space
        self.sites = sites_of(space, architecture)
        self.options = tuple(
            tuple(itertools.product(*(space.choice(name).candidates for name in site))) for site in self.sites
        )
        self.outputs = outputs
        self.distortion = distortion
        self.meter = CostMeter(space, costs)
        self._base = dict(architecture)
        self.top = self.architecture([len(options) - 1 for options in self.options])
        self.reference = outputs(self.top) if reference is None else reference
        self._measured: dict[Architecture, float] = {} if reference is not None else {self.top: 0.0}

    def architecture(self, options: Sequence[int]) -> Architecture:
        """Return the architecture with an option at every site."""
        values: dict[str, Candidate] = dict(self._base)
        for site, candidates, option in zip(self.sites, self.options, options, strict=True):
            values.update(zip(site, candidates[option], strict=True))
        return self.space.architecture(values)

    def measure(self, architecture: Architecture) -> float:
        """Return the distortion of a whole network."""
        if architecture not in self._measured:
            outputs = self.outputs(architecture)
            self._measured[architecture] = distortion_between(self.reference, outputs, self.distortion)
        return self._measured[architecture]

    def table(self, around: Sequence[int] | None = None) -> RateDistortionTable:
        """Measure every option of every site alone, the others being at ``around``, by default their highest bits."""
        present = [len(options) - 1 for options in self.options] if around is None else list(around)
        centre = self.architecture(present)
        level = self.measure(centre)
        return self._table(present, lambda alone: self.measure(alone) - level + level / len(self.sites))

    def require(self, budgets: Mapping[str, float]) -> None:
        """Check that some bits keep ``budgets``, which needs no measurement of a distortion.

        Raises:
            BudgetError: none do; the message names the least that can be reached.
            ValueError: a budget is for none of the costs.
        """
        if budgets:
            allocate(self._table([len(options) - 1 for options in self.options], lambda _: 0.0), budgets)

    def _table(self, present: Sequence[int], distort: Callable[[Architecture], float]) -> RateDistortionTable:
        base = self.meter(self.architecture(present))
        distortion: list[list[float]] = []
        costs: dict[str, list[list[float]]] = {name: [] for name in base}
        for site, options in enumerate(self.options):
            alone = [self.architecture([*present[:site], o, *present[site + 1 :]]) for o in range(len(options))]
            distortion.append([distort(a) for a in alone])
            for name, rows in costs.items():
                rows.append([self.meter(a)[name] - base[name] for a in alone])
        return RateDistortionTable(
            tuple(np.array(row) for row in distortion),
            {name: tuple(np.array(row) for row in rows) for name, rows in costs.items()},
            fixed=dict(base),
        )

    def allocate(self, budgets: Mapping[str, float], *, rounds: int = 1) -> Allocated:
        """Return the architecture of least measured distortion that was found within ``budgets``.

        Args:
            budgets: name of a cost -> inclusive bound.
            rounds: tables that are measured around the best allocation so far, fewer once it stays the same.

        Raises:
            BudgetError: no bits keep the budgets.
        """
        self.require(budgets)
        table = self.table()
        return self._refined(table, allocate(table, budgets), budgets, rounds)

    def front(
        self, cost: str, budgets: Mapping[str, float] | None = None, *, count: int = 5, rounds: int = 1
    ) -> list[Allocated]:
        """Return allocations over the reachable range of one cost, cheapest first; see :func:`nas.allocation.front`.

        Each is refined within the cost of its first allocation.

        Raises:
            BudgetError: no bits keep the budgets.
        """
        self.require(budgets or {})
        table = self.table()
        found = {
            allocated.architecture: allocated
            for first in front(table, cost, budgets, count=count)
            for allocated in [
                self._refined(table, first, {**(budgets or {}), cost: first.costs[cost]}, rounds),
            ]
        }
        return sorted(found.values(), key=lambda allocated: allocated.costs[cost])

    def _refined(
        self, table: RateDistortionTable, first: Allocation, budgets: Mapping[str, float], rounds: int
    ) -> Allocated:
        best, seen = first, {first.options}
        for _ in range(rounds):
            step = allocate(self.table(around=best.options), budgets)
            if step.options in seen:
                break
            seen.add(step.options)
            if self._whole(step) < self._whole(best):
                best = step
        architecture = self.architecture(best.options)
        predicted = table.selection(best.options).distortion
        return Allocated(architecture, predicted, self._whole(best), self.meter(architecture))

    def _whole(self, allocation: Allocation) -> float:
        return self.measure(self.architecture(allocation.options))
