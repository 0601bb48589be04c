"""Differentiable search: architecture parameters that learn beside the weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from search_spaces import Architecture, MixedOp, RelaxedArchitecture, SearchSpace, derive_seed
from supernets.calibration import UncalibratedError
from supernets.expected import Expectation, ExpectedCost
from supernets.rules import SamplingRule, Score, Slot
from supernets.samplers import AlphaSampler, DrNASSampler
from supernets.weights import WeightSource

__all__ = ["DifferentiableRule"]


@final
class DifferentiableRule(nn.Module, SamplingRule):
    """Single-stage search by gradients with entangled weights (TangleNAS, arXiv 2312.10440).

    Each choice has parameters alpha, one for each candidate. Every step draws weights of all candidates from them and
    runs the superposition of all architectures, one pass of the largest build (:class:`supernets.Relaxation`). The
    largest alphas are the architecture that is ``selected``: ``nas export --architecture selected``.

    ``"bilevel"`` (first order, arXiv 1806.09055, Eq. 3-4 with xi = 0): before each step of the weights, alpha takes one
    on a batch of the validation split, which the weights never learn from. The validation score of the selected
    architecture is therefore optimistic; the test split has the last word. ``"single"``: weights and alpha take one
    step each on the same training batch.

    Without a cost, large candidates win nearly always, because they fit better. With ``cost`` alpha minimises
    ``loss + cost_weight * E[cost] / cost(largest)``. With ``cost_target`` too, in the cost's own unit, it minimises
    ``loss + cost_weight * E[cost] / cost_target`` while the architecture that it selects at present costs more than the
    target, and the loss alone while it does not. (A bound on the expectation would not do: while alpha is undecided it
    is met by selecting the smallest candidates of all.) The expectation is over the sampler and exact
    (:class:`supernets.expected.Expectation`).

    Args:
        sampler: how weights are drawn from alpha; default DrNAS.
        schedule: ``"bilevel"`` or ``"single"``.
        lr: learning rate of alpha (Adam, betas 0.5 and 0.999).
        weight_decay: of alpha.
        warmup: steps in which the weights learn alone.
        cost: what is to be small, e.g. ``supernets.ExpectedParameters`` or ``nas.ExpectedMACs``.
        cost_weight: weight of the cost.
        cost_target: cost of the selected architecture above which it counts; ``None``: it always counts.
        held_out: rows of a validation batch in the bilevel schedule.

    Attributes:
        alpha: choice -> parameters ``(candidates,)``, 0.001 times normal numbers at first; dots of names are slashes.

    Raises:
        ValueError: an argument is out of range, or contradicts another.
    """

    def __init__(
        self,
        sampler: AlphaSampler | None = None,
        schedule: Literal["bilevel", "single"] = "bilevel",
        *,
        lr: float = 0.01,
        weight_decay: float = 1e-3,
        warmup: int = 0,
        cost: ExpectedCost | None = None,
        cost_weight: float = 0.0,
        cost_target: float | None = None,
        held_out: int = 64,
    ) -> None:
        super().__init__()
        if schedule not in ("bilevel", "single"):
            raise ValueError(f"DifferentiableRule.schedule must be 'bilevel' or 'single', got {schedule!r}")
        if lr <= 0 or weight_decay < 0 or warmup < 0 or cost_weight < 0 or held_out < 2:
            raise ValueError(
                "DifferentiableRule needs lr > 0, weight_decay >= 0, warmup >= 0, cost_weight >= 0 and held_out >= 2, "
                f"got {lr=}, {weight_decay=}, {warmup=}, {cost_weight=}, {held_out=}"
            )
        if (cost is None) != (cost_weight == 0) or (cost_target is not None and (cost is None or cost_target <= 0)):
            raise ValueError(
                "DifferentiableRule.cost and a cost_weight above 0 belong together; cost_target > 0 needs both, got "
                f"cost={type(cost).__name__}, {cost_weight=}, {cost_target=}"
            )
        self.sampler = DrNASSampler() if sampler is None else sampler
        self.schedule = schedule
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.cost = cost
        self.cost_weight = cost_weight
        self.cost_target = cost_target
        self.held_out = held_out
        self.alpha = nn.ParameterDict()
        self._space: SearchSpace | None = None
        self._expectation: Expectation | None = None
        self._largest_cost = math.nan

    # Before training -------------------------------------------------------------------------------------------------

    def check(self, space: SearchSpace, source: WeightSource) -> None:
        """Refuse spaces that no single pass can hold, and sources of single architectures."""
        if not space.choices:
            raise ValueError("DifferentiableRule needs a space with choices, and this one has none; use UniformRule")
        even = RelaxedArchitecture({c.name: torch.full((c.size,), 1 / c.size) for c in space.choices})
        with torch.no_grad():
            try:
                source.relaxed(even)
            except UncalibratedError:  # scales that begin with the first batch
                pass
            except TypeError as error:
                raise ValueError(
                    f"DifferentiableRule needs relaxed weights, which {type(source).__name__} does not give: {error}"
                ) from error
        operations = source.relaxation.operations
        if operations and self.sampler.learns:
            _require_scale_free(space)
        if self.cost is not None and source.quantizes:
            raise ValueError(
                "DifferentiableRule.cost knows the sizes of tensors, not their bits; leave cost out, or search bits "
                "with SBSRule"
            )
        if self.cost is not None and operations:
            raise ValueError(
                f"DifferentiableRule.cost knows the sizes of tensors, and {operations[0]!r} chooses among operations "
                "with tensors of their own; leave cost out, use nas search with a limit for that"
            )

    def prepare(self, space: SearchSpace, source: WeightSource, *, seed: int) -> None:
        """Make alpha for ``space``."""
        self._space = space
        generator = torch.Generator().manual_seed(derive_seed(seed, "alpha"))
        self.alpha = nn.ParameterDict(
            {_key(c.name): nn.Parameter(1e-3 * torch.randn(c.size, generator=generator)) for c in space.choices}
        )
        if self.cost is not None:
            self._expectation = Expectation(space, self.cost.terms(source.relaxation))
            self._largest_cost = float(self._expectation(space.relax(space.largest())))
            smallest = float(self._expectation(space.relax(space.smallest())))
            if self.cost_target is not None and self.cost_target < smallest:
                raise ValueError(
                    f"DifferentiableRule.cost_target must be at least the {self.cost.name} of the smallest network, "
                    f"{smallest:.6g} (the largest has {self._largest_cost:.6g}), got {self.cost_target}; give it in "
                    "the unit of the cost, not as a share"
                )

    def check_length(self, steps: float) -> None:
        """Refuse a training that ends before alpha learns anything."""
        if self.sampler.learns and self.warmup >= steps:
            raise ValueError(
                f"DifferentiableRule.warmup must end before the training of {steps:.0f} steps does, got {self.warmup}; "
                "set warmup lower, or train longer"
            )

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Return the optimiser of alpha, unless the sampler learns none."""
        if not self.sampler.learns:
            return None
        return torch.optim.Adam(self.parameters(), lr=self.lr, betas=(0.5, 0.999), weight_decay=self.weight_decay)

    # Training --------------------------------------------------------------------------------------------------------

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return one draw; alpha gets a gradient from it in the single-level schedule only."""
        del space, score
        relaxed = self.draw(seed=derive_seed(seed, "weights"), step=step)
        if self.schedule == "bilevel" or step < self.warmup:
            relaxed = RelaxedArchitecture({name: weights.detach() for name, weights in relaxed.items()})
        return [Slot(relaxed, "labels")]

    def held_out_rows(self, step: int) -> int:
        """Return the rows of the held-out batch from which alpha learns in ``step``, 0 for none."""
        return self.held_out if self.schedule == "bilevel" and self._learns(step) else 0

    def held_out_slot(self, *, seed: int, step: int) -> Slot:
        """Return the draw for the held-out batch."""
        return Slot(self.draw(seed=derive_seed(seed, "alpha"), step=step), "labels")

    def loss(self, step: int) -> Tensor | None:
        """Return what alpha minimises beside the loss of the task: the sampler's penalty and the cost."""
        if not self._learns(step):
            return None
        total = sum((self.sampler.penalty(alpha) for alpha in self._by_size().values()), start=torch.zeros(()))
        if self._expectation is not None:
            scale = self._largest_cost if self.cost_target is None else self.cost_target
            if self.cost_target is None or self._selected_cost() > self.cost_target:
                total = total + (self.cost_weight / scale * self._expectation(self.mean())).to(total.dtype)
        return total

    def _selected_cost(self) -> float:
        selected, space = self.selected(), self._prepared()
        assert selected is not None  # noqa: S101 - asked only where alpha is learned
        assert self._expectation is not None  # noqa: S101 - asked only where there is a cost
        return float(self._expectation(space.relax(selected)))

    def _learns(self, step: int) -> bool:
        return self.sampler.learns and step >= self.warmup

    # Alpha -----------------------------------------------------------------------------------------------------------

    def draw(self, *, seed: int, step: int) -> RelaxedArchitecture:
        """Return weights of all candidates, differentiable in alpha; the same for equal arguments.

        Args:
            seed: of the run.
            step: of the training.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "draw", step))
        return self._rows(
            {k: self.sampler.sample(alpha, step=step, generator=generator) for k, alpha in self._by_size().items()}
        )

    def mean(self) -> RelaxedArchitecture:
        """Return the expectation of :meth:`draw`."""
        return self._rows({k: self.sampler.mean(alpha) for k, alpha in self._by_size().items()})

    def _prepared(self) -> SearchSpace:
        if self._space is None:
            raise ValueError("this rule has no alpha yet; give it to a Supernet, which prepares it for its space")
        return self._space

    def _by_size(self) -> dict[int, Tensor]:
        """Candidates -> ``(choices, candidates)`` on the CPU: choices of equal size are drawn together."""
        groups: dict[int, list[Tensor]] = {}
        for choice in self._prepared().choices:
            groups.setdefault(choice.size, []).append(self.alpha[_key(choice.name)])
        return {size: torch.stack(rows).cpu() for size, rows in groups.items()}

    def _rows(self, drawn: Mapping[int, Tensor]) -> RelaxedArchitecture:
        choices = self._prepared().choices
        device = next(iter(self.alpha.values())).device
        rows = {size: iter(weights.to(device).unbind()) for size, weights in drawn.items()}
        return RelaxedArchitecture({choice.name: next(rows[choice.size]) for choice in choices})

    def selected(self) -> Architecture | None:
        """Return the architecture of the largest alphas, or ``None`` where the sampler learns none.

        Conditional choices that it makes inactive are dropped.
        """
        if not self.sampler.learns:
            return None
        space = self._prepared()
        return space.architecture({c.name: c.candidates[int(self.alpha[_key(c.name)].argmax())] for c in space.choices})

    def learned(self) -> Mapping[str, list[float]]:
        """Return alpha by choice."""
        return {c.name: self.alpha[_key(c.name)].tolist() for c in self._prepared().choices}

    def restore(self, learned: Mapping[str, list[float]]) -> None:
        """Take over alpha by choice."""
        wanted = {choice.name: choice.size for choice in self._prepared().choices}
        given = {name: len(values) for name, values in learned.items()}
        if wanted != given:
            raise ValueError(f"alpha must have the candidates {wanted}, got {given}; use the space it was learned on")
        with torch.no_grad():
            for name, values in learned.items():
                self.alpha[_key(name)].copy_(torch.tensor(values))

    def diagnostics(self) -> Mapping[str, float]:
        """Return entropies of mean weights as a share of the largest possible, selected positions, expected cost."""
        if not self.sampler.learns:
            return {}
        found: dict[str, float] = {}
        with torch.no_grad():
            mean = self.mean()
            for choice in self._prepared().choices:
                if choice.size > 1:
                    entropy = torch.special.entr(mean[choice.name]).sum() / math.log(choice.size)
                    found[f"entropy/{choice.name}"] = float(entropy)
                    found[f"selected/{choice.name}"] = float(self.alpha[_key(choice.name)].argmax())
            if self.cost is not None and self._expectation is not None:
                found[f"expected/{self.cost.name}"] = float(self._expectation(mean))
                found[f"selected/{self.cost.name}"] = self._selected_cost()
        return found


def _require_scale_free(space: SearchSpace) -> None:
    """Refuse operations whose norms have scales: they would undo the weight of their operation."""
    with torch.device("meta"):
        operations = {n: m for n, m in space.superset().named_modules() if isinstance(m, MixedOp)}
    scaled = [
        name
        for name, operation in operations.items()
        if any(isinstance(layer, _NormBase) and layer.affine for layer in operation.modules())
    ]
    if scaled:
        raise ValueError(
            f"DifferentiableRule needs operations whose norms have no scales, which would undo the weight of their "
            f"operation (as in {scaled[0]!r}); set affine: false in the space {type(space).__name__}"
        )


def _key(choice: str) -> str:
    return choice.replace(".", "/")
