"""What a search asks of the object that chooses the next architecture."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces import Architecture, SearchSpace
from trials import Limit, Metric, Trial

__all__ = ["Controller", "Problem"]


@dataclass(frozen=True)
class Problem:
    """What is searched for: the space, the metrics to improve, the limits to respect, and the seed.

    Args:
        space: where architectures come from.
        objectives: at least one metric, each with its direction.
        limits: hard limits on any measurement, an objective's or a cost's.
        seed: seed of everything the controller draws.

    Raises:
        ValueError: there is no objective, or two have one name.
    """

    space: SearchSpace
    objectives: tuple[Metric, ...]
    limits: tuple[Limit, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "limits", tuple(self.limits))
        names = [metric.name for metric in self.objectives]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"objectives must be one or more metrics with distinct names, got {names}")

    @property
    def directions(self) -> tuple[str, ...]:
        """``minimize`` or ``maximize`` for each objective, in order."""
        return tuple(metric.direction for metric in self.objectives)


class Controller(ABC):
    """Chooses architectures and learns from finished trials.

    Life cycle: a controller is made for one :class:`Problem`; a resumed search first passes the whole history of its
    study to :meth:`tell`, then the loop calls :meth:`ask` whenever an executor has room, and :meth:`tell` whenever
    trials start or finish. Subclasses implement these two methods and take ``problem`` as first constructor argument.

    What every controller promises, and the loop may rely on:

    - ``ask`` returns valid, distinct architectures that were neither asked before nor occur in a told trial. It
      returns fewer than wanted only when the space has no more: an empty result means *exhausted*.
    - ``ask`` changes nothing that ``tell`` has taught: asking for four at once is asking for one four times.
    - Several asks may precede a tell, tells may come in any order and be repeated, some asked architectures may never
      be told, and trials may be told that were never asked for (another worker's, or a user's).
    - A trial told as ``RUNNING`` reserves its architecture and teaches nothing else. ``FAILED`` trials are never
      proposed again and teach nothing else. ``INFEASIBLE`` trials, with whatever was measured before the limit broke,
      teach where the limits lie.
    - Randomness derives from ``problem.seed`` and the number of architectures known so far. A new instance that is told
      the history of a study therefore continues as the old one would have; nothing is ever pickled.
    - Trials are never changed.

    A controller is used by one thread.
    """

    problem: Problem

    @abstractmethod
    def ask(self, count: int) -> Sequence[Architecture]:
        """Return up to ``count`` architectures to evaluate next; fewer only when the space has no more.

        Raises:
            ValueError: ``count`` is negative.
        """

    @abstractmethod
    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from trials, in any order; a number told again replaces what was told before.

        Raises:
            InvalidArchitectureError: a trial belongs to another space; nothing has been learnt from any of them.
        """
