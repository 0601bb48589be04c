"""Model zoos: many small networks over many tasks, to learn the distribution of trained weights from."""

from nas.zoo.building import ZooError, ZooRecipe, ZooRequest, build_zoo
from nas.zoo.tasks import ClassSubsets, Rotations, ZooTasks, rotated, subset
from nas.zoo.training import accuracies, starts, train_many

__all__ = [
    "ClassSubsets",
    "Rotations",
    "ZooError",
    "ZooRecipe",
    "ZooRequest",
    "ZooTasks",
    "accuracies",
    "build_zoo",
    "rotated",
    "starts",
    "subset",
    "train_many",
]
