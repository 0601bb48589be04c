"""Search of the operations and the bits of graph networks at once, by gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from search_spaces import Architecture, GraphSpace, RelaxedArchitecture, SearchSpace
from supernets.differentiable import DifferentiableRule
from supernets.expected import Expectation
from supernets.expected_bits import ExpectedBufferBytes, ExpectedWeightBytes
from supernets.rules import SamplingRule, Score, Slot
from supernets.samplers import AlphaSampler, GumbelSampler
from supernets.weights import WeightSource

__all__ = ["LPGNASRule"]

_WHOLE = 2**31  # rows of a held-out batch: a graph is never split
_BARRED = -30.0


@final
class LPGNASRule(nn.Module, SamplingRule):
    """Low-precision graph NAS: operations, sizes and bits of every site learn together (arXiv 2009.09232).

    Every step runs the network of all candidates once. The weights learn from the training nodes; before each step of
    theirs the parameters alpha of the choices take one on the validation nodes and
    ``loss + model_weight E[weight bytes] / max + buffer_weight E[buffer bytes] / max``, with the maxima those of the
    largest architecture. Validation scores of the selected architecture are therefore optimistic; the test split has
    the last word. Three phases: the weights alone; operations and sizes as well; bits as well, which until then are
    the largest candidates.

    Before bits learn, they are tried: each candidate of each site alone, in the architecture that is selected by then,
    with hard rounding. One that raises the training loss by more than ``tolerance`` is barred from the search. A
    mixture of roundings hides such a collapse from the gradient: without the table (``tolerance: null``) the search
    takes few bits where they ruin the network, see ``nas.Discretised``.

    Differs from the paper, of which only the abstract could be read: sampler, phases and table are ours.

    Args:
        steps: of the training, over which the sampler is annealed. A longer training goes on as it was in the last of
            them, which is said before it begins; a shorter one, which would end before the sampler is cold, is refused.
        sampler: how weights are drawn from alpha; default :class:`GumbelSampler` over ``steps``.
        lr: learning rate of alpha.
        warmup: steps in which the weights learn alone; default a fifth of ``steps``.
        bits_warmup: steps before bits learn; default two fifths.
        model_weight: of the expected bytes of weights.
        buffer_weight: of the expected bytes of activations.
        tolerance: nats that one site alone may add to the loss; ``None``: no table.

    Attributes:
        table: (site, candidate) -> nats that it adds, once it is measured.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        steps: int,
        *,
        sampler: AlphaSampler | None = None,
        lr: float = 0.05,
        warmup: int | None = None,
        bits_warmup: int | None = None,
        model_weight: float = 0.1,
        buffer_weight: float = 0.1,
        tolerance: float | None = 0.1,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.sampler = GumbelSampler(steps) if sampler is None else sampler
        self.lr = lr
        self.warmup = steps // 5 if warmup is None else warmup
        self.bits_warmup = 2 * steps // 5 if bits_warmup is None else bits_warmup
        self.model_weight = model_weight
        self.buffer_weight = buffer_weight
        self.tolerance = tolerance
        if not 0 <= self.warmup <= self.bits_warmup < steps:
            raise ValueError(
                "LPGNASRule needs 0 <= warmup <= bits_warmup < steps, got "
                f"warmup={self.warmup}, bits_warmup={self.bits_warmup}, {steps=}"
            )
        if min(model_weight, buffer_weight, 0.0 if tolerance is None else tolerance) < 0:
            raise ValueError(
                "LPGNASRule.model_weight, buffer_weight and tolerance must not be negative, got "
                f"{model_weight=}, {buffer_weight=}, {tolerance=}"
            )
        self.search = DifferentiableRule(self.sampler, lr=lr, weight_decay=0.0, warmup=self.warmup, held_out=_WHOLE)
        self.table: dict[tuple[str, int], float] = {}
        self._space: SearchSpace | None = None
        self._costs: dict[str, tuple[float, float, Expectation]] = {}

    def check(self, space: SearchSpace, source: WeightSource) -> None:
        """Refuse spaces without graphs, samplers that learn nothing, and sources of single architectures."""
        if not isinstance(space, GraphSpace):
            raise ValueError(f"LPGNASRule needs a GraphSpace, got {type(space).__name__}; use DifferentiableRule")
        if not self.sampler.learns:
            raise ValueError(
                f"LPGNASRule.sampler must learn, {type(self.sampler).__name__} does not; use GumbelSampler"
            )
        self.search.check(space, source)

    def prepare(self, space: SearchSpace, source: WeightSource, *, seed: int) -> None:
        """Make alpha and the expected bytes."""
        self._space = space
        self.search.prepare(space, source, seed=seed)
        for cost, weight in ((ExpectedWeightBytes(), self.model_weight), (ExpectedBufferBytes(), self.buffer_weight)):
            expectation = Expectation(space, cost.terms(source.relaxation))
            self._costs[cost.name] = weight, float(expectation(space.relax(space.largest()))), expectation

    def check_length(self, steps: float) -> None:
        """Refuse a training that ends before the bits learn or the sampler is cold; warn of one that is longer."""
        if self.bits_warmup >= steps:
            raise ValueError(
                f"LPGNASRule.bits_warmup must end before the training of {steps:.0f} steps does, got "
                f"{self.bits_warmup}; set steps to the length of the training"
            )
        annealed = {self.steps: "steps"}
        if self.sampler.steps is not None:
            annealed.setdefault(self.sampler.steps, "sampler.steps")
        for given, field in sorted(annealed.items(), reverse=True):
            if given > steps:
                raise ValueError(
                    f"LPGNASRule.{field} must be at most the {steps:.0f} steps of the training, got {given}; what is "
                    "found would come from a sampler that is still warm: set it to the length of the training, or "
                    "train longer"
                )
            if given < steps < math.inf:
                rank_zero_warn(
                    f"LPGNASRule.{field} is {given} of {steps:.0f} steps of the training: from there on the sampler "
                    "stays as cold as it is"
                )

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Return the optimiser of alpha."""
        return self.search.optimizer()

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return one draw for the weights; tries the bits where they begin to learn."""
        if step == self.bits_warmup and self.tolerance is not None:
            self._try_bits(space, score)
        (slot,) = self.search.slots(space, seed=seed, step=step, score=score)
        assert isinstance(slot.architecture, RelaxedArchitecture)  # noqa: S101 - what the search draws
        relaxed = {name: weights.detach() for name, weights in slot.architecture.items()}
        return [Slot(self._phase(RelaxedArchitecture(relaxed), step), "labels")]

    def held_out_rows(self, step: int) -> int:
        """Return the rows of a held-out batch: all, or none while the weights learn alone."""
        return self.search.held_out_rows(step)

    def held_out_slot(self, *, seed: int, step: int) -> Slot:
        """Return the draw for the validation nodes."""
        slot = self.search.held_out_slot(seed=seed, step=step)
        assert isinstance(slot.architecture, RelaxedArchitecture)  # noqa: S101 - what the search draws
        return Slot(self._phase(slot.architecture, step), "labels")

    def loss(self, step: int) -> Tensor | None:
        """Return the weighted expected bytes, and the sampler's own penalty."""
        own = self.search.loss(step)
        if own is None:
            return None
        mean = self._phase(self.search.mean(), step)
        for weight, largest, expectation in self._costs.values():
            own = own + (weight / largest * expectation(mean)).to(own.dtype)
        return own

    def _bits(self) -> list[str]:
        assert self._space is not None  # noqa: S101 - asked after prepare
        return [choice.name for choice in self._space.choices if ".bits." in choice.name]

    def _phase(self, relaxed: RelaxedArchitecture, step: int) -> RelaxedArchitecture:
        """Keep bits at their largest candidates until they learn."""
        if step > self.bits_warmup:
            return relaxed
        bits = set(self._bits())
        return RelaxedArchitecture(
            {name: torch.eye(len(w), device=w.device)[-1] if name in bits else w for name, w in relaxed.items()}
        )

    @torch.no_grad()
    def _try_bits(self, space: SearchSpace, score: Score) -> None:
        """Fill the table, and bar what it speaks against."""
        assert self.tolerance is not None  # noqa: S101 - asked only where there is one
        highest = {name: space.choice(name).candidates[-1] for name in self._bits()}
        base = space.architecture({**self._selected(), **highest})
        reference = score(base)
        for name in self._bits():
            alpha = self.search.alpha[name.replace(".", "/")]
            for position, candidate in enumerate(space.choice(name).candidates[:-1]):
                if name not in base:
                    continue
                added = score(space.architecture({**base, name: candidate})) - reference
                self.table[name, int(candidate)] = added
                if not added <= self.tolerance:
                    alpha[position] = _BARRED

    def _selected(self) -> Architecture:
        selected = self.search.selected()
        assert selected is not None  # noqa: S101 - the sampler learns
        return selected

    def selected(self) -> Architecture | None:
        """Return the architecture of the largest alphas, bits included."""
        return self._selected()

    def learned(self) -> Mapping[str, list[float]]:
        """Return alpha by choice."""
        return self.search.learned()

    def restore(self, learned: Mapping[str, list[float]]) -> None:
        """Take over alpha by choice."""
        self.search.restore(learned)

    def diagnostics(self) -> Mapping[str, float]:
        """Return entropies and selected positions, expected bytes, and the table."""
        found = dict(self.search.diagnostics())
        with torch.no_grad():
            mean = self.search.mean()
            found |= {f"expected/{name}": float(cost(mean)) for name, (_, _, cost) in self._costs.items()}
        return found | {f"sensitivity/{name}/{bits}": added for (name, bits), added in self.table.items()}
