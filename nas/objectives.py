"""Objectives: what one architecture is worth, measured on data."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nas.confidence import Confidence
from nas.standalone import Recipe, on_device, score, train
from search_spaces import Architecture, derive_seed, import_path
from supernets import (
    Supernet,
    Task,
    UncalibratedError,
    calibrate,
    calibration_batches,
    uncalibrated,
    weights_version,
)
from supernets.noise import seed_all
from trials import Limit, Metric

__all__ = ["Evaluation", "FromScratch", "Objective", "UntrainedError", "WeightSharing"]

_Tree = TypeVar("_Tree")
_IMAGES = 4  # dimensions: batch, channels, height, width


class UntrainedError(ValueError):
    """The supernet has not trained the subnetworks that are asked for."""


@dataclass(frozen=True)
class Evaluation:
    """What an objective found.

    Attributes:
        measurements: metric name -> value.
        provenance: where the weights and the numbers come from.
    """

    measurements: Mapping[str, float]
    provenance: Mapping[str, str] = field(default_factory=dict)


class Objective(ABC):
    """Scores architectures.

    An objective may be pickled to worker processes, so it reads data and measures nothing before its first call. The
    same architecture and seed give the same values in every process.

    Attributes:
        metrics: what every evaluation measures; the first is the one to optimise when nothing else is said.
        inherits: whether it scores the weights of the supernet, and so is worth what they are worth.
    """

    metrics: tuple[Metric, ...]
    inherits: ClassVar[bool] = False

    def identity(self) -> str:
        """Return what the measurements depend on beside the architecture; a study holds one identity only."""
        return import_path(type(self))

    def check(self, objectives: Sequence[Metric], limits: Sequence[Limit]) -> None:
        """Refuse a search whose optimum would be worthless, before it begins. Default: take any.

        Raises:
            ValueError: saying why, and what to ask instead.
        """
        del objectives, limits

    def at(self, fidelity: float) -> "Objective":
        """Return this objective at a share of its cost, for the rungs of a search.

        Raises:
            ValueError: it cannot be made cheaper.
        """
        del fidelity
        raise ValueError(
            f"search.rungs: {type(self).__name__} has no cheaper evaluation; leave rungs out, or use an objective that "
            "has: nas.FromScratch, nas.WeightSharing"
        )

    @abstractmethod
    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Evaluate ``architecture``; an exception makes the trial FAILED."""


def _metrics(task: Task, confidence: Confidence | None) -> tuple[Metric, ...]:
    names = sorted(task.quantities, key=lambda name: (name != task.headline, name))
    if confidence is not None:
        confidence.check_task(task)
    return tuple(Metric(name, *task.quantities[name]) for name in names) + (confidence.metrics if confidence else ())


class WeightSharing(Objective):
    """The score of a subnetwork with the supernet's weights, batch norm calibrated for it alone.

    Args:
        supernet: trained; only read.
        data: its validation split is scored, its training split calibrates.
        split: ``"val"`` or ``"test"``; search on ``"val"``, so that the test split stays unseen.
        calibration: training batches for batch-norm statistics; default what the supernet says.
        confidence: measures calibration errors too, see :class:`nas.Confidence`; not by default.
        fraction: of the batches of the split that are scored, evenly spaced.

    Raises:
        ValueError: unknown split, ``confidence`` for a task without classes, or ``fraction`` outside (0, 1].
    """

    inherits = True

    def __init__(
        self,
        supernet: Supernet,
        data: L.LightningDataModule,
        *,
        split: Literal["val", "test"] = "val",
        calibration: int | None = None,
        confidence: Confidence | None = None,
        fraction: float = 1.0,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"WeightSharing.fraction must be above 0 and at most 1, got {fraction}")
        if split not in ("val", "test"):
            raise ValueError(f"WeightSharing.split must be 'val' or 'test', got {split!r}")
        if calibration is not None and calibration < 1:
            raise ValueError(
                f"WeightSharing.calibration must be >= 1 batches, or null for the supernet's, got {calibration}"
            )
        self.supernet = supernet
        self.data = data
        self.split = split
        self.calibration = calibration
        self.confidence = confidence
        self.fraction = fraction
        self.metrics = _metrics(supernet.task, confidence)
        self._batches: tuple[list[Any], list[Any]] | None = None
        self._fitting: list[Any] | None = None
        self._version: str | None = None

    def batches(self) -> tuple[list[Any], list[Any]]:
        """Return (calibration batches, scored batches), read once and kept on the supernet's device."""
        if self._batches is None:
            prepare(self.data)
            count = self.supernet.calibration if self.calibration is None else self.calibration
            loader = self.data.val_dataloader() if self.split == "val" else self.data.test_dataloader()
            self._batches = self._moved(calibration_batches(self.data, count)), self._moved(self._some(loader))
        return self._batches

    def examples(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        """Return example inputs of a subnetwork: the space's, images as large as those of the data, in its precision.

        A network that resizes images itself is then exported for the images that it is scored on.

        Args:
            architecture: of the subnetwork.
            batch_size: of the inputs.
        """
        made = self._converted(self.supernet.space.inputs(architecture, batch_size=batch_size))
        scored = self.batches()[1]
        if not scored:
            return made
        given = self.supernet.task.inputs(scored[0])
        if [tensor.ndim for tensor in made] != [tensor.ndim for tensor in given]:
            return made
        return tuple(
            own.new_zeros(*own.shape[:2], *real.shape[2:])
            if own.ndim == _IMAGES and own.shape[2:] != real.shape[2:]
            else own
            for own, real in zip(made, given, strict=True)
        )

    def require_share(self, data: L.LightningDataModule) -> None:
        """Refuse a ``fraction`` that is no part of the scored batches.

        Raises:
            ValueError: it is less than one of them, or all; loaders of unknown length are not checked.
        """
        if self.fraction == 1:
            return
        loader: Any = data.val_dataloader() if self.split == "val" else data.test_dataloader()
        try:
            count = len(loader)
        except TypeError:  # also of PyTorch's own loader of a stream, which has the method
            return
        share = self.fraction * count
        if share < 1 or math.ceil(share) == count:
            raise ValueError(
                "search.rungs: fidelities of WeightSharing take whole batches, at least one and not all, and "
                f"{self.fraction:g} of {count} scored batches is {'none' if share < 1 else 'all'}; lower "
                "data.eval_batch_size, or leave out this rung"
            )

    def _some(self, loader: Iterable[Any]) -> list[Any]:
        batches = list(loader)
        count = max(1, math.ceil(self.fraction * len(batches)))
        return [batches[place * len(batches) // count] for place in range(count if batches else 0)]

    def at(self, fidelity: float) -> "WeightSharing":
        """Return the score on a share of the batches."""
        return WeightSharing(
            self.supernet,
            self.data,
            split=self.split,
            calibration=self.calibration,
            confidence=self.confidence,
            fraction=fidelity * self.fraction,
        )

    def _moved(self, batches: Iterable[Any]) -> list[Any]:
        device = self.supernet.source.device
        moved = [self.supernet.transfer_batch_to_device(batch, device, 0) for batch in batches]
        return self._converted(moved)

    def _converted(self, tensors: _Tree) -> _Tree:
        """Return them in the precision of the weights, which is another one after training in bfloat16, say."""
        dtype = next(self.supernet.source.parameters()).dtype

        def fitting(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return tensors if dtype == torch.float32 else tree_map(fitting, tensors)

    def require_whole(self) -> None:
        """Refuse a supernet that has trained one architecture only.

        Raises:
            UntrainedError: saying which.
        """
        rule = self.supernet.rule
        if not rule.whole:
            raise UntrainedError(
                f"{type(rule).__name__} has trained {rule.selected()} and no other subnetwork; export that one with "
                "--architecture selected, or train with a rule for all, SandwichRule say"
            )

    def module(self, architecture: Architecture, *, owned: bool = False) -> nn.Module:
        """Return the calibrated subnetwork that is scored; ``owned`` extracts it instead of binding it.

        Raises:
            UntrainedError: the supernet has trained another architecture alone.
        """
        if architecture != self.supernet.rule.selected():
            self.require_whole()
        made = self.supernet.extract(architecture) if owned else self.supernet.bind(architecture)
        module = self.supernet.calibrated(made, self.batches()[0])
        unreached = uncalibrated(module)
        if unreached:
            raise UncalibratedError(
                f"batch norm must be calibrated before a subnetwork is scored, but no training batch reached "
                f"{unreached[:5]}; does the training split give any?"
            )
        return module

    @property
    def version(self) -> str:
        """Digest of the supernet's weights."""
        if self._version is None:
            self._version = weights_version(self.supernet.source)
        return self._version

    def identity(self) -> str:
        """Return the digest of the weights, the split, the calibration, and what else is not usual."""
        parts = ["shared", self.version, self.split, str(self.calibration or self.supernet.calibration)]
        part = [] if self.fraction == 1 else [f"{self.fraction:g} of the batches"]
        return ":".join([*parts, *part, *([self.confidence.identity()] if self.confidence else [])])

    def check(self, objectives: Sequence[Metric], limits: Sequence[Limit]) -> None:
        """Refuse calibration errors without anything that says how often the network is right."""
        if self.confidence is not None:
            self.confidence.check(objectives, limits, self.metrics)

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Bind, calibrate and score ``architecture``; deterministic, ``seed`` is not used."""
        del seed
        source = self.supernet.source.provenance()
        share = {} if self.fraction == 1 else {"share": f"{self.fraction:g} of the batches"}
        origin = {"weights": f"shared:{self.version}", "split": self.split, **share, **source}
        module, task, batches = self.module(architecture), self.supernet.task, self.batches()[1]
        if self.confidence is None:
            return Evaluation(score(module, task, batches), origin)
        listener = self.confidence.listener(task, len(batches), divided=self.split == "val")
        if self.split == "test":
            if self._fitting is None:
                self._fitting = self._moved(self.data.val_dataloader())
            score(module, task, self._fitting, listen=listener.learn)
        values = score(module, task, batches, listen=listener)
        measured, facts = listener.results()
        return Evaluation({**values, **measured}, {**origin, **facts})


class FromScratch(Objective):
    """The score of an architecture trained by itself: slow, and the truth that weight sharing is judged by.

    Args:
        supernet: gives the space and the task; its weights are not used.
        data: trained on its training split, scored on ``split``.
        recipe: optimiser, schedule and number of steps.
        split: ``"val"`` or ``"test"``.
        calibration: training batches for batch-norm statistics.

    Raises:
        ValueError: weights are to be quantised.
    """

    def __init__(
        self,
        supernet: Supernet,
        data: L.LightningDataModule,
        *,
        recipe: Recipe | None = None,
        split: Literal["val", "test"] = "val",
        calibration: int = 8,
    ) -> None:
        if supernet.source.quantizes:
            raise ValueError(
                "FromScratch trains modules of the space by themselves, where no weight is quantised; train one "
                "architecture of a QuantizedSpace with `nas fit` and model.rule: supernets.SingleRule"
            )
        self.supernet = supernet
        self.data = data
        self.recipe = Recipe() if recipe is None else recipe
        self.split = split
        self.calibration = calibration
        self.metrics = _metrics(supernet.task, None)

    def identity(self) -> str:
        """Return the number of steps and the split."""
        return f"scratch:{self.recipe.steps}:{self.split}:{self.calibration}"

    def at(self, fidelity: float) -> "FromScratch":
        """Return the score after a share of the steps, with the whole schedule on them."""
        recipe = replace(self.recipe, steps=max(1, round(fidelity * self.recipe.steps)))
        return FromScratch(self.supernet, self.data, recipe=recipe, split=self.split, calibration=self.calibration)

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Initialise, train and score ``architecture``, reproducibly from ``seed``."""
        prepare(self.data)
        task = self.supernet.task
        with isolate_rng():
            seed_all(derive_seed(seed, "initialisation"))
            module = self.supernet.space.build(architecture).to(self.supernet.source.device)
            train(module, task, self.data, self.recipe)
        calibrate(module, on_device(module, calibration_batches(self.data, self.calibration)), task.inputs)
        loader = self.data.val_dataloader() if self.split == "val" else self.data.test_dataloader()
        values = score(module, task, loader)
        return Evaluation(values, {"weights": f"scratch:{seed}:{self.recipe.steps} steps", "split": self.split})


def prepare(data: L.LightningDataModule) -> None:
    """Make a data module usable outside a Trainer."""
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
