"""Hypernetworks that sample networks for a data set: what they generate for, what they read, and their files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from hypernets import HyperNetworkFileError, LabelledExamples, Target, digest, save_hypernetwork
from hypernets import load as load_hypernetwork
from hypernets.diffusion import DiffusionHyperNetwork
from nas.hypernetworks import CARD_FILE, WEIGHTS_FILE, register_hypernetwork
from search_spaces import Architecture, SearchSpace, construct, describe
from supernets import CheckpointError, trusted
from trials import write_atomically

__all__ = [
    "DatasetSampler",
    "draw_examples",
    "features_of",
    "is_sampler",
    "load_sampler",
    "publish_sampler",
    "save_sampler",
]

FORMAT_VERSION = 1
_KIND = "sampler"


@final
@dataclass(frozen=True, eq=False)
class DatasetSampler:
    """A diffusion hypernetwork with all it takes to sample for a labelled data set of images.

    Attributes:
        space: of the networks.
        architecture: theirs.
        generator: trained; its only condition is a field of :class:`hypernets.LabelledExamples`.
        image_shape: (channels, height, width) that the networks take.
        resolution: pixels a side of the images that the generator reads, by averaging; ``None`` for all of them.

    Raises:
        ValueError: the generator has other conditions, is for other networks, or reads another number of features.
    """

    space: SearchSpace
    architecture: Architecture
    generator: DiffusionHyperNetwork
    image_shape: tuple[int, int, int]
    resolution: int | None = None

    def __post_init__(self) -> None:
        fields = list(self.generator.conditions.values())
        if len(fields) != 1 or not isinstance(fields[0], LabelledExamples):
            raise ValueError(f"a sampler needs LabelledExamples as its only condition, got {self.generator.conditions}")
        made = Target.of(self.space.build(self.architecture)).fingerprint
        if self.generator.target.fingerprint != made:
            raise ValueError(
                f"the hypernetwork generates for other networks than {dict(self.architecture)} of the space"
            )
        size = features_of(torch.zeros(1, *self.image_shape), self.resolution).shape[1]
        if size != fields[0].size:
            raise ValueError(
                f"images of shape {self.image_shape} at resolution {self.resolution} have {size} features, but the "
                f"hypernetwork reads {fields[0].size}"
            )

    @property
    def name(self) -> str:
        """Name of the condition."""
        return next(iter(self.generator.conditions))

    @property
    def examples(self) -> LabelledExamples:
        """Field of the condition."""
        found = self.generator.conditions[self.name]
        assert isinstance(found, LabelledExamples)  # noqa: S101 - checked at construction
        return found


def features_of(images: Tensor, resolution: int | None) -> Tensor:
    """Return features ``(N, size)`` of images ``(N, C, H, W)``: pixels, averaged to ``resolution`` a side if given."""
    return (images if resolution is None else F.adaptive_avg_pool2d(images, resolution)).flatten(1)


def draw_examples(labels: Tensor, classes: int, count: int, generator: torch.Generator) -> Tensor:
    """Return the places of ``count`` random examples of each class, class by class.

    Raises:
        ValueError: a class has fewer.
    """
    found = torch.bincount(labels, minlength=classes)[:classes].tolist()
    few = {label: number for label, number in enumerate(found) if number < count}
    if few:
        raise ValueError(
            f"{count} examples of each class are asked for, but the training split has {few} (class: examples)"
        )
    places = [(labels == label).nonzero().flatten() for label in range(classes)]
    return torch.cat([each[torch.randperm(len(each), generator=generator)[:count]] for each in places])


def save_sampler(sampler: DatasetSampler, folder: str | Path, *, data: L.LightningDataModule | None = None) -> Path:
    """Write the generator (``hypernet.safetensors``) and ``hypernetwork.json`` into ``folder``.

    Args:
        sampler: trained.
        folder: created when missing.
        data: that the zoo was made from, described beside it.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_hypernetwork(sampler.generator, folder / WEIGHTS_FILE)
    card = {
        "format_version": FORMAT_VERSION,
        "kind": _KIND,
        "model": {
            "space": describe(sampler.space),
            "architecture": dict(sampler.architecture),
            "image_shape": list(sampler.image_shape),
            "resolution": sampler.resolution,
        },
        "data": None if data is None else describe(data),
        "digest": digest(sampler.generator),
        "generator": sampler.generator.card.to_json(),
    }
    write_atomically(folder / CARD_FILE, json.dumps(card, indent=2, sort_keys=True) + "\n")
    return folder


def is_sampler(folder: Path) -> bool:
    """Whether a folder says that it holds what :func:`save_sampler` wrote."""
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and card.get("kind") == _KIND


def load_sampler(folder: str | Path, *, trust: Sequence[str] = ()) -> DatasetSampler:
    """Read what :func:`save_sampler` wrote.

    Args:
        folder: the files.
        trust: packages of the user's own whose search space the files may name.

    Raises:
        CheckpointError: damaged, of another version, or naming code that is not trusted.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        if card["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder} has format version {card['format_version']}, this version reads {FORMAT_VERSION}; use the "
                "version that wrote it"
            )
        generator = load_hypernetwork(folder / WEIGHTS_FILE)
        if digest(generator) != card["digest"] or not isinstance(generator, DiffusionHyperNetwork):
            raise CheckpointError(
                f"{folder} holds files of two hypernetworks: {WEIGHTS_FILE} is not that of {CARD_FILE}"
            )
        return _made(card["model"], generator, trust)
    except CheckpointError:
        raise
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a complete saved hypernetwork ({error})") from error
    except (ValueError, HyperNetworkFileError) as error:
        raise CheckpointError(f"hypernetwork in {folder}: {error}") from error


def _made(model: Mapping[str, Any], generator: DiffusionHyperNetwork, trust: Sequence[str]) -> DatasetSampler:
    space: SearchSpace = construct(model["space"], SearchSpace, trusted=trusted(trust))
    channels, height, width = model["image_shape"]
    return DatasetSampler(
        space,
        space.architecture(model["architecture"]),
        generator,
        (channels, height, width),
        model["resolution"],
    )


def publish_sampler(
    sampler: DatasetSampler, data: L.LightningDataModule, folder: Path, *, study: str, logger: Any
) -> None:
    """Save a trained sampler, register it in MLflow if the run is tracked there, and say what comes next.

    Args:
        sampler: trained.
        data: see :func:`save_sampler`.
        folder: of the run.
        study: names the registered model, ``<study>-hypernetwork``.
        logger: of the trainer.
    """
    saved = save_sampler(sampler, folder / "hypernetwork", data=data)
    address = register_hypernetwork(sampler.generator, saved, study=study, logger=logger)
    print(f"\nNext:\n  nas generate {address} --data data.yaml --count 20 --out sampled.safetensors")
