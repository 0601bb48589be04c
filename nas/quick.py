"""A quick random search within limits, for supernets that were never searched."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from nas.evaluation import Job, Screen
from nas.known import ranked_under
from nas.sampling import UnsatisfiableError, sample_within
from search_spaces import Architecture, derive_seed
from trials import Direction, Limit, Outcome, Trial, TrialState

__all__ = ["CANDIDATES", "best_tried", "measured", "quick_search"]

CANDIDATES = 64
_REPEATS = 16  # draws in a row that were tried before, after which there is hardly more to find


def quick_search(
    evaluate: Callable[[Job], Outcome],
    screen: Screen,
    *,
    seed: int,
    seconds: float,
    candidates: int = CANDIDATES,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Trial]:
    """Evaluate random architectures whose costs keep the limits, until the time is over; at least one is tried.

    Equal seeds try equal architectures in equal order; how many depends on the time.

    Args:
        evaluate: an :class:`nas.evaluation.Evaluate`, or one that remembers.
        screen: costs and the limits on them.
        seed: of the draws.
        seconds: after which nothing new is begun.
        candidates: draws at most; what is drawn twice is tried once.
        progress: called with the number tried and the number of draws.
        stop: asked before every evaluation but the first.

    Returns:
        A trial for each architecture tried, in the order tried.

    Raises:
        UnsatisfiableError: no architecture can keep the limits on costs.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "sample"))
    deadline = time.monotonic() + seconds
    tried: dict[Architecture, Trial] = {}
    repeats = 0
    for drawn in range(candidates):
        if tried and (repeats == _REPEATS or time.monotonic() > deadline or stop()):
            break
        architecture = sample_within(screen.space, screen.limits, screen.meter, generator)[0]
        repeats = repeats + 1 if architecture in tried else 0
        if repeats:
            continue
        outcome = evaluate(Job(architecture, seed, screen(architecture)[0]))
        begun = Trial(
            number=len(tried), architecture=architecture, arch_id=architecture.arch_id, state=TrialState.RUNNING
        )
        tried[architecture] = begun.with_outcome(outcome)
        if progress is not None:
            progress(len(tried), drawn + 1)
    return list(tried.values())


def best_tried(
    tried: Sequence[Trial], limits: Sequence[Limit], metric: str, direction: Direction | None = None
) -> list[Trial]:
    """Return what :func:`quick_search` tried and keeps every limit, the best ``metric`` first.

    Raises:
        UnsatisfiableError: nothing does; the message says how near the best came.
    """
    complete = [trial for trial in tried if trial.state is TrialState.COMPLETE]
    found = ranked_under(complete, limits, metric, direction)
    if found:
        return found
    if not complete:
        raise UnsatisfiableError(f"no candidate could be scored: {(tried[0].error or '').strip().splitlines()[-1:]}")
    asked = ", ".join(f"{limit.key}={limit.bound:g}" for limit in limits)
    nearest = ranked_under(complete, (), metric, direction)
    shown = f"the best has {metric} {nearest[0].value(metric):.4f}" if nearest else f"none has {metric}"
    raise UnsatisfiableError(
        f"none of {len(complete)} subnetworks tried keeps {asked}; {shown}; "
        "loosen a limit, or run `nas search` with these limits"
    )


def measured(trial: Trial, screen: Screen) -> Trial:
    """Return a complete trial with the costs that its search did not measure."""
    if screen.metrics.keys() <= trial.measurements.keys():
        return trial
    costs, _ = screen(screen.space.architecture(trial.architecture))
    return replace(trial, measurements={**costs, **trial.measurements})
