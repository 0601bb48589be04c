"""``nas grow``: trained networks become the start of a wider one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import nn

from nas.addresses import locate
from nas.commands.boundary import UsageError
from nas.commands.export import spelt_out
from nas.commands.sample import data_from
from nas.commands.sections import build_section
from nas.commands.silence import silenced
from nas.commands.tables import amount, table
from nas.commands.trusting import packages
from nas.objectives import prepare
from nas.standalone import score
from nas.trainer import open_supernet
from search_spaces import Architecture, SearchSpace, construct, describe
from supernets import Ensemble, SamplingRule, SharedWeights, Supernet, calibration_batches, member_of, save
from supernets.growth import grow as grown_from

__all__ = ["grow"]


def grow(
    supernet: str,
    *,
    architecture: str,
    second: str | None = None,
    second_architecture: str | None = None,
    to: str = "largest",
    mode: Literal["zero", "orthogonal", "random"] = "zero",
    into: str | None = None,
    out: str = "grown",
    data: str | None = None,
    overwrite: bool = False,
    trust: list[str] | str = [],  # noqa: B006 - only read
    seed: int = 0,
) -> None:
    """Start a wider network from one or two trained ones, and save the supernet that holds it.

    `nas fit -c CONFIG --ckpt_path OUT` trains it on.

    Args:
        supernet: models:/NAME@alias, a folder that `nas fit` saved, or a .ckpt file.
        architecture: the trained network in it, a JSON object of choices, or one of smallest, middle and largest.
        second: supernet of a second network, whose widths and those of the first add up to the wider one's.
        second_architecture: the network in the second supernet; that of `architecture` by default.
        to: the wider architecture, spelt like `architecture`.
        mode: how new parts start; zero keeps the function exactly, orthogonal mixes them from the templates of
            TemplateWeights, random draws them.
        into: YAML file whose `model` is the supernet to grow into; that of the first network by default. Choices that
            only its space has are at their smallest in the trained networks.
        out: folder to write, new or empty.
        data: YAML file with a `data` section, for checkpoints that do not name their data.
        overwrite: replace an earlier supernet in `out`.
        trust: packages of your own that the supernets may name, that of your model say, with commas between.
        seed: of new features.

    Raises:
        GrowthError: the networks cannot be grown into the wider one; nothing has been written.
        InvalidArchitectureError: an architecture is not one of its space.
        CheckpointError: a supernet cannot be read.
    """
    _check(Path(out), overwrite=overwrite)
    if second is None and second_architecture is not None:
        raise UsageError("--second_architecture names a network of --second; give --second too")
    with silenced():
        names = packages(trust)
        net, module = open_supernet(locate(supernet), None, data_from(data), trust=names)
        trained = [(net, _named(architecture, net.space, "architecture"))]
        if second is not None:
            other, _ = open_supernet(locate(second), None, module, trust=names)
            given = architecture if second_architecture is None else second_architecture
            trained.append((other, _named(given, other.space, "second_architecture")))
        wide = _plainly_shared(net) if into is None else _configured(Path(into))
        target = _named(to, wide.space, "to")
        prepare(module)
        batches = calibration_batches(module, wide.calibration)
        members = [
            replace(member_of(source, chosen, batches), architecture=_placed(chosen, wide.space))
            for source, chosen in trained
        ]
        grown = grown_from(wide.space, members, target, mode=mode, seed=seed)
        try:
            wide.source.assign(target, dict(grown.named_parameters()))
        except TypeError as error:
            raise UsageError(f"model.source of {into}: {error}") from error
        networks: dict[str, nn.Module] = {"first": members[0].module}
        if len(members) == 2:
            networks["second"] = members[1].module
            networks["mean of both"] = Ensemble([member.module for member in members])
        networks[f"grown, {mode}"] = wide.calibrated(wide.extract(target), batches)
        print(f"\n{_scores(networks, wide, module)}\n")
        saved = save(wide, out, data=module)
    print(f"[grow] supernet of {wide.space.size():,} subnetworks saved to {saved}; {dict(target)} starts as grown")
    print(f"\nNext:\n  nas fit -c {into or 'CONFIG.yaml'} --ckpt_path {saved}")


def _check(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, before any work."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (overwrite and (out / "supernet.json").exists())):
        hint = "; say --overwrite to replace it" if (out / "supernet.json").exists() else ""
        raise UsageError(f"--out must be a new or empty folder, {out} is not{hint}")


def _named(text: str, space: SearchSpace, option: str) -> Architecture:
    found = spelt_out(text, space)
    if found is None:
        raise UsageError(f"--{option} must be a JSON object of choices, or smallest, middle or largest; got {text!r}")
    return found


def _placed(architecture: Architecture, space: SearchSpace) -> Architecture:
    """The same network in a wider space, choices that only this one has being at their smallest."""
    return space.architecture({choice.name: choice.candidates[0] for choice in space.choices} | dict(architecture))


def _configured(path: Path) -> Supernet:
    """Build the supernet of a YAML file, untrained."""
    made = build_section(path, "model", L.LightningModule)
    if not isinstance(made, Supernet):
        raise UsageError(f"model of {path} must be a supernets.Supernet, got {type(made).__name__}")
    return made


def _plainly_shared(net: Supernet) -> Supernet:
    """The same supernet with plainly shared weights, those of its largest architecture, and what its rule learned."""
    shared = Supernet(
        net.space,
        net.task,
        source=lambda space: SharedWeights(space, seed=net.seed),
        rule=construct(describe(net.rule), SamplingRule),
        calibration=net.calibration,
        seed=net.seed,
    )
    shared.rule.restore(net.rule.learned())
    shared.source.assign(net.space.largest(), net.source(net.space.largest()))
    return shared


def _scores(networks: dict[str, nn.Module], supernet: Supernet, data: L.LightningDataModule) -> str:
    """The headline metric of every network on both held-out splits, as a table."""
    headline = supernet.task.headline
    unit = supernet.task.quantities[headline][0]

    def shown(module: nn.Module, batches: Sequence[Any]) -> str:
        return amount(score(module, supernet.task, batches)[headline], unit)

    splits = [list(data.val_dataloader()), list(data.test_dataloader())]
    rows = [[name, *(shown(module, batches) for batches in splits)] for name, module in networks.items()]
    return table([headline, "validation", "test"], rows)
