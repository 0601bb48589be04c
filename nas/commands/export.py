"""``nas export``: one given subnetwork as files that need nothing of ours."""

from pathlib import Path

from nas.addresses import locate
from nas.commands.boundary import UsageError
from nas.commands.sample import data_from
from nas.commands.silence import silenced
from nas.commands.trusting import packages
from nas.delivery import deliver, describe_delivery, register
from nas.known import Known, known_trials
from nas.trainer import open_supernet
from search_spaces import Architecture, SearchSpace
from supernets import Supernet, weights_version
from trials import Trial

__all__ = ["export", "spelt_out"]

_ENDS = ("smallest", "middle", "largest")


def export(
    supernet: str,
    *,
    architecture: str,
    format: list[str] | str = "safetensors",
    out: str = "subnetwork",
    study: str | None = None,
    storage: str = "studies.journal",
    data: str | None = None,
    overwrite: bool = False,
    time: bool = False,
    real_only: bool = False,
    trust: list[str] | str = [],  # noqa: B006 - only read
) -> None:
    """Export one subnetwork of a supernet.

    Args:
        supernet: models:/NAME@alias, a folder that `nas fit` saved, or a .ckpt file.
        architecture: a JSON object of choices, the identity of an architecture in a study, selected (what
            differentiable search has found), or one of smallest, middle and largest.
        format: safetensors, pt2, onnx or onnx-lowbit (quantised networks, their weights packed), or a list of them.
        out: folder to write, new or empty.
        study: where to look an identity up; every study in the storage by default.
        storage: where studies live: a journal file, or an Optuna database URL.
        data: YAML file with a `data` section, for checkpoints that do not name their data.
        overwrite: replace an earlier export in `out`.
        real_only: refuse onnx-lowbit where some bits are stored only or simulated.
        time: measure each ONNX file whole with ONNX Runtime, one example and one thread.
        trust: packages of your own that the supernet may name, that of your model say, with commas between.

    Raises:
        InvalidArchitectureError: the architecture is not one of the space.
        CheckpointError: the supernet cannot be read.
        ExportError: `out` or a format cannot be used; nothing has been written.
    """
    with silenced():
        located = locate(supernet)
        net, module = open_supernet(located, None, data_from(data), trust=packages(trust))
        chosen, trial = _selected(net) if architecture == "selected" else spelt_out(architecture, net.space), None
        if chosen is None:
            known = known_trials(located, weights=weights_version(net.source), study=study, storage=storage)
            trial = _find(architecture, known)
            chosen = net.space.architecture(trial.architecture)
        formats = [format] if isinstance(format, str) else format
        delivered = deliver(
            net, module, chosen, out, formats=formats, overwrite=overwrite, time=time, real_only=real_only
        )
        print(f"\n{describe_delivery(delivered, net, searched=trial)}\n")
        register(delivered, located, trial)
        print(f"wrote {Path(out) / 'manifest.json'}, which says how to load each file with plain PyTorch")


def _selected(net: Supernet) -> Architecture:
    """Return what the sampling rule has found.

    Raises:
        UsageError: it finds nothing.
    """
    found = net.rule.selected()
    if found is None:
        raise UsageError(
            f"--architecture selected needs a supernet trained by differentiable search, and {type(net.rule).__name__} "
            "selects none; use nas sample, or name an architecture"
        )
    return found


def spelt_out(text: str, space: SearchSpace) -> Architecture | None:
    """Return the architecture that is spelt out, or ``None`` where ``text`` is an identity."""
    if text.lstrip().startswith("{"):
        return space.architecture(Architecture.from_json(text))
    if text in _ENDS:
        ends = {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}
        return ends[text]()
    return None


def _find(arch_id: str, known: Known) -> Trial:
    """Return the trial whose identity starts with ``arch_id``.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = [trial for trial in known.trials if arch_id and trial.arch_id.startswith(arch_id)]
    if len(found) != 1:
        raise UsageError(
            f"--architecture must be a JSON object, one of {', '.join(_ENDS)}, selected, or the identity of one trial; "
            f"{arch_id!r} fits {len(found)} of {len(known.trials)} trials in {known.source}"
        )
    return found[0]
