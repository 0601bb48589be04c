"""Attentive sampling: train what is best, or worst, for its cost."""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import nn

from search_spaces import Architecture, ArchitectureCost, Candidate, SearchSpace, cost_of, derive_seed
from supernets.rules import SamplingRule, Score, Slot
from supernets.weights import WeightSource

__all__ = ["AttentiveRule", "CostTable"]

_TRIES = 100
_REMEMBERED = 8192


@final
class _Parameters(ArchitectureCost):
    """The number of parameters, tied ones counted once."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def __call__(self, architecture: Architecture, model: nn.Module) -> float:
        del architecture
        return float(sum(parameter.numel() for parameter in model.parameters()))


@final
class CostTable:
    """How often random architectures cost how much, and which candidates they then have.

    Buckets are equal intervals between the lowest and the highest cost that was drawn. Within a bucket every choice has
    its own distribution, that of the architectures drawn there (Wang et al., arXiv 2011.09011, section 3.2: the joint
    distribution of an architecture given its cost is approximated by the product over choices).

    Attributes:
        shares: ``(buckets,)``, the share of random architectures in each.
        marginals: for each bucket, choice -> counts ``(candidates,)`` among the architectures that have it; ones where
            none has.

    Args:
        space: the search space.
        cost: of an architecture.
        buckets: number of intervals.
        draws: random architectures.
        seed: of the draws.
    """

    def __init__(
        self, space: SearchSpace, cost: Callable[[Architecture], float], *, buckets: int, draws: int, seed: int
    ) -> None:
        self.space = space
        self.cost = functools.lru_cache(maxsize=_REMEMBERED)(cost)
        self.buckets = buckets
        generator = torch.Generator().manual_seed(seed)
        drawn = [space.sample(generator) for _ in range(draws)]
        costs = [self.cost(architecture) for architecture in drawn]
        self.low, self.high = min(costs), max(costs)
        places = torch.tensor([self.bucket(cost) for cost in costs])
        self.shares = torch.bincount(places, minlength=buckets) / draws
        self.marginals: list[dict[str, torch.Tensor]] = []
        for bucket in range(buckets):
            members = [drawn[i] for i in torch.nonzero(places == bucket).flatten().tolist()]
            counts = {choice.name: torch.zeros(choice.size) for choice in space.choices}
            for architecture in members:
                for name, value in architecture.items():
                    counts[name][space.choice(name).index(value)] += 1
            self.marginals.append({name: c if c.sum() else torch.ones_like(c) for name, c in counts.items()})

    def bucket(self, cost: float) -> int:
        """Return the bucket of a cost; outside 0 .. buckets - 1 where nothing so cheap or so dear was drawn."""
        if cost == self.high:
            return self.buckets - 1
        return int((cost - self.low) // ((self.high - self.low) / self.buckets)) if self.high > self.low else -1

    def target(self, generator: torch.Generator) -> int:
        """Draw a bucket as often as random architectures fall into it."""
        return int(torch.multinomial(self.shares, 1, generator=generator))

    def draw(self, bucket: int, generator: torch.Generator) -> Architecture:
        """Draw choices from the marginals of ``bucket`` until the cost lies in it, at most a hundred times."""
        for _ in range(_TRIES):
            values: dict[str, Candidate] = {
                choice.name: choice.candidates[
                    int(torch.multinomial(self.marginals[bucket][choice.name], 1, generator=generator))
                ]
                for choice in self.space.choices
            }
            architecture = self.space.architecture(values)
            if self.bucket(self.cost(architecture)) == bucket:
                break
        return architecture


@final
class AttentiveRule(SamplingRule):
    """Attentive sampling (AttentiveNAS, Wang et al., arXiv 2011.09011): best-up or worst-up at every cost.

    Each step trains the largest architecture on labels, then the smallest and ``n_attentive`` attentive ones on its
    outputs. For each of those a bucket of cost is drawn as often as random architectures fall into it, then
    ``candidates`` architectures of that cost; the one with the lowest loss on the present batch is trained (``"best"``,
    which pulls up the Pareto front), or the one with the highest (``"worst"``, which pulls up the rest).

    A step takes ``n_attentive * candidates`` more forward passes than the sandwich rule, without gradients. The table
    of costs is made once, in the first step.

    Differs from the paper: buckets are a number of equal intervals, not steps of 25 million FLOPs.

    Args:
        target: which candidate is trained.
        candidates: architectures to choose from; 1 is uniform sampling over costs as they come.
        n_attentive: attentive architectures per step.
        buckets: intervals of cost.
        draws: random architectures from which the table is made.
        cost: by which architectures are compared, e.g. ``nas.MACs``; ``None`` counts parameters.
        distillation: ``False`` trains every architecture on labels instead.

    Raises:
        ValueError: a number is out of range or the target is unknown.
    """

    def __init__(
        self,
        target: Literal["best", "worst"] = "best",
        *,
        candidates: int = 3,
        n_attentive: int = 2,
        buckets: int = 16,
        draws: int = 1000,
        cost: Callable[[SearchSpace], ArchitectureCost] | None = None,
        distillation: bool = True,
    ) -> None:
        if target not in ("best", "worst"):
            raise ValueError(f"AttentiveRule.target must be 'best' or 'worst', got {target!r}")
        if min(candidates, n_attentive, buckets, draws) < 1:
            raise ValueError(
                "AttentiveRule needs candidates, n_attentive, buckets and draws >= 1, got "
                f"{candidates=}, {n_attentive=}, {buckets=}, {draws=}"
            )
        self.target: Literal["best", "worst"] = target
        self.candidates = candidates
        self.n_attentive = n_attentive
        self.buckets = buckets
        self.draws = draws
        self.cost = cost
        self.distillation = distillation
        self._tables: dict[tuple[str, int], CostTable] = {}

    def _price(self, space: SearchSpace) -> Callable[[Architecture], float]:
        return cost_of(space, self.cost or _Parameters)

    def table(self, space: SearchSpace, seed: int) -> CostTable:
        """Return the table of a space, made when it is first asked for."""
        key = space.digest, seed
        if key not in self._tables:
            self._tables[key] = CostTable(
                space,
                self._price(space),
                buckets=self.buckets,
                draws=self.draws,
                seed=derive_seed(seed, "attentive table"),
            )
        return self._tables[key]

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return the largest, the smallest and the attentive ones."""
        role: Literal["labels", "student"] = "student" if self.distillation else "labels"
        table, choose = self.table(space, seed), min if self.target == "best" else max
        slots = [Slot(space.largest(), "teacher" if self.distillation else "labels"), Slot(space.smallest(), role)]
        for slot in range(self.n_attentive):
            generator = torch.Generator().manual_seed(derive_seed(seed, "slot", step, slot))
            bucket = table.target(generator)
            drawn = list(dict.fromkeys(table.draw(bucket, generator) for _ in range(self.candidates)))
            slots.append(Slot(drawn[0] if len(drawn) == 1 else choose(drawn, key=score), role))
        return slots

    def check(self, space: SearchSpace, source: WeightSource) -> None:
        """Refuse a cost that does not tell architectures apart."""
        del source
        cost = self._price(space)
        low, high = cost(space.smallest()), cost(space.largest())
        if not low < high < float("inf"):
            raise ValueError(
                f"AttentiveRule.cost must be finite and grow from the smallest to the largest architecture, got {low} "
                f"and {high}; use another cost, e.g. nas.MACs, or UniformRule"
            )
