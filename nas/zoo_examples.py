"""The data sets that the networks of a zoo were trained on, as conditions and as what networks are scored on."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypernets.diffusion import ModelZoo
from nas.data.module import ImageDataModule
from nas.data.tensors import ImageSplit
from nas.samplers import draw_examples, features_of
from nas.zoo.tasks import ZooTasks
from nas.zoo.training import accuracies
from search_spaces import construct, derive_seed
from supernets import trusted

__all__ = ["ZooExamples"]

_POOL = 200  # training images of each class of the data that conditions are drawn from


@final
class ZooExamples:
    """A zoo with the examples of its tasks.

    Attributes:
        size: number of features.
        classes: of every task.
        validated: numbers of the tasks that validation is done on.

    Args:
        zoo: of networks.
        data: that it was made from.
        count: examples of each class in a condition.
        resolution: see :func:`nas.samplers.features_of`.
        held_out: tasks that are not learned.
        evaluations: tasks of validation where none are held out.
        seed: of the training images that conditions are drawn from.
        trust: packages that the tasks of the zoo may come from, beside this one.

    Raises:
        ValueError: tasks held out do not exist, or are all; or a class has too few training images.
    """

    def __init__(
        self,
        zoo: ModelZoo,
        data: ImageDataModule,
        *,
        count: int,
        resolution: int | None,
        held_out: Sequence[int],
        evaluations: int,
        seed: int,
        trust: Sequence[str] = (),
    ) -> None:
        self.zoo, self.data, self.count = zoo, data, count
        tasks: ZooTasks = construct(zoo.about["tasks"], ZooTasks, trusted=trusted(trust))
        self.tasks = tasks
        apart = sorted(set(held_out))
        if any(not 0 <= task < len(tasks) for task in apart) or len(apart) == len(tasks):
            raise ValueError(f"held_out must leave some of the tasks 0 to {len(tasks) - 1}, got {list(held_out)}")
        self.validated = apart or list(range(0, len(tasks), max(1, len(tasks) // evaluations)))
        self.classes = tasks.classes(data.num_classes)
        images, labels = self._standard(_part(data.splits.train, data.num_classes, seed))
        turned = (tasks.data(task, images, labels) for task in range(len(tasks)))
        self._pools = [(features_of(inputs, resolution), own) for inputs, own in turned]
        self.size = self._pools[0][0].shape[1]
        for task in range(len(tasks)):
            self.draw(task, torch.Generator())

    def draw(self, task: int, generator: torch.Generator) -> Tensor:
        """Return a few examples of each class of a task, ``(1, n, size + classes)``."""
        features, labels = self._pools[task]
        places = draw_examples(labels, self.classes, self.count, generator)
        return torch.cat([features[places], F.one_hot(labels[places], self.classes).to(features)], 1)[None]

    def score(self, module: nn.Module, tensors: Mapping[str, Tensor], task: int) -> float:
        """Return the mean accuracy of networks ``(K, *shape)`` on the validation images of a task."""
        splits, recipe = self.data.splits, self.zoo.about["recipe"]
        given = self.tasks.data(task, *self._standard(splits.train.take(torch.arange(min(1024, len(splits.train))))))
        batches = torch.split(given[0], int(recipe["batch"]))
        inputs, labels = self.tasks.data(task, *self._standard(splits.validation))
        return float(accuracies(module, tensors, inputs, labels, calibration=batches).mean())

    def own_score(self, task: int) -> float:
        """Return the mean accuracy of the networks of the zoo that were trained on a task, on the same images."""
        return float(self.zoo.scores[self.zoo.tasks == task].mean())

    def _standard(self, split: ImageSplit) -> tuple[Tensor, Tensor]:
        return self.data.standardization(split.images), split.labels


def _part(split: ImageSplit, classes: int, seed: int) -> ImageSplit:
    """Random images of each class, as many as are used."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "examples"))
    places = [(split.labels == label).nonzero().flatten() for label in range(classes)]
    return split.take(torch.cat([each[torch.randperm(len(each), generator=generator)[:_POOL]] for each in places]))
