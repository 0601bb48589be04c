"""What becomes of a trained supernet: a folder of its run, a registered model, and the next command."""

import itertools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from nas.model_card import log_data, model_card, packaged
from nas.own_code import options_for
from supernets import Supernet, read_card, save, weights_version
from trials import Tracker, TrackingUnavailableError

__all__ = ["CHAMPION", "new_run_folder", "publish"]

CHAMPION = "champion"


def new_run_folder(parent: Path) -> Path:
    """Create and return ``parent/fit-N`` with the lowest free number; no two runs ever share one.

    Raises:
        OSError: it cannot be created.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = parent / f"fit-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise ValueError(
            f"trainer.default_root_dir must be a writable folder: {parent} cannot be created ({error.strerror}); "
            "choose another with --trainer.default_root_dir"
        ) from error
    raise AssertionError  # pragma: no cover - the numbers do not end


def publish(
    supernet: Supernet,
    data: L.LightningDataModule | None,
    folder: Path,
    *,
    study: str,
    logger: Any,
    options: str,
    scores: Mapping[str, float] | None = None,
) -> None:
    """Save a trained supernet, register it in MLflow if the run is tracked there, and say what comes next.

    MLflow being away costs a warning: the files are there.

    Args:
        supernet: trained.
        data: described beside the weights, for calibration later.
        folder: of the run.
        study: names the registered model, ``<study>-supernet``.
        logger: of the trainer; a run of ours is where the model belongs.
        options: of the next command, its ``-c FILE`` among them.
        scores: of the last validation, for the model card.
    """
    from trials.logger import TrackingLogger

    saved = save(supernet, folder / "supernet", data=data)
    print(f"[fit] supernet of {supernet.space.size():,} subnetworks saved to {saved}")
    address, needed = str(saved), options_for(read_card(saved))
    if isinstance(logger, TrackingLogger):
        name = f"{study}-supernet"
        tags = {"nas.kind": "supernet", "nas.weights": weights_version(supernet.source)}
        try:
            tracker = Tracker(logger.tracking_uri, study)
            if data is not None:
                log_data(tracker, str(logger.run_id), data, context="training")
            card = model_card(
                supernet, data, name=name, address=f"models:/{name}@{CHAMPION}", scores=scores or {}, options=needed
            )
            with tempfile.TemporaryDirectory() as place:
                version = tracker.register_folder(
                    packaged(supernet, saved, Path(place) / "model", name=name),
                    name,
                    alias=CHAMPION,
                    tags=tags,
                    run_id=logger.run_id,
                    kind="supernet",
                    description=card,
                )
            address = f"models:/{name}@{CHAMPION}"
            print(f"[fit] registered as models:/{name}/{version}, which is {address} now")
        except TrackingUnavailableError as error:
            print(f"warning: not registered in MLflow, but nothing is lost: {error}", file=sys.stderr)
    following: tuple[str, ...] = ("nas search", options, f"--ckpt_path {address}")
    if not supernet.rule.whole:
        following = (f"nas export {address} --architecture selected{needed}",)
    print("\nNext:\n  " + " ".join(part for part in following if part))
