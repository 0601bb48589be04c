"""A hypernetwork that samples networks for a data set, trained by Lightning on a zoo."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from hypernets import LabelledExamples, Target
from hypernets.diffusion import (
    DiffusionHyperNetwork,
    LatentObjective,
    ModelZoo,
    Prior,
    WeightCodec,
    align,
    chain_couplings,
    load_zoo,
)
from hypernets.labelled import Summary
from nas.data.module import ImageDataModule
from nas.samplers import DatasetSampler
from nas.zoo_examples import ZooExamples
from search_spaces import SearchSpace, derive_seed, describe
from supernets import CheckpointMismatchError

__all__ = ["ZooDiffusion"]

_CONDITION = "data"


class ZooDiffusion(L.LightningModule):
    """A :class:`hypernets.DiffusionHyperNetwork` on a zoo that `nas zoo` wrote.

    Before the first step the zoo is aligned, and the codec learns it. Each step draws some tasks, a few examples of
    each class of theirs, and networks trained on them. Validation samples networks for fixed tasks and scores them on
    their validation images; ``shuffled`` scores them on those of another task, and ``zoo`` is what the zoo has there.

    Give it its data by :meth:`learn_from`, and fit it without a data module.

    Args:
        space: of the networks, as the zoo was made with.
        zoo: folder of the zoo; read when fitting begins.
        codec: new; the default is ``PCACodec()``.
        prior: new; the default is ``FlowMatching()``.
        summary: how a data set is read, see :class:`hypernets.LabelledExamples`.
        embedding: length of the summary.
        resolution: pixels a side of the images that are read, by averaging; ``None`` for all of them.
        examples: of each class that a condition holds.
        aligned: whether the zoo needs no alignment; by default, if its networks have one start.
        held_out: numbers of tasks that are not learned, and that validation is done on; without any, validation is on
            learned ones.
        epoch_steps: steps of an epoch.
        batch: networks in a step.
        drawn: tasks in a step, at most.
        lr: highest learning rate, which follows a cosine.
        contrast: weight of the contrastive alignment.
        samples: networks sampled for each task of validation.
        evaluations: tasks of validation where none are held out.
        seed: of everything random.

    Raises:
        ValueError: a number is too small.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        zoo: str = "zoo",
        codec: WeightCodec | None = None,
        prior: Prior | None = None,
        summary: Summary = "statistics",
        embedding: int = 32,
        resolution: int | None = None,
        examples: int = 5,
        aligned: bool | None = None,
        held_out: Sequence[int] = (),
        epoch_steps: int = 100,
        batch: int = 128,
        drawn: int = 16,
        lr: float = 1e-3,
        contrast: float = 0.0,
        samples: int = 4,
        evaluations: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {
            "examples": examples,
            "epoch_steps": epoch_steps,
            "batch": batch,
            "drawn": drawn,
            "samples": samples,
            "evaluations": evaluations,
            "resolution": 1 if resolution is None else resolution,
        }
        low = {name: value for name, value in counts.items() if value < 1}
        if low or lr <= 0 or contrast < 0:
            raise ValueError(
                f"ZooDiffusion needs {list(low)} >= 1, lr > 0 and contrast >= 0, got {low}, {lr=}, {contrast=}"
            )
        self.space, self.zoo = space, zoo
        self.summary, self.embedding, self.resolution = summary, embedding, resolution
        self.examples, self.aligned, self.held_out = examples, aligned, tuple(held_out)
        self.epoch_steps, self.batch, self.drawn, self.lr = epoch_steps, batch, drawn, lr
        self.contrast, self.samples, self.evaluations, self.seed = contrast, samples, evaluations, seed
        self._parts = (codec, prior)  # they belong to the generator
        self._data: ImageDataModule | None = None
        self._learned: ZooExamples | None = None

    def learn_from(self, data: L.LightningDataModule) -> None:
        """Take the data that the zoo was made from.

        Raises:
            ValueError: it holds no labelled images.
        """
        if not isinstance(data, ImageDataModule):
            raise ValueError(f"data must be labelled images, such as nas.data.ImageData; got {type(data).__name__}")
        self._data = data

    # What is learned -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read the zoo, align it, and let the codec learn it."""
        del stage
        if self._learned is not None:
            return
        if self._data is None:
            raise ValueError("ZooDiffusion needs the data that its zoo was made from: call learn_from(data) before fit")
        zoo = load_zoo(self.zoo)
        _same(zoo, self.zoo, space=self.space, data=self._data)
        learned = ZooExamples(
            zoo,
            self._data,
            count=self.examples,
            resolution=self.resolution,
            held_out=self.held_out,
            evaluations=self.evaluations,
            seed=self.seed,
            trust=[type(self.space).__module__.partition(".")[0]],
        )
        field = LabelledExamples(learned.size, learned.classes, embedding=self.embedding, summary=self.summary)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "codec"))
        architecture = self.space.architecture(zoo.about["architecture"])
        module = self.space.build(architecture)
        one_start = bool(zoo.about["recipe"]["shared_start"])
        tensors = zoo.tensors
        if not (one_start if self.aligned is None else self.aligned):
            tensors = align(tensors, chain_couplings(module, torch.zeros(2, *self._data.image_shape)))
        codec, prior = self._parts
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "hypernet"))
            hypernet = DiffusionHyperNetwork(Target.of(module), {_CONDITION: field}, codec=codec, prior=prior)
        kept = ~torch.isin(zoo.tasks, torch.tensor(self.held_out, dtype=torch.long))
        tensors = {name: value[kept] for name, value in tensors.items()}
        hypernet.learn_codec(tensors, generator=generator)
        objective = LatentObjective(
            hypernet,
            tensors,
            zoo.tasks[kept],
            lambda task, drawing: self._condition(learned, task, drawing),
            batch=self.batch,
            drawn=self.drawn,
            contrast=self.contrast,
            seed=derive_seed(self.seed, "alignment"),
        )
        self.generator, self.alignment, self._objective = hypernet, objective.alignment, objective
        self._module = (module,)  # no part of what is trained, moved and saved
        self._learned = learned

    def _condition(self, learned: ZooExamples, task: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {_CONDITION: learned.draw(task, generator).to(self.device)}

    @property
    def sampler(self) -> DatasetSampler:
        """What was trained, ready to save."""
        learned = self._read()
        about = learned.zoo.about
        architecture = self.space.architecture(about["architecture"])
        return DatasetSampler(
            self.space, architecture, self.generator.cpu().eval(), learned.data.image_shape, self.resolution
        )

    def _read(self) -> ZooExamples:
        if self._learned is None:
            raise ValueError("ZooDiffusion has read no zoo yet; fit it first")
        return self._learned

    # Training --------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> range:
        """Return the steps of an epoch; what they draw depends on the seed and the number of the step alone."""
        return range(self.epoch_steps)

    def val_dataloader(self) -> list[int]:
        """Return the tasks of validation."""
        return self._read().validated

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Return the loss of prior and encoder."""
        del batch, batch_idx
        loss = self._objective(torch.Generator().manual_seed(derive_seed(self.seed, "train", self.global_step)))
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        """Adam with a cosine."""
        optimizer = torch.optim.Adam(self._objective.learned(), self.lr)
        total = float(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * min(1.0, step / total))) / 2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which zoo it is."""
        checkpoint["zoo"] = _digest(self._read().zoo.about)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another zoo."""
        if checkpoint.get("zoo") != _digest(self._read().zoo.about):
            raise CheckpointMismatchError(
                f"the checkpoint was trained on another zoo than {self.zoo}; continue with the zoo it was trained on"
            )

    # Validation ------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Score networks sampled for one task."""
        del batch_idx
        learned, task = self._read(), batch
        place = learned.validated.index(task)
        drawing = torch.Generator().manual_seed(derive_seed(self.seed, "validation", task))
        condition = self._condition(learned, task, drawing)
        made = self.generator.sample(condition, self.samples, generator=drawing)
        made = {name: value.cpu() for name, value in made.items()}
        found = {"accuracy": learned.score(self._module[0], made, task)}
        if len(learned.validated) > 1:
            half = len(learned.validated) // 2
            other = learned.validated[(place + half) % len(learned.validated)]
            found["shuffled/accuracy"] = learned.score(self._module[0], made, other)
        found["zoo/accuracy"] = learned.own_score(task)
        for name, value in found.items():
            self.log(f"val/{name}", value, batch_size=1, on_epoch=True)


def _same(zoo: ModelZoo, folder: str, **given: Any) -> None:
    """Require that a zoo was made from what the configuration says.

    Raises:
        ValueError: names what differs.
    """
    other = [name for name, value in given.items() if _digest(describe(value)) != _digest(zoo.about[name])]
    if other:
        raise ValueError(
            f"the zoo in {folder} was made with another {' and '.join(other)}; fit with the YAML that `nas zoo` read"
        )


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:32]
