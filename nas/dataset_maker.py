"""Weights sampled for a labelled data set, from a few of its examples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hypernets import digest, recalibrate
from hypernets.persistence import written
from nas.data.module import ImageDataModule
from nas.data.tensors import ImageSplit
from nas.making import Generation, GenerationError, Request, WeightMaker, replace_file
from nas.samplers import DatasetSampler, draw_examples, features_of
from nas.zoo.training import accuracies
from search_spaces import derive_seed

__all__ = ["EXAMPLES", "DatasetMaker"]

_FORMAT_VERSION = 1
EXAMPLES = 5  # of each class, where a request does not say
_COUNT, _CALIBRATION = 1, 8


@final
class DatasetMaker(WeightMaker):
    """Weights that a :class:`nas.DatasetSampler` draws for a data set.

    The condition is a few examples of each class of its training split; of several sampled networks the one with the
    best accuracy on its validation split is kept. Batch norm takes its statistics from training images.

    Args:
        sampler: trained.
        data: the data set; ``None`` refuses every request.

    Raises:
        GenerationError: ``data`` has other images or another number of classes than the sampler reads.
    """

    def __init__(self, sampler: DatasetSampler, data: L.LightningDataModule | None) -> None:
        self.sampler = sampler
        self.data = None if data is None else _fitting(sampler, data)

    @property
    def fields(self) -> Mapping[str, str]:
        """What the data set must be."""
        return {"data": f"images {self.sampler.image_shape} of {self.sampler.examples.classes} classes"}

    def check(self, request: Request) -> None:
        """See :class:`WeightMaker`."""
        self._examples(request)

    def _examples(self, request: Request) -> tuple[ImageDataModule, Tensor]:
        """The data set, and the examples that a request makes its condition, ``(1, n, size + classes)``."""
        asked = [name for name in ("condition", "size") if getattr(request, name)]
        if asked:
            raise GenerationError(
                f"this hypernetwork samples weights for a data set and takes no {' or '.join(asked)}; name a YAML file "
                "with its `data` section instead: --data data.yaml",
                tuple(key for name in asked for key in getattr(request, name)),
            )
        if self.data is None:
            raise GenerationError(
                f"this hypernetwork samples weights for a data set, {self.fields['data']}; name a YAML file with its "
                "`data` section: --data data.yaml",
                ("data",),
            )
        low = [name for name in ("examples", "count") if (given := getattr(request, name)) is not None and given < 1]
        if low:
            raise GenerationError(f"{' and '.join(low)} must be >= 1", low)
        field, train = self.sampler.examples, self.data.splits.train
        generator = torch.Generator().manual_seed(derive_seed(request.seed, "examples"))
        try:
            places = draw_examples(train.labels, field.classes, request.examples or EXAMPLES, generator)
        except ValueError as error:
            raise GenerationError(f"{error}; lower --examples or give more data", ("examples",)) from error
        drawn = train.take(places)
        features = features_of(self.data.standardization(drawn.images), self.sampler.resolution)
        return self.data, field.of(features, drawn.labels)

    @torch.no_grad()
    def write(self, request: Request, path: str | Path, *, evaluate: bool = True) -> Generation:
        """See :class:`WeightMaker`.

        The evaluation holds the accuracies of the network that is kept and, where several are sampled, the mean of all
        of them; the validation accuracy of the one that is kept is too good, as it was chosen by it.
        """
        data, condition = self._examples(request)
        sampler, count = self.sampler, request.count or _COUNT
        generator = torch.Generator().manual_seed(request.seed)
        made = sampler.generator.sample({sampler.name: condition}, count, generator=generator)
        module = sampler.space.build(sampler.architecture)
        batches = _calibration(data)
        splits = {"val": data.splits.validation, "test": data.splits.test}
        if not evaluate:
            splits = {name: split for name, split in splits.items() if name == "val" and count > 1}
        scores = {name: _scores(module, made, split, data, batches) for name, split in splits.items()}
        chosen = int(scores["val"].argmax()) if count > 1 else 0
        evaluation = {f"{name}/accuracy": found[chosen].item() for name, found in scores.items()}
        if count > 1:
            evaluation |= {f"{name}/mean": found.mean().item() for name, found in scores.items()}
        provenance: dict[str, Any] = {
            "format_version": _FORMAT_VERSION,
            "hypernetwork": digest(sampler.generator),
            "target": sampler.generator.target.fingerprint,
            "condition": {sampler.name: written(condition[0])},
            "seed": request.seed,
            "examples": request.examples or EXAMPLES,
            "count": count,
            "chosen": chosen,
            "evaluation": evaluation if evaluate else {},
        }
        kept = {name: value[chosen : chosen + 1] for name, value in made.items()}
        tensors = {name: value[0].contiguous() for name, value in (kept | _statistics(module, kept, batches)).items()}
        replace_file(Path(path), save(tensors, metadata={"generated": json.dumps(provenance, sort_keys=True)}))
        return Generation(Path(path), provenance)


def _fitting(sampler: DatasetSampler, data: L.LightningDataModule) -> ImageDataModule:
    """Refuse data that the sampler cannot read.

    Raises:
        GenerationError: says what it must be.
    """
    if not isinstance(data, ImageDataModule):
        raise GenerationError(
            f"data must be labelled images, such as nas.data.ImageData; got {type(data).__name__}", ("data",)
        )
    if data.num_classes != sampler.examples.classes:
        raise GenerationError(
            f"data must have {sampler.examples.classes} classes, as the networks of the zoo; these have "
            f"{data.num_classes}",
            ("data",),
        )
    if data.image_shape != sampler.image_shape:
        raise GenerationError(
            f"data must be images of shape {sampler.image_shape}, which is {sampler.examples.size} features; these are "
            f"{data.image_shape}",
            ("data",),
        )
    return data


def _calibration(data: ImageDataModule) -> list[Tensor]:
    """Training images for batch-norm statistics."""
    available = len(data.splits.train) // data.batch_size
    if not available:
        return [data.standardization(data.splits.train.images)]
    return [images for images, _ in data.calibration_batches(min(_CALIBRATION, available))]


def _scores(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    split: ImageSplit,
    data: ImageDataModule,
    batches: Sequence[Tensor],
) -> Tensor:
    return accuracies(module, tensors, data.standardization(split.images), split.labels, calibration=batches)


def _statistics(module: nn.Module, tensors: Mapping[str, Tensor], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """The buffers that belong into the file, ``(1, *shape)`` each."""
    known = module.state_dict()
    if any(isinstance(layer, _NormBase) and layer.track_running_stats for layer in module.modules()):
        buffers = recalibrate(module, tensors, batches)
    else:
        buffers = {name: value[None] for name, value in module.named_buffers()}
    return {name: value for name, value in buffers.items() if name in known}
