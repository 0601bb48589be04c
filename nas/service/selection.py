"""From a request to subnetworks: what studies have found, or else a quick search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nas.evaluation import Job
from nas.known import ranked_under
from nas.quick import best_tried, quick_search
from nas.sampling import UnsatisfiableError
from nas.service.problems import RefusedError
from nas.service.schemas import Front, Measured, Subnetwork, SubnetworkRequest, Subnetworks
from nas.service.served import Served
from search_spaces import Architecture, InvalidArchitectureError
from trials import Limit, Measurement, Metric, Trial, non_dominated, parse_limits

__all__ = [
    "Wanted",
    "as_subnetwork",
    "by_architecture",
    "by_search",
    "by_study",
    "pareto",
    "read_architecture",
    "wanted",
]

Origin = Literal["study", "search", "request"]


@dataclass(frozen=True)
class Wanted:
    """A request that makes sense for a supernet."""

    limits: tuple[Limit, ...]
    objective: Metric
    count: int


def wanted(served: Served, request: SubnetworkRequest) -> Wanted:
    """Check a request for the best subnetworks within limits.

    Raises:
        RefusedError: it names something that is not measured, or asks for what the space cannot choose (422).
    """
    known = served.metrics
    asked = dict(request.limits)
    if request.bits is not None:
        if "weight_bits" not in known:
            raise RefusedError(
                422,
                "no_bitwidths",
                f"bits={request.bits} cannot be chosen: the space of {served.offer.name} has no bitwidth choices, and "
                "its subnetworks are handed out in full precision; leave bits out",
            )
        asked["max_weight_bits"] = min(request.bits, asked.get("max_weight_bits", math.inf))
    try:
        limits = parse_limits(asked)
    except ValueError as error:
        raise RefusedError(422, "invalid_limits", str(error)) from error
    objective = request.objective or served.supernet.task.headline
    unknown = sorted({name for name in (objective, *(limit.metric for limit in limits)) if name not in known})
    if unknown:
        raise RefusedError(
            422,
            "unknown_metric",
            f"limits and objective must name something measured, which is one of {', '.join(sorted(known))}, "
            f"got {', '.join(unknown)[:200]}",
        )
    return Wanted(limits, known[objective], request.count)


def read_architecture(served: Served, values: dict[str, bool | int | float | str]) -> Architecture:
    """Return an architecture of the space.

    Raises:
        RefusedError: it is none; the message names the choices and their candidates (422).
    """
    try:
        return served.space.architecture(values)
    except InvalidArchitectureError as error:
        raise RefusedError(422, "invalid_architecture", str(error)[:4000]) from error


def as_subnetwork(
    served: Served, architecture: Architecture, measurements: dict[str, Measurement], origin: Origin
) -> Subnetwork:
    """Return the answer for one subnetwork."""
    name = served.name_of(architecture)
    return Subnetwork(
        id=name,
        model=served.offer.name,
        revision=served.revision,
        architecture=dict(architecture),
        arch_id=architecture.arch_id,
        measurements={key: Measured(**item.to_dict()) for key, item in sorted(measurements.items())},
        origin=origin,
        weights={form: f"/v1/subnetworks/{name}/weights?format={form}" for form in served.formats(architecture)},
    )


def _answer(served: Served, trials: Sequence[Trial], considered: int, origin: Origin) -> Subnetworks:
    found = [
        as_subnetwork(served, served.space.architecture(trial.architecture), dict(trial.measurements), origin)
        for trial in trials
    ]
    return Subnetworks(subnetworks=found, considered=considered)


def by_architecture(served: Served, architecture: Architecture) -> Subnetworks:
    """Measure one architecture, unless a study has."""
    for trial in served.known.trials:
        if trial.arch_id == architecture.arch_id:
            return _answer(served, [trial], 1, "request")
    costs, _ = served.screen(architecture)
    outcome = served.memory.outcome(Job(architecture, 0, costs))
    found = as_subnetwork(served, architecture, dict(outcome.measurements), "request")
    return Subnetworks(subnetworks=[found], considered=1)


def by_study(served: Served, asked: Wanted) -> Subnetworks | None:
    """Return the best trials of the studies within the limits, or ``None`` where no trial keeps them."""
    ranked = ranked_under(served.known.trials, asked.limits, asked.objective.name, asked.objective.direction)
    if not ranked:
        return None
    return _answer(served, ranked[: asked.count], len(served.known.trials), "study")


def by_search(
    served: Served,
    asked: Wanted,
    *,
    seed: int,
    seconds: float,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Subnetworks:
    """Return the best of a quick random search within the limits.

    Raises:
        RefusedError: nothing that was tried keeps the limits, or nothing can; the message says the smallest reachable
            value (422).
    """
    if served.supernet.source.generated:
        raise RefusedError(
            422,
            "unsatisfiable",
            f"no trial keeps the limits, and the weights of {served.offer.name} are generated, so that scores must "
            "prove themselves before a search may rank by them; run `nas search` with these limits",
        )
    computed = served.computed()
    foreign = sorted(
        {n for n in (asked.objective.name, *(limit.metric for limit in asked.limits)) if n not in computed}
    )
    if foreign:
        raise RefusedError(
            422,
            "unsatisfiable",
            f"none of {len(served.known.trials)} trials keeps the limits, and a quick search does not measure "
            f"{', '.join(foreign)}; loosen a limit, or run `nas search` with these limits",
        )
    draws = max(64, min(100_000, round(64 * seconds)))
    try:
        tried = quick_search(
            served.memory.outcome,
            served.screened(asked.limits),
            seed=seed,
            seconds=seconds,
            candidates=draws,
            progress=progress,
            stop=stop,
        )
        ranked = best_tried(tried, asked.limits, asked.objective.name, asked.objective.direction)
    except UnsatisfiableError as error:
        raise RefusedError(422, "unsatisfiable", str(error)) from error
    return _answer(served, ranked[: asked.count], len(tried), "search")


def pareto(served: Served, objectives: Sequence[str]) -> Front:
    """Return the trials that no other trial beats in every objective.

    Args:
        served: the supernet.
        objectives: names of measurements; the headline and the first cost when empty.

    Raises:
        RefusedError: an objective is not measured (422).
    """
    known = served.metrics
    names = list(dict.fromkeys(objectives)) or [served.supernet.task.headline, next(iter(served.reach))]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise RefusedError(
            422,
            "unknown_metric",
            f"objectives must be of {', '.join(sorted(known))}, got {', '.join(unknown)[:200]}",
        )
    trials = [trial for trial in served.known.trials if all(name in trial.measurements for name in names)]
    points = [[trial.value(name) for name in names] for trial in trials]
    kept = non_dominated(points, [known[name].direction for name in names]).tolist() if trials else []
    best = {tuple(point): trial for point, trial, keep in zip(points, trials, kept, strict=True) if keep}
    ordered = [best[point] for point in sorted(best)]
    return Front(
        objectives=names,
        subnetworks=_answer(served, ordered, len(trials), "study").subnetworks,
        considered=len(trials),
        source=served.known.source,
    )
