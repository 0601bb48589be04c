"""Search of bitwidths by binary gates that learn beside the weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from search_spaces import (
    Architecture,
    ArchitectureCost,
    Choice,
    QuantizedSpace,
    RelaxedArchitecture,
    SearchSpace,
    cost_of,
)
from supernets.bit_gates import at_boundary, gate, open_gates, shares
from supernets.gate_costs import GatedCost
from supernets.pruning import ChannelGroups, opened
from supernets.rules import SamplingRule, Score, Slot
from supernets.weights import WeightSource

__all__ = ["SBSRule"]

_ABOVE = 0.25  # how far a threshold may be above its metric: the cost would else wind it up while the gate is closed
_CLOSED = 1 + _ABOVE  # threshold of a gate that starts closed: the metric of spread-out values is 1
_MEMORY = 0.9  # of the running mean of the metric of inputs


@final
class SBSRule(nn.Module, SamplingRule):
    """Single-path search of bitwidths by shared bits (SBS, Liu et al., TPAMI 2023; ABS, arXiv 2101.04935).

    One network is trained, of ``architecture``; its bits are searched. Every layer has a gate between each two
    neighbouring bitwidths, for its weights and for its input. A gate is open where the mean squared residual of the
    lower bitwidth, in units of ``step^2 / 12``, is above a threshold (:func:`supernets.bit_gates.gate`), and behind a
    closed gate all are closed. Thresholds start at 0, with all gates open at the highest bits; the cost closes them and
    the task reopens those that it cannot spare, one bitwidth at a time (:func:`supernets.bit_gates.at_boundary`). They
    minimise

        ``loss + cost_weight * log R``, or ``loss + cost_weight * max(log R - log cost_target, 0)``

    with ``R`` the cost at the present gates, differentiable through them. Gates alternate: in even steps those of the
    weights learn, in odd steps those of the inputs, while the others keep their hard values.

    **Pruning** is the bitwidth 0 of a group of filters. The widths that ``prune`` names have a gate before each
    candidate but the first, open where the group of channels that the candidate adds is important enough: the mean L1
    norm of the weights that read them, relative to that of all (:class:`supernets.pruning.ChannelGroups`). Channels are
    sorted by it when the gates begin to learn, so that what is left is a prefix, an ordinary width. These gates have
    their turn with those of the weights; the largest build then runs with closed groups masked.

    The bits and widths that the gates lead to at the end are ``selected``, an ordinary architecture of the space:
    evaluated, exported and searched from like any other, by single-shot quantisation, pruned groups physically gone.
    Where they would cost more than ``cost_target`` at that moment, the gates nearest to closing are closed.
    Where the space has no choices but those with gates, the supernet may be searched too (``nas.SelectedArchitecture``
    begins with what the gates found).

    Differs from the paper: residuals are normalised; those of inputs are running means over steps, so that bits do not
    change from batch to batch; gates learn at the boundary alone; thresholds have an optimiser of their own, without
    weight decay, and stay within 0.25 above the metric, so that a closed gate can open again. Groups of filters are
    judged by the weights that read them, because a norm cancels the size of those that make them, and pruned in order
    of their importance as the gates begin, each with a threshold of its own.

    Args:
        cost: what is to be small, e.g. ``nas.BitOps``; above 0.
        cost_weight: ``lambda``.
        cost_target: cost above which it counts, and that ``selected`` holds; ``None``: it always counts.
        prune: globs over the choices of widths whose groups of channels have gates.
        architecture: choice -> value, or ``"smallest"``, ``"middle"`` or ``"largest"``; of choices with gates it is
            ignored.
        start: choice -> bits or width at which gates start, an exact allocation say; default the highest.
        warmup: steps at the start in which thresholds do not learn.
        until: step from which bits and widths stay as they are and the weights alone learn, as the paper fine-tunes
            what it has found; ``None``: gates learn to the end.
        lr: of the thresholds (SGD with Nesterov momentum 0.9).

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        cost: Callable[[SearchSpace], ArchitectureCost],
        cost_weight: float = 0.1,
        *,
        cost_target: float | None = None,
        prune: Sequence[str] = (),
        architecture: Mapping[str, Any] | Literal["smallest", "middle", "largest"] = "largest",
        start: Mapping[str, Any] | None = None,
        warmup: int = 0,
        until: int | None = None,
        lr: float = 1.0,
    ) -> None:
        super().__init__()
        if not (cost_weight > 0 and lr > 0 and warmup >= 0 and (cost_target is None or cost_target > 0)):
            raise ValueError(
                "SBSRule needs cost_weight > 0, lr > 0, warmup >= 0 and cost_target > 0 or null, got "
                f"{cost_weight=}, {lr=}, {warmup=}, {cost_target=}"
            )
        if until is not None and until <= warmup:
            raise ValueError(
                f"SBSRule.until must be a step after the warm-up, or null for the last one, got {until=}, {warmup=}; "
                "gates learn in between"
            )
        if isinstance(architecture, str) and architecture not in ("smallest", "middle", "largest"):
            raise ValueError(
                "SBSRule.architecture must be a mapping of choices, or one of smallest, middle and largest; got "
                f"{architecture!r}"
            )
        self.cost = cost
        self.cost_weight = cost_weight
        self.cost_target = cost_target
        self.prune = tuple(prune)
        self.architecture = architecture
        self.start = None if start is None else dict(start)
        self.warmup = warmup
        self.until = until
        self.lr = lr
        self.thresholds = nn.ParameterDict()
        self.metrics = nn.ParameterDict()
        self._space: SearchSpace | None = None
        self._base: Architecture | None = None
        self._gated: tuple[Choice, ...] = ()
        self._cost: GatedCost | None = None
        self._sorting = warmup

    # Before training -------------------------------------------------------------------------------------------------

    def _has_gates(self, choice: Choice) -> bool:
        return choice.name.endswith("bits") or self._prunes(choice)

    def _prunes(self, choice: Choice) -> bool:
        return not choice.name.endswith("bits") and any(fnmatchcase(choice.name, glob) for glob in self.prune)

    def _network(self, space: SearchSpace) -> Architecture:
        """Return the architecture that is trained, with all gates open."""
        ends = {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}
        given = ends[self.architecture]() if isinstance(self.architecture, str) else self.architecture
        own = {choice.name: choice.candidates[-1] for choice in space.choices if self._has_gates(choice)}
        return space.architecture({**given, **own})

    def check(self, space: SearchSpace, source: WeightSource) -> None:
        """Refuse spaces without bits, and sources that cannot mix them."""
        network = self._network(space)
        if not any(name.endswith("bits") and space.choice(name).size > 1 for name in network):
            raise ValueError(
                f"SBSRule needs bits to search, and {type(space).__name__} has no choice of them; put the space into "
                "search_spaces.QuantizedSpace with several weight_bits"
            )
        if not source.quantizes:
            raise ValueError(
                f"SBSRule needs weights that are quantised at several bitwidths at once, which {type(source).__name__} "
                "does not give; use supernets.QuantizedWeights, around a source of single architectures"
            )
        if self.prune:
            self._check_pruning(space, source)

    def _check_pruning(self, space: SearchSpace, source: WeightSource) -> None:
        for glob in self.prune:
            if not any(fnmatchcase(c.name, glob) and c.size > 1 and not c.name.endswith("bits") for c in space.choices):
                others = [choice.name for choice in space.choices if not choice.name.endswith("bits")]
                raise ValueError(
                    f"SBSRule.prune must be globs over choices of widths, and {glob!r} matches none; choices are "
                    f"{others}"
                )
        try:
            source.relaxation.masks()  # type: ignore[attr-defined]
            self._groups(space)
            self._check_widths(space)
        except (TypeError, ValueError) as error:
            raise ValueError(f"SBSRule.prune: {error}") from error

    def _check_widths(self, space: SearchSpace) -> None:
        """Refuse narrower networks than the largest: sorting keeps what that computes, and no other."""
        assert isinstance(space, QuantizedSpace)  # noqa: S101 - of a source that quantises
        network = self._network(space)
        narrow = [
            c.name
            for c in space.space.choices
            if network.get(c.name, c.candidates[-1]) != c.candidates[-1] and opened(space.space, c.name)
        ]
        if narrow:
            raise ValueError(
                f"channels are sorted before they are pruned, by what the largest network computes, and {narrow} of "
                "the architecture are smaller; set them to their largest, or leave smaller candidates out of the space"
            )

    def _groups(self, space: SearchSpace) -> ChannelGroups:
        assert isinstance(space, QuantizedSpace)  # noqa: S101 - of a source that quantises
        network = self._network(space)
        return ChannelGroups(
            space.space, [c.name for c in space.space.choices if self._prunes(c) and c.name in network]
        )

    def prepare(self, space: SearchSpace, source: WeightSource, *, seed: int) -> None:
        """Make the gates of ``space``."""
        del seed
        self._space, self._base = space, self._network(space)
        self.whole = all(choice.size == 1 or self._has_gates(choice) for choice in space.choices)
        self._gated = tuple(c for c in space.choices if c.name in self._base and self._has_gates(c) and c.size > 1)
        self._cost = GatedCost(space, cost_of(space, self.cost))
        least = self._cost.of(space.architecture({**self._base, **{c.name: c.candidates[0] for c in self._gated}}))
        if self.cost_target is not None and self.cost_target < least:
            raise ValueError(
                f"SBSRule.cost_target must be at least the cost of the lowest bits and widths, {least:.6g}, got "
                f"{self.cost_target:g}"
            )
        start = {c.name: c.candidates[-1] for c in self._gated} | (self.start or {})
        space.architecture({**self._base, **start})
        gated = {choice.name for choice in self._gated}
        lost = sorted(name for name, value in start.items() if name not in gated and value != self._base.get(name))
        if lost:
            raise ValueError(
                f"SBSRule.start says where gates start, and {lost} have none; give their values as architecture, or "
                "name them in prune"
            )
        for choice in self._gated:
            closed = torch.arange(choice.size - 1) >= choice.index(start[choice.name])
            self.thresholds[_key(choice.name)] = nn.Parameter(_CLOSED * closed.float())
            self.metrics[_key(choice.name)] = nn.Parameter(torch.ones(choice.size - 1), requires_grad=False)
            if self._prunes(choice) and bool(closed.any()):
                self._sorting = 0
        relaxation = source.relaxation
        relaxation.listener = self._listen  # type: ignore[attr-defined]
        if self.prune:
            relaxation.groups = self._groups(space)  # type: ignore[attr-defined]

    def sorts(self, step: int) -> bool:
        """Return whether gates of channels begin to learn at ``step``; at first, where some begin closed."""
        return bool(self.prune) and step == self._sorting

    @torch.no_grad()
    def _listen(self, metrics: Mapping[str, Tensor]) -> None:
        """Take over metrics, their mean over ranks, which see different data and must have the same gates."""
        heard = [choice for choice in self._gated if choice.name in metrics]
        if not heard:
            return
        found = torch.cat([metrics[choice.name].to(self.metrics[_key(choice.name)]) for choice in heard])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found)
            found /= dist.get_world_size()
        for choice, latest in zip(heard, torch.split(found, [c.size - 1 for c in heard]), strict=True):
            memory = _MEMORY if self._of_inputs(choice) else 0.0
            metric = self.metrics[_key(choice.name)]
            metric.mul_(memory).add_(latest, alpha=1 - memory)

    @staticmethod
    def _of_inputs(choice: Choice) -> bool:
        return choice.name.endswith("input_bits")

    def check_length(self, steps: float) -> None:
        """Refuse a training that ends before a gate learns anything, or before what is found is tuned."""
        if self.until is not None and self.until >= steps:
            raise ValueError(
                f"SBSRule.until must lie before the end of the training of {steps:.0f} steps, got {self.until}; set it "
                "lower or to null, or train longer"
            )
        if self.warmup >= steps:
            raise ValueError(
                f"SBSRule.warmup must end before the training of {steps:.0f} steps does, got {self.warmup}; set warmup "
                "lower, or train longer"
            )

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of the thresholds."""
        return torch.optim.SGD(self.thresholds.parameters(), lr=self.lr, momentum=0.9, nesterov=True)

    # Training --------------------------------------------------------------------------------------------------------

    def _prepared(self) -> tuple[SearchSpace, Architecture]:
        if self._space is None or self._base is None:
            raise ValueError("this rule has no gates yet; give it to a Supernet, which prepares it for its space")
        return self._space, self._base

    def _active(self, step: int) -> bool:
        return self.warmup <= step and (self.until is None or step < self.until)

    def _learns(self, choice: Choice, step: int) -> bool:
        """Whether the gates of ``choice`` have their turn: weights and widths in even steps, inputs in odd ones."""
        both = len({self._of_inputs(other) for other in self._gated}) == 2
        return not both or self._of_inputs(choice) == (step % 2 == 1)

    def weights(self, step: int) -> dict[str, Tensor]:
        """Return choice of bits -> weights of its candidates: one-hot, and differentiable where gates have their turn.

        Toggled before the forward pass: what has no turn enters it as a constant.
        """
        found = {}
        for choice in self._gated:
            threshold, metric = self.thresholds[_key(choice.name)], self.metrics[_key(choice.name)]
            with torch.no_grad():
                threshold.copy_(torch.minimum(threshold.clamp(min=0), metric + _ABOVE))
            weights = shares(at_boundary(gate(metric, threshold)))
            found[choice.name] = weights if self._learns(choice, step) else weights.detach()
        return found

    def slots(self, space: SearchSpace, *, seed: int, step: int, score: Score) -> Sequence[Slot]:
        """Return the one network: through its gates while they learn, at the bits they lead to before and after."""
        del seed, score
        _, base = self._prepared()
        if not self._active(step):
            return [Slot(self._present() if step < self.warmup else self._found(), "labels")]
        return [Slot(RelaxedArchitecture({**self._constant(space, base), **self.weights(step)}), "labels")]

    def _constant(self, space: SearchSpace, base: Architecture) -> dict[str, Tensor]:
        device = next(iter(self.thresholds.values())).device
        return {name: weights.to(device) for name, weights in space.relax(base).items()}

    def loss(self, step: int) -> Tensor | None:
        """Return ``lambda log R``, or ``lambda max(log R - log R*, 0)``."""
        if not self._active(step):
            return None
        assert self._cost is not None  # noqa: S101 - prepared
        excess = self._cost(self._present(), self.weights(step)).log()
        if self.cost_target is not None:
            excess = (excess - math.log(self.cost_target)).clamp(min=0)
        return (self.cost_weight * excess).to(next(iter(self.thresholds.values())))

    # Result ----------------------------------------------------------------------------------------------------------

    def _places(self) -> dict[str, int]:
        """Return choice -> position of the candidate that its gates lead to."""
        return {c.name: open_gates(self.metrics[_key(c.name)], self.thresholds[_key(c.name)]) for c in self._gated}

    def _at(self, places: Mapping[str, int]) -> Architecture:
        space, base = self._prepared()
        return space.architecture({**base, **{c.name: c.candidates[places[c.name]] for c in self._gated}})

    def _present(self) -> Architecture:
        """Return the network that the gates lead to."""
        return self._at(self._places())

    def _found(self) -> Architecture:
        """Return the network that the gates lead to, once those nearest to closing have closed to hold the target."""
        assert self._cost is not None  # noqa: S101 - prepared
        places = self._places()
        while self.cost_target is not None and self._cost.of(self._at(places)) > self.cost_target:
            margins = {
                name: float((self.metrics[_key(name)] - self.thresholds[_key(name)].detach())[place - 1])
                for name, place in places.items()
                if place > 0
            }
            places[min(margins, key=margins.__getitem__)] -= 1
        return self._at(places)

    def selected(self) -> Architecture | None:
        """Return the network at the bits and widths that its gates lead to; it holds ``cost_target``."""
        return self._found() if self._gated else None

    def learned(self) -> Mapping[str, list[float]]:
        """Return choice -> thresholds, then metrics, of its gates."""
        return {
            c.name: [*self.thresholds[_key(c.name)].tolist(), *self.metrics[_key(c.name)].tolist()] for c in self._gated
        }

    def restore(self, learned: Mapping[str, list[float]]) -> None:
        """Take over thresholds and metrics by choice."""
        wanted = {choice.name: 2 * (choice.size - 1) for choice in self._gated}
        given = {name: len(values) for name, values in learned.items()}
        if wanted != given:
            raise ValueError(f"gates must have the thresholds and metrics {wanted}, got {given}; use their own space")
        with torch.no_grad():
            for name, values in learned.items():
                thresholds, metrics = torch.tensor(values).chunk(2)
                self.thresholds[_key(name)].copy_(thresholds)
                self.metrics[_key(name)].copy_(metrics)

    def diagnostics(self) -> Mapping[str, float]:
        """Return the selected bits and widths, and the cost at them."""
        selected = self._found()
        assert self._cost is not None  # noqa: S101 - prepared
        found = {f"selected/{choice.name}": float(selected[choice.name]) for choice in self._gated}
        return found | {"selected/cost": self._cost.of(selected)}


def _key(choice: str) -> str:
    return choice.replace(".", "/")
