"""The supernet: a space, a weight source, a sampling rule and a task, trained by Lightning."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from search_spaces import Architecture, RelaxedArchitecture, SearchSpace, describe, fill
from supernets.anchors import Anchors
from supernets.calibration import calibrate, calibration_batches
from supernets.card import card
from supernets.decay import parameter_groups
from supernets.draws import distinct
from supernets.held_out import HeldOut
from supernets.mismatch import check_batch, check_data, check_examples, explained, inputs_of, without_bits
from supernets.noise import Resumable
from supernets.readiness import check_trainer
from supernets.rules import SamplingRule, SandwichRule, Slot
from supernets.schedules import scheduled
from supernets.sorting import sort_channels
from supernets.tasks import Task
from supernets.weights import SharedWeights, WeightSource

__all__ = ["Supernet"]


def _adamw(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


class Supernet(Resumable):
    """All architectures of a space, trained together.

    Each training step asks ``rule`` for its architectures, runs each as a static module with the tensors that
    ``source`` gives (``torch.func.functional_call``), sums the gradients and takes one optimiser step. No module is
    ever switched from one architecture to another, so :meth:`bind` and :meth:`extract` are safe in many threads.

    Batch norm uses batch statistics in training; before a subnetwork is scored its statistics are computed on
    training batches (:func:`supernets.calibrate`), in buffers of its own. ``fit`` and ``validate`` report the smallest,
    the middle and the largest architecture under ``val/``.

    Args:
        space: the architectures.
        task: inputs, losses and metrics.
        source: makes the weight source from the space.
        rule: which architectures a step sees; default the sandwich rule.
        optimizer: makes the optimiser; batch-norm scales and biases come as a second group without weight decay
            unless ``decay_norms``.
        schedule: factor on the learning rate as a function of training progress in [0, 1].
        decay_norms: apply weight decay to norm scales and biases too.
        clip: gradient clipping bound, none by default. (The trainer's own option cannot serve several backward
            passes a step.)
        clip_algorithm: ``"norm"`` or ``"value"``.
        calibration: training batches for batch-norm statistics.
        seed: root of the seeds of every step and slot.
    """

    def __init__(
        self,
        space: SearchSpace,
        task: Task,
        *,
        source: Callable[[SearchSpace], WeightSource] = SharedWeights,
        rule: SamplingRule | None = None,
        optimizer: OptimizerCallable = _adamw,
        schedule: Callable[[float], float] | None = None,
        decay_norms: bool = False,
        clip: float | None = None,
        clip_algorithm: Literal["norm", "value"] = "norm",
        calibration: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if calibration < 1 or (clip is not None and clip <= 0):
            raise ValueError(f"Supernet needs calibration >= 1 and clip > 0, got {calibration=}, {clip=}")
        self.automatic_optimization = False
        self.space = space
        self.task = task
        self.source = source(space)
        self.rule = SandwichRule() if rule is None else rule
        self.rule.check(space, self.source)
        task.check(without_bits(space))
        self.rule.prepare(space, self.source, seed=seed)
        self.optimizer = optimizer
        self.schedule = schedule
        self.decay_norms = decay_norms
        self.clip = clip
        self.clip_algorithm = clip_algorithm
        self.calibration = calibration
        self.seed = seed
        self._held_out: HeldOut | None = None
        self._anchors = Anchors({}, task, self.device)
        self.save_hyperparameters(self.tree())

    def tree(self) -> dict[str, Any]:
        """Return what it takes to build this supernet again, as ``class_path`` / ``init_args`` trees.

        The optimiser is part of a training run, not of the supernet, and is left out.
        """
        return {
            "space": describe(self.space),
            "task": describe(self.task),
            "source": describe(self.source, exclude=("space",)),
            "rule": describe(self.rule),
            "calibration": self.calibration,
            "seed": self.seed,
        }

    # Subnetworks -----------------------------------------------------------------------------------------------------

    def forward(self, architecture: Architecture, *inputs: Tensor) -> Any:
        """Return the outputs of ``architecture``, differentiable in the weight source.

        Not for several threads at once in training mode of the same architecture; use :meth:`bind` to serve.
        """
        tensors, device = self.source(architecture), self.source.device
        self.source.skeletons.borrow(architecture, device).train(self.training)
        return self.source.skeletons.call(architecture, device, tensors, inputs)

    def bind(self, architecture: Architecture) -> nn.Module:
        """Return ``architecture`` as a module that shares storage with the weights wherever its tensors are views.

        In evaluation mode, without gradients, with batch-norm buffers of its own (not yet calibrated). Treat it as
        immutable. Any number of threads may bind and run at once while the weights are at rest.
        """
        with torch.no_grad():
            tensors = self.source(architecture)
        module = self.source.skeletons.take(architecture, self.source.device)
        return fill(module, tensors).eval()

    def extract(self, architecture: Architecture) -> nn.Module:
        """Return ``architecture`` as a plain module of the space's own class that owns its tensors.

        Needs none of our code to run, save or train. In evaluation mode, batch norm not yet calibrated.
        """
        with torch.no_grad():
            tensors = self.source(architecture)
        module = self.source.skeletons.take(architecture, self.source.device)
        return fill(module, tensors, copy=True).eval()

    def sample(
        self,
        count: int = 1,
        constraints: Sequence[Callable[[Architecture], bool]] = (),
        *,
        generator: torch.Generator,
        tries: int = 10_000,
    ) -> list[Architecture]:
        """Draw distinct architectures that satisfy every constraint.

        Args:
            count: how many.
            constraints: each returns whether an architecture is acceptable.
            generator: source of randomness.
            tries: draws before giving up.

        Raises:
            ValueError: fewer than ``count`` were found.
        """
        return distinct(lambda: self.space.sample(generator), count, constraints, tries=tries)

    def calibrated(self, module: nn.Module, batches: Iterable[Any]) -> nn.Module:
        """Calibrate a bound or extracted module on task batches, in place; see :func:`supernets.calibrate`."""
        return calibrate(module, batches, self.task.inputs)

    # Training --------------------------------------------------------------------------------------------------------

    def step_loss(self, slot: Slot, batch: Any, teacher: Any) -> tuple[Tensor, Any]:
        """Return the loss of one slot and its outputs; ``teacher`` are the outputs of the step's teacher, or None."""
        if isinstance(slot.architecture, RelaxedArchitecture):
            tensors, inputs = self.source.relaxed(slot.architecture), self.task.inputs(batch)
            outputs = self.source.relaxation(slot.architecture, tensors, inputs)
            return self.task.loss(outputs, batch, regularise=True), outputs
        tensors, device = self.source(slot.architecture), self.source.device
        if slot.role == "student":
            self._student(slot.architecture)
        else:
            self.source.skeletons.borrow(slot.architecture, device).train()
        outputs = self.source.skeletons.call(slot.architecture, device, tensors, self.task.inputs(batch))
        if slot.role == "student":
            loss = self.task.distil(*(self.task.counted(given, batch) for given in (outputs, teacher)))
            return self._penalised(slot.architecture, tensors, loss), outputs
        return self._penalised(slot.architecture, tensors, self.task.loss(outputs, batch, regularise=True)), outputs

    def _penalised(self, architecture: Architecture, tensors: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """Add the weight source's own term, where it has one."""
        own = self.source.penalty(architecture, tensors)
        return loss if own is None else loss + own

    def _student(self, architecture: Architecture) -> None:
        """Bring a skeleton into the mode of students: only what learns from labels is regularised (BigNAS)."""
        module = self.source.skeletons.borrow(architecture, self.source.device).eval()
        for layer in module.modules():
            if isinstance(layer, _NormBase | nn.RNNBase):  # cuDNN differentiates recurrent layers in training alone
                layer.train()

    def score(self, architecture: Architecture, batch: Any) -> float:
        """Return the loss of ``architecture`` on the labels of ``batch``, without regularisation and gradients.

        Norms use the statistics of the batch.
        """
        self._student(architecture)
        device, inputs = self.source.device, self.task.inputs(batch)
        with torch.no_grad():
            outputs = self.source.skeletons.call(architecture, device, self.source(architecture), inputs)
            return float(self.task.loss(outputs, batch))

    @torch.no_grad()
    def _observe(self, batches: Iterable[Any]) -> None:
        """Let the source begin from data, alike on all ranks, if it needs any."""
        if not self.source.observed:
            for started in self.source.observe([self.task.inputs(batch) for batch in batches]):
                started.copy_(self.trainer.strategy.reduce(started, reduce_op="mean"))

    def _sync(self, last: bool) -> AbstractContextManager[Any]:
        """Let ranks exchange gradients on the last backward pass of a step alone."""
        if last or self.trainer.world_size == 1:
            return nullcontext()
        return self._optimizer(0).toggle_model(sync_grad=False)

    def _optimizer(self, number: int) -> LightningOptimizer:
        """Return the optimiser of the weights (0) or of the rule (1)."""
        optimizers = self.optimizers()
        chosen = optimizers[number] if isinstance(optimizers, list) else optimizers
        assert isinstance(chosen, LightningOptimizer)  # noqa: S101 - asked for as such
        return chosen

    def _step_rule(self) -> None:
        """Take a step of the rule's optimiser, which does not count as a step of the training."""
        self.trainer.strategy.optimizer_step(self._optimizer(1).optimizer, closure=lambda: None, model=self)

    def _learn_rule(self, own: Tensor, rows: int, step: int) -> None:
        """Let the rule learn from a held-out batch; the weights get no gradient."""
        if self._held_out is None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self._held_out = HeldOut(data.val_dataloader, rows)
        batch = self._moved(self._held_out(step))
        optimizer, parameters = self._optimizer(1), list(self.rule.parameters())  # type: ignore[attr-defined]
        optimizer.zero_grad()
        with self._rule_alone():
            loss, _ = self.step_loss(self.rule.held_out_slot(seed=self.seed, step=step), batch, None)
            self.manual_backward(loss + own, inputs=parameters)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self.trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        self._step_rule()
        self.log("train/held_out_loss", loss.detach())

    def _rule_alone(self) -> AbstractContextManager[Any]:
        """Keep ranks from exchanging gradients of weights that are not asked for."""
        return nullcontext() if self.trainer.world_size == 1 else self._optimizer(1).toggle_model(sync_grad=False)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train every slot of the rule and take one optimiser step on the summed gradients."""
        del batch_idx
        step, optimizer, scheduler = self.global_step, self._optimizer(0), self.lr_schedulers()
        self.seed_step()
        inputs = inputs_of(self.task, batch)
        if step == 0:
            check_batch(self.space, inputs)
        with explained(self.space, inputs, first=step == 0):
            self._observe([batch])
        own, held_out = self.rule.loss(step), self.rule.held_out_rows(step)
        if own is not None and held_out:
            self._learn_rule(own, held_out, step)
        joint = own if not held_out else None
        if joint is not None:
            self._optimizer(1).zero_grad()
        optimizer.zero_grad()
        if self.rule.sorts(step):
            found = sort_channels(self.source, optimizer.optimizer)
            self.print(f"step {step} begins with sorted channels: {found.summary()}")
        slots = self.rule.slots(
            self.space, seed=self.seed, step=step, score=lambda candidate: self.score(candidate, batch)
        )
        teacher = None
        for position, slot in enumerate(slots):
            with self._sync(position == len(slots) - 1):
                with explained(self.space, inputs, first=step == 0):
                    loss, outputs = self.step_loss(slot, batch, teacher)
                self.manual_backward(loss if joint is None or position else loss + joint)
            if slot.role == "teacher":
                teacher = tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, outputs)
            if position == 0:
                self.log("train/loss", loss.detach(), prog_bar=True)
        optimizer.step()
        if joint is not None:
            self._step_rule()
        scheduler.step()  # type: ignore[union-attr]

    def on_fit_start(self) -> None:
        """Refuse data, a length or a distributed strategy that cannot work, before anything is trained."""
        super().on_fit_start()
        check_data(self.space, self.trainer.datamodule)  # type: ignore[attr-defined]
        check_examples(without_bits(self.space), self.trainer.strategy.root_device)
        check_trainer(self.trainer, self.rule)
        self._held_out = None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the summed gradients, after mixed precision has unscaled them."""
        if self.clip is not None and optimizer is self._optimizer(0).optimizer:
            self.clip_gradients(optimizer, self.clip, self.clip_algorithm)

    def configure_optimizers(self) -> Any:
        """Make the optimiser and the schedule."""
        optimizer = self.optimizer(parameter_groups(self.source, decay_norms=self.decay_norms))
        scheduler = scheduled(optimizer, self.schedule, float(self.trainer.estimated_stepping_batches))
        weights = {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        own = self.rule.optimizer()
        return weights if own is None else (weights, {"optimizer": own})

    # Validation ------------------------------------------------------------------------------------------------------

    def anchors(self) -> dict[str, Architecture]:
        """Return the architectures that validation reports: smallest, middle, largest and the rule's choice."""
        selected = self.rule.selected()
        found = {} if selected is None else {"selected": selected}
        if not self.rule.whole:
            return found
        ends = {"smallest": self.space.smallest(), "middle": self.space.middle(), "largest": self.space.largest()}
        return ends | found

    def _begin_anchors(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            raise ValueError(
                "validation calibrates batch norm on training batches, so the trainer must be given a datamodule; pass "
                "datamodule=... instead of dataloaders"
            )
        if not self.trainer.training and not self.trainer.sanity_checking:
            data.setup("fit")
        if not self.source.observed:
            self._observe(self._moved(batch) for batch in calibration_batches(data, 1))
        modules = {name: self.bind(architecture) for name, architecture in self.anchors().items()}
        self._anchors = Anchors(modules, self.task, self.device)
        if self._anchors.normalise:
            batches = [self._moved(batch) for batch in calibration_batches(data, self.calibration)]
            for module in modules.values():
                self.calibrated(module, batches)

    def _moved(self, batch: Any) -> Any:
        """Bring a batch to the device and precision of training."""
        moved = self.transfer_batch_to_device(batch, self.device, 0)
        return self.trainer.precision_plugin.convert_input(moved)

    def _log_anchors(self, stage: str) -> None:
        self.log_dict({f"{stage}/{key}": value for key, value in self._anchors.compute().items()})
        self.log_dict({f"{stage}/source/{key}": value for key, value in self.source.diagnostics().items()})
        self.log_dict({f"{stage}/rule/{key}": value for key, value in self.rule.diagnostics().items()})
        self._anchors = Anchors({}, self.task, self.device)

    def on_validation_epoch_start(self) -> None:
        """Bind and calibrate the anchors."""
        self._begin_anchors()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score the anchors."""
        self._anchors.update(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the anchors' metrics."""
        self._log_anchors("val")

    def on_test_epoch_start(self) -> None:
        """Bind and calibrate the anchors."""
        self._begin_anchors()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score the anchors."""
        self._anchors.update(batch)

    def on_test_epoch_end(self) -> None:
        """Log the anchors' metrics."""
        self._log_anchors("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint self-describing beside the hyper-parameters."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["weightloom"] = card(self.tree(), self.space, self.source, rule=self.rule, data=data)
