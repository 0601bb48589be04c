"""``nas sample``: the best subnetwork known under a limit, as files that need nothing of ours."""

from pathlib import Path

import lightning as L

from nas.addresses import locate
from nas.commands.limits import costs_for, given_limits
from nas.commands.silence import silenced
from nas.commands.trusting import packages
from nas.delivery import deliver, describe_delivery, register
from nas.evaluation import Evaluate, Screen
from nas.known import best_under, known_trials
from nas.objectives import WeightSharing
from nas.progress import Progress
from nas.quick import CANDIDATES, best_tried, measured, quick_search
from nas.trainer import open_supernet
from nas.trust import refuse_quick_ranking
from search_spaces import Architecture
from supernets import Supernet, weights_version
from trials import Limit

__all__ = ["data_from", "sample"]

_SECONDS = 30.0


def sample(
    supernet: str,
    *,
    max_params: float | None = None,
    max_macs: float | None = None,
    max_model_size: float | None = None,
    max_weight_bits: float | None = None,
    max_latency: float | None = None,
    min_accuracy: float | None = None,
    study: str | None = None,
    storage: str = "studies.journal",
    data: str | None = None,
    out: str = "subnetwork",
    formats: list[str] = ["safetensors", "pt2"],  # noqa: B006 - only read
    overwrite: bool = False,
    time: bool = False,
    trust: list[str] | str = [],  # noqa: B006 - only read
    seed: int = 0,
) -> None:
    """Export the best known subnetwork under the limits.

    Searches of this supernet are looked up in the storage and in MLflow; without any that fits, a quick random search
    within the limits stands in.

    Args:
        supernet: models:/NAME@alias, a folder that `nas fit` saved, or a .ckpt file.
        max_params: limit on the number of parameters.
        max_macs: limit on multiply-accumulates of one example.
        max_model_size: limit on the bytes of the exported weights.
        max_weight_bits: limit on the bits of weights, in layers whose bits can be chosen.
        max_latency: limit on the milliseconds of one forward pass on this machine.
        min_accuracy: limit on the validation accuracy, a fraction.
        study: look at the trials of this study only.
        storage: where studies live: a journal file, or an Optuna database URL.
        data: YAML file with a `data` section, for checkpoints that do not name their data.
        out: folder to write, new or empty.
        formats: of safetensors, pt2, onnx and onnx-lowbit (quantised networks, their weights packed).
        overwrite: replace an earlier export in `out`.
        time: measure each ONNX file whole with ONNX Runtime, one example and one thread.
        trust: packages of your own that the supernet may name, that of your model say, with commas between.
        seed: of the quick search.

    Raises:
        UnsatisfiableError: no architecture can keep the limits, or none that was tried does.
        UntrustedError: the weights are generated, and no search of them fits.
        CheckpointError: the supernet cannot be read.
        ExportError: `out` or a format cannot be used; nothing has been written.
    """
    limits = given_limits(
        max_params=max_params,
        max_macs=max_macs,
        max_model_size=max_model_size,
        max_weight_bits=max_weight_bits,
        max_latency=max_latency,
        min_accuracy=min_accuracy,
    )
    with silenced():
        located = locate(supernet)
        net, module = open_supernet(located, None, data_from(data), trust=packages(trust))
        version = weights_version(net.source)
        known = known_trials(located, weights=version, study=study, storage=storage)
        screen = Screen(net.space, costs_for(net.space, limits), limits)
        trials = [measured(trial, screen) for trial in known.trials]
        trial = best_under(trials, limits, net.task.headline)
        if trial is not None:
            print(f"[sample] best of {len(trials)} trials in {known.source}: trial {trial.number}")
            architecture = net.space.architecture(trial.architecture)
        else:
            refuse_quick_ranking(net)
            _explain(known.source, len(trials))
            architecture = _quick_search(net, module, screen, limits, seed)
        delivered = deliver(net, module, architecture, out, formats=formats, overwrite=overwrite, time=time)
        print(f"\n{describe_delivery(delivered, net, searched=trial)}\n")
        register(delivered, located, trial)
        print(f"wrote {Path(out) / 'manifest.json'}, which says how to load each file with plain PyTorch")


def data_from(config: str | None) -> L.LightningDataModule | None:
    """Build the ``data`` section of a YAML file.

    Raises:
        UsageError: the file cannot be read or has no such section.
    """
    if config is None:
        return None
    from nas.commands.sections import build_section

    made = build_section(Path(config), "data", L.LightningDataModule)
    assert isinstance(made, L.LightningDataModule)  # noqa: S101 - the parser has checked
    return made


def _explain(source: str, count: int) -> None:
    what = f"none of the {count} trials in {source} keeps the limits" if count else "this supernet was never searched"
    print(f"[sample] {what}; a quick random search stands in, `nas search` finds better ones")


def _quick_search(
    net: Supernet, data: L.LightningDataModule, screen: Screen, limits: tuple[Limit, ...], seed: int
) -> Architecture:
    """Return the best of a few random architectures within the limits, in half a minute at most.

    Raises:
        UnsatisfiableError: none keeps the limits.
    """
    objective = WeightSharing(net, data)
    objective.require_whole()
    progress = Progress("sample", CANDIDATES, "candidates")
    tried = quick_search(
        Evaluate(objective),
        screen,
        seed=seed,
        seconds=_SECONDS,
        progress=lambda n, _: progress.update(n),
    )
    progress.close()
    return net.space.architecture(best_tried(tried, limits, net.task.headline)[0].architecture)
