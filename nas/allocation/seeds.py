"""What a search begins with: exactly allocated bits, and what a rule has found while it trained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, final

import lightning as L
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nas.allocation.measured import Allocated, Distortion, RateDistortion
from nas.allocation.program import BudgetError
from nas.controllers.base import Problem
from nas.costs import Cost, ModelSize
from nas.objectives import prepare
from nas.seeds import Seeds
from search_spaces import Architecture, Candidate, SearchSpace
from supernets import Supernet, calibration_batches

__all__ = ["BitAllocation", "SelectedArchitecture", "SubnetworkOutputs"]

Base = Mapping[str, Candidate] | Literal["smallest", "middle", "largest"]


@final
class SubnetworkOutputs:
    """Outputs of subnetworks of a supernet on some training examples, batch norm calibrated on them for each.

    Args:
        supernet: trained; only read.
        data: its training split is read once, without augmentation.
        samples: about how many examples; whole batches are used.
    """

    def __init__(self, supernet: Supernet, data: L.LightningDataModule, *, samples: int = 512) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.supernet = supernet
        prepare(data)
        device = supernet.source.device
        (first,) = calibration_batches(data, 1)
        count = -(-samples // len(supernet.task.inputs(first)[0]))
        self.batches = [supernet.transfer_batch_to_device(b, device, 0) for b in calibration_batches(data, count)]

    def __call__(self, architecture: Architecture) -> Tensor:
        """Return ``(samples, features)``."""
        task = self.supernet.task
        module = self.supernet.calibrated(self.supernet.bind(architecture), self.batches)
        parts = []
        with torch.inference_mode():
            for batch in self.batches:
                outputs = tree_leaves(task.counted(module(*task.inputs(batch)), batch))[0]
                parts.append(outputs.flatten(0, -2).cpu())
        return torch.cat(parts)


def base_of(space: SearchSpace, base: Base) -> Architecture:
    """Return the architecture that is named or written down; what it says of bits does not matter.

    Raises:
        InvalidArchitectureError: it is none of the space.
    """
    if isinstance(base, str):
        return {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}[base]()
    return space.architecture({**space.largest(), **base})


@final
class BitAllocation(Seeds):
    """The front of exactly allocated bits for one network, between the cheapest bits and the best within the limits.

    The distortion of every pair of bits is measured one layer at a time on training examples with the weights of the
    supernet, an integer program allocates, and its answers are measured as a whole (:class:`RateDistortion`). Limits of
    the search on any of ``costs`` are budgets. It takes ``layers x pairs x (1 + rounds)`` passes over the samples.

    Args:
        costs: what budgets are for; the first is swept.
        architecture: choice -> value, the rest as in the largest; or ``"smallest"``, ``"middle"`` or ``"largest"``.
        count: allocations at most.
        samples: training examples.
        distortion: of the outputs: ``"mse"``, ``"kl"`` or ``"worst"``.
        rounds: tables around each allocation that mend it.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        costs: Sequence[Callable[[SearchSpace], Cost]] = (ModelSize,),
        *,
        architecture: Base = "largest",
        count: int = 5,
        samples: int = 512,
        distortion: Distortion = "mse",
        rounds: int = 1,
    ) -> None:
        if not costs or count < 1 or samples < 1 or rounds < 0:
            raise ValueError(
                "search.seeds: BitAllocation needs one or more costs, count >= 1, samples >= 1 and rounds >= 0, got "
                f"{len(costs)} costs, {count=}, {samples=}, {rounds=}"
            )
        if distortion not in ("mse", "kl", "worst"):
            raise ValueError(f"search.seeds: distortion must be 'mse', 'kl' or 'worst', got {distortion!r}")
        self.costs = tuple(costs)
        self.architecture = architecture
        self.count = count
        self.samples = samples
        self.distortion: Distortion = distortion
        self.rounds = rounds

    def __call__(self, problem: Problem, supernet: Supernet, data: L.LightningDataModule) -> Sequence[Architecture]:
        """Return the architectures, the best first.

        Raises:
            BudgetError: no bits keep the limits.
            ValueError: the space has no bits.
        """
        found = self.allocated(problem, supernet, data)
        return [allocated.architecture for allocated in reversed(found)]

    def allocated(self, problem: Problem, supernet: Supernet, data: L.LightningDataModule) -> list[Allocated]:
        """Return the allocations, cheapest first."""
        space = problem.space
        costs = [make(space) for make in self.costs]
        base = base_of(space, self.architecture)
        outputs = SubnetworkOutputs(supernet, data, samples=self.samples)
        measured = RateDistortion(space, base, outputs, costs, distortion=self.distortion)
        known = {cost.name for cost in costs}
        budgets = {
            limit.metric: limit.bound for limit in problem.limits if limit.metric in known and limit.kind == "max"
        }
        try:
            return measured.front(costs[0].name, budgets, count=self.count, rounds=self.rounds)
        except BudgetError as error:
            raise BudgetError(
                f"search.seeds: BitAllocation: {error}; loosen search.limits, or name a smaller network as architecture"
            ) from error


@final
class SelectedArchitecture(Seeds):
    """The architecture that the supernet's rule has found while it trained, evaluated again like any other."""

    def __call__(self, problem: Problem, supernet: Supernet, data: L.LightningDataModule) -> Sequence[Architecture]:
        """Return one architecture.

        Raises:
            ValueError: the rule has found none.
        """
        del data
        found = supernet.rule.selected()
        if found is None:
            raise ValueError(
                f"search.seeds: SelectedArchitecture needs a rule that selects one, and {type(supernet.rule).__name__} "
                "does not; train with SBSRule or DifferentiableRule, or leave the seeds out"
            )
        return [problem.space.architecture(found)]
