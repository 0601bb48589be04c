"""What a supernet of the user's own model asks of later commands: to trust its packages, to name its data."""

import sys
from collections.abc import Mapping
from typing import Any

import lightning as L

from search_spaces import describe, foreign
from supernets import trusted

__all__ = ["options_for", "warn_of_data"]


def options_for(card: Mapping[str, Any]) -> str:
    """Return the options that `nas sample` and its like need for a checkpoint, with a space in front of each.

    Args:
        card: of the checkpoint. Where it names code of the user's own, that must be trusted by name; where it says
            nothing of the data, these must be named.
    """
    packages = foreign([card["model"], card["data"]], trusted())
    trust = f" --trust {','.join(packages)}" if packages else ""
    return trust + (" --data CONFIG.yaml" if card["data"] is None else "")


def warn_of_data(data: L.LightningDataModule | None) -> None:
    """Say before a training, on standard error, that its data will not be kept with the supernet, if so, and why."""
    try:
        describe(data)
    except ValueError as error:
        print(
            f"warning: the data will not be kept with what is trained: {error}, or call save_hyperparameters(); "
            "otherwise `nas sample`, `nas export` and `nas serve` need --data CONFIG.yaml",
            file=sys.stderr,
        )
