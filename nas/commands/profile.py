"""``nas profile``: what a space can reach, before any compute is spent."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nas.commands.boundary import USAGE, UsageError
from nas.commands.limits import costs_for, given_limits
from nas.commands.sections import build_sections, read_yaml
from nas.commands.tables import amount, table
from nas.costs import Cost, CostMeter
from nas.deploying import possible_table
from nas.sampling import UnsatisfiableError, sample_within
from search_spaces import Architecture, SearchSpace, derive_seed
from trials import Limit, parse_limits

__all__ = ["profile"]


@dataclass(frozen=True)
class _Configured:
    space: SearchSpace
    costs: Sequence[Callable[[SearchSpace], Cost]]
    limits: Mapping[str, float]


def profile(
    config: str,
    *,
    max_params: float | None = None,
    max_macs: float | None = None,
    max_model_size: float | None = None,
    max_weight_bits: float | None = None,
    max_latency: float | None = None,
    latency_table: str | None = None,
    samples: int = 100,
    seed: int = 0,
) -> int:
    """Show what a search space can reach and whether limits can be met, before any training.

    Args:
        config: the YAML file of the experiment; its space, ``search.costs`` and ``search.limits`` are read.
        max_params: limit on the number of parameters.
        max_macs: limit on multiply-accumulates of one example.
        max_model_size: limit on the bytes of the exported weights.
        max_weight_bits: limit on the bits of weights, in layers whose bits can be chosen.
        max_latency: limit on the milliseconds of one forward pass on this machine.
        latency_table: file to write: operators of the space and 20 whole networks, measured with ONNX Runtime on this
            machine, for ``nas.LatencyTable``; takes minutes, on an idle machine.
        samples: random architectures to measure.
        seed: of the random architectures.

    Returns:
        Exit code: 2 when no architecture can meet the limits.

    Raises:
        UsageError: the configuration cannot be used.
    """
    if samples < 1:
        raise UsageError(f"--samples must be at least 1, got {samples}")
    configured = _read(Path(config))
    space = configured.space
    if latency_table is not None:  # first, because search.costs may name it
        _write_latency_table(space, latency_table, samples=samples, seed=seed)
    asked = given_limits(
        max_params=max_params,
        max_macs=max_macs,
        max_model_size=max_model_size,
        max_weight_bits=max_weight_bits,
        max_latency=max_latency,
    )
    replaced = {limit.key for limit in asked}
    limits = [*asked, *(limit for limit in parse_limits(configured.limits) if limit.key not in replaced)]
    costs = {cost.name: cost for cost in costs_for(space, limits, always=("params", "macs", "model_size"))}
    costs |= {cost.name: cost for cost in (make(space) for make in configured.costs)}
    meter = CostMeter(space, list(costs.values()))
    generator = torch.Generator().manual_seed(derive_seed(seed, "profile"))
    drawn = [space.sample(generator) for _ in range(samples)]
    size = space.size()
    print(f"{config}: {size:,} architectures (10^{math.log10(size):.1f}), {len(space.choices)} choices\n")
    print(_choices(space) + "\n")
    print(_reach(space, costs, meter, drawn))
    bits = possible_table(space, [space.smallest(), space.largest(), *drawn])
    if bits is not None:
        print(f"\n{bits}")
    measurable = [limit for limit in limits if limit.metric in costs]
    for limit in limits:
        if limit.metric not in costs:
            print(f"\n{limit.key} is known only after training")
    return _verdict(space, measurable, meter, drawn, generator)


def _write_latency_table(space: SearchSpace, path: str, *, samples: int, seed: int) -> None:
    from nas.latency_table import make_latency_table

    fit = make_latency_table(space, path, samples=samples, seed=seed)
    print(
        f"wrote {path}: latency = {fit.slope:.3g} x sum of operators + {fit.intercept:.3g} ms; median error "
        f"{100 * fit.error:.1f} % over {fit.networks} whole networks\n"
    )


def _choices(space: SearchSpace) -> str:
    rows = []
    for choice in space.choices:
        needs = "" if choice.requires is None else f"{choice.requires[0]} >= {choice.requires[1]}"
        rows.append([choice.name, ", ".join(str(candidate) for candidate in choice.candidates), choice.kind, needs])
    return table(["choice", "candidates", "kind", "present where"], rows)


def _reach(space: SearchSpace, costs: Mapping[str, Cost], meter: CostMeter, drawn: Sequence[Architecture]) -> str:
    ends = [meter(space.smallest()), meter(space.largest())]
    random = [meter(architecture) for architecture in drawn]
    rows = []
    for name, cost in costs.items():
        values = [*(end[name] for end in ends), *(measured[name] for measured in random)]
        middle = statistics.median(measured[name] for measured in random)
        rows.append([name, *(amount(value, cost.unit) for value in (min(values), middle, max(values)))])
    return table(["cost", "smallest", "median of random", "largest"], rows)


def _verdict(
    space: SearchSpace,
    limits: Sequence[Limit],
    meter: CostMeter,
    drawn: Sequence[Architecture],
    generator: torch.Generator,
) -> int:
    if not limits:
        return 0
    wanted = ", ".join(f"{limit.key}={limit.bound:g}" for limit in limits)
    try:
        sample_within(space, limits, meter, generator)
    except UnsatisfiableError as error:
        print(f"\nnot satisfiable: {error}")
        return USAGE
    kept = sum(all(limit.holds(meter(a)[limit.metric]) for limit in limits) for a in drawn)
    print(f"\nsatisfiable: {wanted} ({100 * kept / len(drawn):.0f} % of random architectures keep it)")
    return 0


def _read(path: Path) -> _Configured:
    """Build the space of a configuration as `nas fit` would, its costs and its limits.

    Raises:
        UsageError: the file cannot be read or has no space.
    """
    space = "model.init_args.space"
    kinds = {
        space: SearchSpace,
        "search.costs": list[Callable[[SearchSpace], Cost]],
        "search.limits": dict[str, float],
    }
    made = build_sections(read_yaml(path), kinds)
    if space not in made:
        raise UsageError(f"{path} must say {space}; see configs/digits.yaml")
    return _Configured(made[space], made.get("search.costs", ()), made.get("search.limits", {}))
