"""What MLflow is told of a supernet: a model it can serve, a card for people, and the data it was trained on."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import lightning as L

from nas.addresses import PACKAGED
from nas.commands.tables import amount
from nas.costs import Cost, MACs, ModelSize, Parameters, measure
from search_spaces import describe
from supernets import Supernet, weights_version
from trials import Tracker

__all__ = ["log_data", "model_card", "packaged"]

_PACKAGE = "weightloom"


def packaged(supernet: Supernet, saved: Path, folder: Path, *, name: str) -> Path:
    """Write a saved supernet as a model that ``mlflow models serve`` can answer with.

    Args:
        supernet: that was saved.
        saved: its folder, copied to ``artifacts/supernet``.
        folder: written; it must not exist.
        name: of the registered model, under which its searches are looked up later.
    """
    from trials.packaging import package_model

    ours = {"search_spaces", "hypernets", "supernets", "trials", "nas", "torch", "builtins"}
    try:
        requirement = f"{_PACKAGE}=={version(_PACKAGE)}"
    except PackageNotFoundError:  # run from a source tree
        requirement = _PACKAGE
    return package_model(
        folder,
        Path(str(files("nas") / "mlflow_model.py")),
        artifacts={PACKAGED.name: saved},
        config={"name": name, "trust": sorted(_packages(supernet.tree()) - ours)},
        requirements=[requirement],
    )


def _packages(tree: Any) -> set[str]:
    """Return the packages of the classes and functions that a description names."""
    if isinstance(tree, list):
        return set().union(*(_packages(item) for item in tree))
    if not isinstance(tree, Mapping):
        return set()
    named = {str(tree[key]).partition(".")[0] for key in ("class_path", "reference", "partial") if key in tree}
    return named.union(*(_packages(item) for item in tree.values()))


def _costs(supernet: Supernet) -> dict[str, tuple[str, str]]:
    """Return cost -> (smallest, largest) as people read them; no costs of networks that cannot be run without data."""
    space = supernet.space
    try:
        costs: list[Cost] = [Parameters(space), MACs(space), ModelSize(space)]
        ends = [measure(costs, space, end) for end in (space.smallest(), space.largest())]
    except ValueError:
        return {}
    return {cost.name: (amount(ends[0][cost.name], cost.unit), amount(ends[1][cost.name], cost.unit)) for cost in costs}


def model_card(
    supernet: Supernet,
    data: L.LightningDataModule | None,
    *,
    name: str,
    address: str,
    scores: Mapping[str, float],
    options: str = "",
) -> str:
    """Return the card of a trained supernet in Markdown: what it is, what it reaches, how to use it.

    Args:
        supernet: trained.
        data: it was trained on.
        name: of the registered model.
        address: under which the commands find it.
        scores: ``val/<end>/<metric>`` of the last validation.
        options: that the commands need beside the address.
    """
    kind = type(supernet.space).__name__
    lines = [
        f"Supernet of {supernet.space.size():,} subnetworks: `{kind}`, {len(supernet.space.choices)} choices, weights "
        f"`{type(supernet.source).__name__}` {weights_version(supernet.source)}, trained with "
        f"`{type(supernet.rule).__name__}` for `{type(supernet.task).__name__}`"
        + (f" on `{type(data).__name__}`." if data is not None else ".")
    ]
    headline = supernet.task.headline
    unit = supernet.task.quantities[headline][0]
    rows = [f"| {cost} | {low} | {high} |" for cost, (low, high) in _costs(supernet).items()]
    known = [scores.get(f"val/{end}/{headline}") for end in ("smallest", "largest")]
    shown = ["-" if value is None else amount(float(value), unit) for value in known]
    rows.append(f"| {headline}, validation | {shown[0]} | {shown[1]} |")
    lines += ["", "| | smallest | largest |", "|---|---|---|", *rows, ""]
    lines += [
        "Best subnetwork under a limit, as files:",
        f"```\nnas sample {address} --max_params N --out tiny{options}\n```",
        "The same question to MLflow:",
        f"```\nmlflow models serve -m {address} --env-manager local --port 5001\n"
        "curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' "
        '-d \'{"inputs": [{"max_params": N}]}\'\n```',
        "Tags `nas.search.study` and `nas.search.run` name its newest search; exported subnetworks are versions of "
        f"`{name.removesuffix('-supernet')}-subnetwork`, tagged with the supernet and the trial they come from.",
    ]
    return "\n".join(lines)


def log_data(tracker: Tracker, run_id: str, data: L.LightningDataModule, *, context: str) -> None:
    """Record the data module as the data set of a run: how to make it again, and its batches where it has trained.

    Args:
        tracker: of the experiment.
        run_id: the run.
        data: one that cannot be described is named only.
        context: what it was used for; after ``"training"`` it is set up, and its batches are counted.
    """
    try:
        source = describe(data)
    except ValueError:
        source = {"class_path": f"{type(data).__module__}.{type(data).__name__}"}
    profile = {}
    if context == "training":
        loader = data.train_dataloader()
        profile = {"batches": len(loader)} if hasattr(loader, "__len__") else {}
    batch_size = getattr(data, "batch_size", None)
    if isinstance(batch_size, int):
        profile["batch_size"] = batch_size
    tracker.log_dataset(run_id, type(data).__name__, source=source, profile=profile, context=context)
