"""Variations of one labelled data set: the tasks that the networks of a zoo are trained on."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ClassSubsets", "Rotations", "ZooTasks"]


class ZooTasks(ABC):
    """A number of tasks over one data set. Constructor arguments are kept as attributes of the same names."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many tasks there are."""

    @abstractmethod
    def describe(self, task: int) -> Mapping[str, Any]:
        """Return what makes a task, as JSON."""

    @abstractmethod
    def classes(self, available: int) -> int:
        """Return how many classes every task has, where the data set has ``available``.

        Raises:
            ValueError: the data set has too few.
        """

    @abstractmethod
    def data(self, task: int, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of a task.

        Args:
            task: from 0.
            inputs: ``(N, C, H, W)``.
            labels: ``(N,)``.
        """


@final
class Rotations(ZooTasks):
    """All images turned by an angle each task has of its own.

    Args:
        angles: in degrees, counter-clockwise.

    Raises:
        ValueError: there is no angle.
    """

    def __init__(self, angles: Sequence[float]) -> None:
        if not angles:
            raise ValueError("angles must name at least one angle in degrees")
        self.angles = list(angles)

    def __len__(self) -> int:
        return len(self.angles)

    def describe(self, task: int) -> Mapping[str, Any]:  # noqa: D102
        return {"angle": self.angles[task]}

    def classes(self, available: int) -> int:  # noqa: D102
        return available

    def data(self, task: int, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return rotated(inputs, self.angles[task]), labels


def rotated(images: Tensor, angle: float) -> Tensor:
    """Turn images ``(N, C, H, W)`` counter-clockwise by degrees, bilinearly; what comes from outside is edge colour."""
    turn = math.radians(angle)
    matrix = torch.tensor([[math.cos(turn), -math.sin(turn), 0.0], [math.sin(turn), math.cos(turn), 0.0]])
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@final
class ClassSubsets(ZooTasks):
    """A few classes of the data set each, in an order of their own, numbered from 0.

    Args:
        ways: classes of a task.
        count: number of tasks.
        of: classes to choose from; all of 0..9 by default.
        seed: of the choice; no two tasks are equal.

    Raises:
        ValueError: there are fewer ordered choices than tasks asked for.
    """

    def __init__(self, ways: int, count: int, *, of: Sequence[int] = tuple(range(10)), seed: int = 0) -> None:
        self.ways, self.count, self.of, self.seed = ways, count, list(of), seed
        if not 2 <= ways <= len(set(self.of)) or count < 1 or count > math.perm(len(set(self.of)), ways):
            raise ValueError(
                f"2 <= ways <= {len(set(self.of))} classes and 1 <= count <= the number of ordered choices must hold, "
                f"got ways={ways}, count={count}"
            )
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[tuple[int, ...], None] = {}
        known = sorted(set(self.of))
        if math.perm(len(known), ways) <= 4 * count:
            every = list(itertools.permutations(known, ways))
            drawn = dict.fromkeys(every[place] for place in torch.randperm(len(every), generator=generator)[:count])
        while len(drawn) < count:
            drawn[tuple(known[place] for place in torch.randperm(len(known), generator=generator)[:ways])] = None
        self.subsets = list(drawn)

    def __len__(self) -> int:
        return self.count

    def describe(self, task: int) -> Mapping[str, Any]:  # noqa: D102
        return {"classes": list(self.subsets[task])}

    def classes(self, available: int) -> int:  # noqa: D102
        if max(self.of) >= available:
            raise ValueError(f"the data set has {available} classes, tasks ask for class {max(self.of)}")
        return self.ways

    def data(self, task: int, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return subset(inputs, labels, self.subsets[task])


def subset(inputs: Tensor, labels: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the examples of some classes, which are numbered from 0 in the order given."""
    place = torch.full((int(labels.max()) + 1,), -1)
    place[torch.tensor([label for label in classes if label < len(place)])] = torch.tensor(
        [number for number, label in enumerate(classes) if label < len(place)]
    )
    moved = place[labels]
    return inputs[moved >= 0], moved[moved >= 0]
