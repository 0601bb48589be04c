"""Conditioned networks on disk and in MLflow: the generator with its card, and what module and conditions are."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from hypernets import HyperNetwork, HyperNetworkFileError, digest, save_hypernetwork
from hypernets import load as load_hypernetwork
from nas.conditioned import ConditionedNetwork
from nas.publishing import CHAMPION
from search_spaces import construct, describe
from supernets import CheckpointError, trusted
from trials import Tracker, TrackingUnavailableError, write_atomically

__all__ = [
    "CARD_FILE",
    "SavedNetwork",
    "load_conditioned",
    "publish_conditioned",
    "register_hypernetwork",
    "save_conditioned",
]

CARD_FILE = "hypernetwork.json"
WEIGHTS_FILE = "hypernet.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SavedNetwork:
    """A conditioned network that was read.

    Attributes:
        network: ready to generate.
        data: description of the data it was trained on, if there is one.
    """

    network: ConditionedNetwork
    data: Any


def save_conditioned(
    network: ConditionedNetwork, folder: str | Path, *, data: L.LightningDataModule | None = None
) -> Path:
    """Write the generator (``hypernet.safetensors``, its JSON card inside) and ``hypernetwork.json`` into ``folder``.

    Args:
        network: trained.
        folder: created when missing.
        data: described beside it, so that generated weights can be evaluated; what cannot be described is left out.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        data_tree = None if data is None else describe(data)
    except ValueError:
        data_tree = None
    save_hypernetwork(network.generator, folder / WEIGHTS_FILE)
    card = {
        "format_version": FORMAT_VERSION,
        "model": network.tree(),
        "data": data_tree,
        "digest": digest(network.generator),
        "generator": network.generator.card.to_json(),
    }
    write_atomically(folder / CARD_FILE, json.dumps(card, indent=2, sort_keys=True) + "\n")
    return folder


def load_conditioned(folder: str | Path, *, trust: Sequence[str] = ()) -> SavedNetwork:
    """Read what :func:`save_conditioned` wrote.

    Args:
        folder: the files.
        trust: packages of the user's own whose builders and effects the files may name.

    Raises:
        CheckpointError: damaged, of another version, naming code that is not trusted, or the builder makes another
            module than the one that weights were generated for.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        if card["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} has format version {card['format_version']}, this version reads {FORMAT_VERSION}; use the "
                "version that wrote it"
            )
        network = ConditionedNetwork(**construct(card["model"], trusted=trusted(trust)))
        generator = load_hypernetwork(folder / WEIGHTS_FILE)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a complete saved hypernetwork ({error})") from error
    except CheckpointError:
        raise
    except (ValueError, HyperNetworkFileError) as error:
        raise CheckpointError(f"hypernetwork in {folder}: {error}") from error
    if digest(generator) != card["digest"]:
        raise CheckpointError(f"{folder} holds files of two hypernetworks: {WEIGHTS_FILE} is not that of {CARD_FILE}")
    if generator.target.fingerprint != network.generator.target.fingerprint:
        raise CheckpointError(
            f"{network.builder} no longer makes the module that the hypernetwork in {folder} generates for; use the "
            "version of it that was trained"
        )
    network.generator = generator
    return SavedNetwork(network.eval(), card["data"])


def publish_conditioned(
    network: ConditionedNetwork, data: L.LightningDataModule | None, folder: Path, *, study: str, logger: Any
) -> None:
    """Save a trained hypernetwork, register it in MLflow if the run is tracked there, and say what comes next.

    MLflow being away costs a warning: the files are there.

    Args:
        network: trained.
        data: see :func:`save_conditioned`.
        folder: of the run.
        study: names the registered model, ``<study>-hypernetwork``.
        logger: of the trainer; a run of ours is where the model belongs.
    """
    saved = save_conditioned(network, folder / "hypernetwork", data=data)
    address = register_hypernetwork(network.generator, saved, study=study, logger=logger)
    drawn = {name: value[0].tolist() for name, value in network.evaluated().items()}
    condition = ",".join(f"{name}={_short(value)}" for name, value in drawn.items())
    print(f"\nNext:\n  nas generate {address} --condition {condition} --out generated.safetensors")


def register_hypernetwork(generator: HyperNetwork, saved: Path, *, study: str, logger: Any) -> str:
    """Register saved files in MLflow if the run is tracked there, and say so; MLflow being away costs a warning.

    Args:
        generator: that was saved.
        saved: folder.
        study: names the registered model, ``<study>-hypernetwork``.
        logger: of the trainer; a run of ours is where the model belongs.

    Returns:
        The address to use it by.
    """
    from trials.logger import TrackingLogger

    stored = sum(parameter.numel() for parameter in generator.parameters())
    print(f"[fit] hypernetwork of {stored:,} numbers for {generator.target.numel:,} weights saved to {saved}")
    if not isinstance(logger, TrackingLogger):
        return str(saved)
    name = f"{study}-hypernetwork"
    tags = {"nas.kind": "hypernetwork", "nas.hypernetwork": digest(generator)}
    try:
        version = Tracker(logger.tracking_uri, study).register_folder(
            saved, name, alias=CHAMPION, tags=tags, run_id=logger.run_id, kind="hypernetwork"
        )
    except TrackingUnavailableError as error:
        print(f"warning: not registered in MLflow, but nothing is lost: {error}", file=sys.stderr)
        return str(saved)
    address = f"models:/{name}@{CHAMPION}"
    print(f"[fit] registered as models:/{name}/{version}, which is {address} now")
    return address


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
