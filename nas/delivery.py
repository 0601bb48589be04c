"""Handing out one subnetwork: calibrated, scored, exported, and registered beside its supernet."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from nas.addresses import Located
from nas.commands.tables import amount, table
from nas.costs import CostMeter, MACs, ModelSize, Parameters
from nas.deploying import deployed_layers, deployment_card, deployment_table
from nas.evaluation import scored_with
from nas.latency import Timing
from nas.objectives import WeightSharing
from nas.runtime import time_models
from nas.standalone import score
from search_spaces import FULL_PRECISION, Architecture, FactorySpace, QuantizedSpace, SearchSpace, describe
from supernets import Supernet, weights_version
from supernets.deployment import deployment_summary, quantized_layers
from supernets.export import Exported, export
from supernets.mismatch import without_bits
from trials import Tracker, TrackingUnavailableError, Trial

__all__ = ["Delivered", "deliver", "describe_delivery", "manifest_of", "register"]

_TIMED = ("onnx", "onnx-lowbit")


@dataclass(frozen=True)
class Delivered:
    """An exported subnetwork and what is known of it.

    Attributes:
        architecture: what was exported.
        costs: name -> value.
        scores: split -> metric -> value, of the exported module.
        exported: files, parity and manifest.
        timings: format -> times of one example in ONNX Runtime, where they were asked for.
    """

    architecture: Architecture
    costs: Mapping[str, float]
    scores: Mapping[str, Mapping[str, float]]
    exported: Exported
    timings: Mapping[str, Timing] = field(default_factory=dict)


def deliver(
    supernet: Supernet,
    data: L.LightningDataModule,
    architecture: Architecture,
    folder: str | Path,
    *,
    formats: Sequence[str],
    overwrite: bool,
    time: bool = False,
    real_only: bool = False,
) -> Delivered:
    """Extract ``architecture``, calibrate it on training data, score it on both held-out splits, and export it.

    With ``time``, every ONNX file is timed whole, while no other latency is measured on this machine. With
    ``real_only``, bits that a runtime does not really have are refused.

    Raises:
        ExportError: the folder or a format cannot be used; nothing has been written.
        ValueError: there is nothing that could be timed.
    """
    timed = [name for name in formats if name in _TIMED]
    if time and not timed:
        raise ValueError(f"--time measures ONNX files, so formats must have one of {_TIMED}, got {list(formats)}")
    space = supernet.space
    costs = CostMeter(space, [Parameters(space), MACs(space), ModelSize(space)])(architecture)
    splits = {split: WeightSharing(supernet, data, split=split) for split in ("val", "test")}
    handed = splits["val"].module(architecture, owned=True)
    scores = {split: score(handed, supernet.task, objective.batches()[1]) for split, objective in splits.items()}
    scores["test"] |= supernet.task.report(handed, data)
    manifest = {
        **manifest_of(supernet, architecture, costs, weights=weights_version(supernet.source)),
        "scores": scores,
    }
    exported = export(
        handed,
        splits["val"].examples(architecture, batch_size=2),
        folder,
        formats=formats,
        manifest=manifest,
        reference=splits["val"].module(architecture),
        quantized=quantized_layers(supernet.source, architecture),
        real_only=real_only,
        overwrite=overwrite,
    )
    timings = {}
    if time:
        files = {name: exported.files[name] for name in timed}
        timings = time_models(files, splits["val"].examples(architecture))
    return Delivered(architecture, costs, scores, exported, timings)


def manifest_of(
    supernet: Supernet, architecture: Architecture, costs: Mapping[str, float], *, weights: str
) -> dict[str, Any]:
    """Return what the manifest of a calibrated subnetwork says of its origin, and how to build a model of the user's.

    Args:
        supernet: it was extracted from.
        architecture: of the subnetwork.
        costs: name -> value.
        weights: version of the supernet's weights.
    """
    space: SearchSpace = supernet.space
    plain = space.base(architecture) if isinstance(space, QuantizedSpace) else architecture
    inner = without_bits(space)
    called = {"arguments": describe(inner.arguments(plain))} if isinstance(inner, FactorySpace) else {}
    return {
        **called,
        "architecture": dict(architecture),
        "arch_id": architecture.arch_id,
        "space": describe(supernet.space),
        "space_digest": supernet.space.digest,
        "weights_version": weights,
        "calibration": f"batch norm over {supernet.calibration} training batches",
        "costs": dict(costs),
    }


def describe_delivery(delivered: Delivered, supernet: Supernet, *, searched: Trial | None = None) -> str:
    """Return the tables that the command line prints: the subnetwork, and its files with their parity."""
    headline = supernet.task.headline
    unit = supernet.task.quantities[headline][0]
    rows = [["architecture", delivered.architecture.arch_id]]
    rows += [[f"  {name}", str(value)] for name, value in delivered.architecture.items()]
    units = {"model_size": "byte", "macs": "MAC"}
    rows += [[name, amount(value, units.get(name, "1"))] for name, value in delivered.costs.items()]
    if searched is not None and headline in searched.measurements:
        alone = scored_with(searched, alone=False) is None and "searched" in searched.measurements
        if alone:  # the headline is of other weights than those that are exported
            rows.append([f"{headline}, validation, trained by itself", amount(searched.value(headline), unit)])
        found = searched.value("searched" if alone else headline)
        rows.append([f"{headline}, validation, as searched", amount(found, unit)])
    if searched is not None and "temperature" in searched.measurements:
        rows.append(["divide its logits by (temperature)", f"{searched.value('temperature'):.4g}"])
    for split, label in (("val", "validation"), ("test", "test")):
        rows.append([f"{headline}, {label}, as exported", amount(delivered.scores[split][headline], unit)])
    known = supernet.task.quantities
    rows += [[f"{name}, test", f"{value:.4g}"] for name, value in delivered.scores["test"].items() if name not in known]
    files = [
        [name, f"{path.stat().st_size:,}", f"{delivered.exported.parity[name]:.1e}", str(path)]
        for name, path in delivered.exported.files.items()
    ]
    parts = [table(["subnetwork", ""], rows), table(["format", "bytes", "parity", "file"], files)]
    if delivered.timings:
        times = [
            [name, f"{t.minimum:.3f} ms", f"{t.p25:.3f} ms", f"{t.median:.3f} ms"]
            for name, t in delivered.timings.items()
        ]
        parts.append(table(["one example in ONNX Runtime, 1 thread", "least", "p25", "median"], times))
    layers = deployed_layers(delivered.exported.manifest)
    if layers:
        parts.append(deployment_table(layers))
    elif any(bits < FULL_PRECISION for bits, _ in supernet.space.bitwidths(delivered.architecture).values()):
        hint = "; the format onnx-lowbit packs them" if supernet.source.quantizes else ""
        parts.append(f"bits are simulated in these files: they hold single precision{hint}")
    return "\n\n".join(parts)


def register(delivered: Delivered, located: Located, trial: Trial | None) -> None:
    """Register the exported folder as ``<name>-subnetwork``, with what it was made from, if the supernet is registered.

    Its tags lead to the supernet, the search and the run of the trial; that run gets a tag that leads here.

    MLflow being away costs a warning: the files are there.
    """
    if located.name is None or located.tracking is None:
        return
    name = f"{located.base}-subnetwork"
    tags = {
        "nas.kind": "subnetwork",
        "nas.arch_id": delivered.architecture.arch_id,
        "nas.architecture": delivered.architecture.to_json(),
        "nas.supernet": f"models:/{located.name}/{located.version}",
        **{f"nas.cost.{key}": f"{value:g}" for key, value in delivered.costs.items()},
        **{f"nas.latency.{name}": f"{timing.minimum:.6g}" for name, timing in delivered.timings.items()},
        **{f"nas.score.{split}.{key}": f"{v:.6g}" for split, s in delivered.scores.items() for key, v in s.items()},
    }
    for key in ("nas.search.study", "nas.search.run"):
        if key in located.tags:
            tags[key] = located.tags[key]
    layers = deployed_layers(delivered.exported.manifest)
    if layers:
        tags["nas.deploy"] = deployment_summary(list(layers.values()))
    try:
        run = None if trial is None else _trial_run(located, trial)
        if trial is not None:
            tags |= {"nas.trial": str(trial.number), **({} if run is None else {"nas.trial.run": run})}
        tracker = Tracker(located.tracking, located.base)
        version = tracker.register_folder(
            delivered.exported.folder,
            name,
            alias="newest",
            tags=tags,
            run_id=located.run_id,
            description=deployment_card(layers) if layers else "",
        )
        if run is not None:
            tracker.log(run, tags={"nas.subnetwork": f"models:/{name}/{version}"})
        print(f"registered as models:/{name}/{version}")
    except TrackingUnavailableError as error:
        print(f"warning: not registered in MLflow, but nothing is lost: {error}", file=sys.stderr)


def _trial_run(located: Located, trial: Trial) -> str | None:
    """Return the run that shows ``trial`` under the newest search of the supernet, if that is where it comes from."""
    study = located.tags.get("nas.search.study")
    if study is None:
        return None
    asked = {"nas.trial": f"{study}/{trial.number}", "nas.arch_id": trial.arch_id}
    return next((run.run_id for run in Tracker(located.tracking, study).runs(asked)), None)
