"""``nas allocate``: the best bits for one network of a supernet within budgets, by an exact program."""

import shlex
from typing import Literal

import torch

from nas.addresses import locate
from nas.allocation import Allocated, BudgetError, Distortion, RateDistortion, RateDistortionTable, SubnetworkOutputs
from nas.bitops import BitOps
from nas.commands.boundary import UsageError
from nas.commands.export import spelt_out
from nas.commands.limits import given_limits
from nas.commands.sample import data_from
from nas.commands.silence import silenced
from nas.commands.tables import amount, table
from nas.commands.trusting import packages
from nas.costs import Cost, ModelSize
from nas.trainer import open_supernet

__all__ = ["allocate"]


def allocate(
    supernet: str,
    *,
    max_bops_product: float | None = None,
    max_bops_uniq: float | None = None,
    max_model_size: float | None = None,
    architecture: str = "largest",
    samples: int = 512,
    distortion: Literal["mse", "kl", "worst"] = "mse",
    rounds: int = 1,
    data: str | None = None,
    trust: list[str] | str = [],  # noqa: B006 - only read
) -> None:
    """Find the best bits for one network of a quantised supernet within budgets.

    Args:
        supernet: models:/NAME@alias, a folder that `nas fit` saved, or a .ckpt file.
        max_bops_product: budget of bit operations, MACs * weight bits * input bits.
        max_bops_uniq: budget of bit operations that count accumulators too.
        max_model_size: budget of the bytes of the exported weights.
        architecture: a JSON object of choices, or one of smallest, middle and largest; its bits do not matter.
        samples: training examples whose outputs are compared.
        distortion: of the outputs: mse, kl, or worst for the example that suffers most.
        rounds: tables around the answer that mend it.
        data: YAML file with a `data` section, for checkpoints that do not name their data.
        trust: packages of your own that the supernet may name, that of your model say, with commas between.

    Raises:
        UsageError: no budget is given, or none can be kept; the smallest that can be reached is named.
        CheckpointError: the supernet cannot be read.
    """
    limits = given_limits(max_bops_product=max_bops_product, max_bops_uniq=max_bops_uniq, max_model_size=max_model_size)
    if not limits or samples < 1 or rounds < 0:
        raise UsageError(
            "nas allocate needs a budget, --max_bops_product, --max_bops_uniq or --max_model_size, with --samples >= 1 "
            f"and --rounds >= 0, got {len(limits)} budgets, {samples=}, {rounds=}"
        )
    with silenced():
        located = locate(supernet)
        net, module = open_supernet(located, None, data_from(data), trust=packages(trust))
        base = spelt_out(architecture, net.space)
        if base is None:
            raise UsageError(f"--architecture must be a JSON object, smallest, middle or largest, got {architecture!r}")
        wanted = {limit.metric for limit in limits}
        costs: list[Cost] = [BitOps(net.space, formula="bops_product")]
        if "bops_uniq" in wanted:
            costs.append(BitOps(net.space, formula="bops_uniq"))
        costs.append(ModelSize(net.space))
        outputs = SubnetworkOutputs(net, module, samples=samples)
        kind: Distortion = distortion
        with torch.no_grad():
            measured = RateDistortion(net.space, base, outputs, costs, distortion=kind)
            budgets = {limit.metric: limit.bound for limit in limits}
            try:
                measured.require(budgets)
            except BudgetError as error:
                raise UsageError(f"{error}; bits alone do no more, --architecture takes a smaller network") from error
            first = measured.table()
            print(f"distortion ({distortion}) of the outputs when one layer alone has these bits\n")
            print(_options(measured, first) + "\n")
            found = measured.allocate(budgets, rounds=rounds)
        print(_answer(measured, found, costs))
        text = shlex.quote(found.architecture.to_json())
        print(f"\nNext:\n  nas export {located.address} --architecture {text}")


def _options(measured: RateDistortion, first: RateDistortionTable) -> str:
    """Return a row for each layer and a column for each combination of bits."""
    columns = sorted({" / ".join(map(str, option)) for options in measured.options for option in options}, key=_order)
    rows = []
    for site, options, row in zip(measured.sites, measured.options, first.distortion, strict=True):
        values = {" / ".join(map(str, o)): f"{d:.2e}" for o, d in zip(options, row, strict=True)}
        rows.append([site[0].rpartition(".")[0], *(values.get(column, "") for column in columns)])
    return table(["layer", *columns], rows)


def _order(option: str) -> tuple[int, ...]:
    return tuple(int(bits) for bits in option.split(" / "))


def _answer(measured: RateDistortion, found: Allocated, costs: list[Cost]) -> str:
    """Return the bits of each layer, then the distortion and the costs of the whole."""
    rows = [
        [site[0].rpartition(".")[0], " / ".join(str(found.architecture[name]) for name in site)]
        for site in measured.sites
    ]
    rows += [
        ["distortion, sum over layers", f"{found.predicted:.3e}"],
        ["distortion, measured", f"{found.measured:.3e}"],
        *([cost.name, amount(found.costs[cost.name], cost.unit)] for cost in costs),
    ]
    return table(["layer", "weight / input bits"], rows)
