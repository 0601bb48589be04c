"""One network whose weights a hypernetwork generates for conditions, trained by Lightning."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torchmetrics
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.lr_scheduler import LambdaLR

from hypernets import Bits, Categorical, ChunkedHyperNetwork, Field, HyperNetwork, Target, apply, diagnose
from nas.effects import Effect
from search_spaces import SearchSpace, derive_seed, describe, load
from supernets import Task
from supernets.noise import Resumable

__all__ = ["ConditionedNetwork"]


def _adam(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3)


class ConditionedNetwork(Resumable):
    """A hypernetwork over conditions, for one module and one task.

    Each step draws ``sets`` conditions, generates a weight set for each, and averages their losses on the batch as each
    :class:`nas.Effect` makes it. Validation does the same at ``evaluations`` fixed conditions and reports the mean and
    the worst of them; ``shuffled`` scores every condition with the weights of another one. Where that is no worse, the
    hypernetwork is decoration.

    Args:
        builder: makes the module from ``arguments``: a callable, or its import path; or a search space, whose largest
            network it is. The module is never changed. Batch norm is refused: generated weights need statistics of
            their own.
        task: inputs, losses and metrics.
        conditions: name -> effect.
        arguments: of a builder that is called.
        hypernet: makes the generator from what it generates and its condition fields.
        optimizer: makes the optimiser from the parameters of the generator.
        schedule: factor on the learning rate as a function of training progress in [0, 1].
        sets: conditions drawn for each step.
        evaluations: conditions of validation.
        seed: of the module, the generator and every draw.

    Raises:
        ValueError: there are no conditions, a count is too small, or the module cannot be generated for.
    """

    def __init__(
        self,
        builder: SearchSpace | str | Callable[..., nn.Module],
        task: Task,
        conditions: Mapping[str, Effect],
        *,
        arguments: Mapping[str, Any] | None = None,
        hypernet: Callable[[Target, Mapping[str, Field]], HyperNetwork] = ChunkedHyperNetwork,
        optimizer: OptimizerCallable = _adam,
        schedule: Callable[[float], float] | None = None,
        sets: int = 4,
        evaluations: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if sets < 1 or evaluations < 2:
            raise ValueError(f"ConditionedNetwork needs sets >= 1 and evaluations >= 2, got {sets=}, {evaluations=}")
        if not conditions:
            raise ValueError(
                "ConditionedNetwork.conditions must name at least one effect, e.g. noise: {class_path: nas.InputNoise}"
            )
        self.builder, self.task, self.arguments = builder, task, dict(arguments or {})
        self.conditions = {name: conditions[name] for name in sorted(conditions)}
        self.optimizer, self.schedule = optimizer, schedule
        self.sets, self.evaluations, self.seed = sets, evaluations, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "module"))
            module = self._build()
            _generatable(module)
            torch.manual_seed(derive_seed(seed, "hypernet"))
            fields = {name: effect.field for name, effect in self.conditions.items()}
            self.generator = hypernet(Target.of(module), fields)
        if self.generator.parametrization.residual in ("learned", "frozen"):
            self.generator.start_from(module)
        self._skeleton = (module.requires_grad_(False),)  # no part of what is trained, moved and saved
        self.hypernet = hypernet
        self._metrics: dict[str, list[torchmetrics.MetricCollection]] = {}

    def _build(self) -> nn.Module:
        if isinstance(self.builder, SearchSpace):
            if self.arguments:
                raise ValueError(f"ConditionedNetwork.arguments are for builders, not for spaces, got {self.arguments}")
            return self.builder.build(self.builder.largest())
        make = load(self.builder) if isinstance(self.builder, str) else self.builder
        made: nn.Module = make(**self.arguments)
        return made

    def tree(self) -> dict[str, Any]:
        """Return what builds module, task and conditions again; the generator describes itself in its own file."""
        return {
            "builder": describe(self.builder),
            "arguments": describe(self.arguments),
            "task": describe(self.task),
            "conditions": describe(self.conditions),
            "seed": self.seed,
        }

    @property
    def skeleton(self) -> nn.Module:
        """The module that weights are generated for, on the device of the generator; its own weights are not used."""
        return self._skeleton[0].to(self.device)

    # Training --------------------------------------------------------------------------------------------------------

    def forward(self, condition: Mapping[str, Any], *inputs: Tensor) -> Any:
        """Return the outputs of the network for one condition."""
        weights = {name: tensor[0] for name, tensor in self.generator.generate(condition).items()}
        return apply(self.skeleton.train(self.training), weights, *inputs)

    def _met(self, batch: Any, values: Mapping[str, Tensor], *key: int | str) -> Any:
        """The batch as a network with these values meets it; the same key gives the same batch."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *key))
        for name, effect in self.conditions.items():
            batch = effect.batch(batch, values[name], generator=generator)
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the mean loss of the networks of this step's conditions."""
        del batch_idx
        self.seed_step()
        key = "train", self.global_step, self.global_rank
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *key))
        condition = self._moved(self.generator.draw(self.sets, generator=generator))
        weights = self.generator.generate(condition, generator=generator)
        module = self.skeleton.train()
        losses = []
        for k in range(self.sets):
            values = {name: value[k] for name, value in condition.items()}
            own = {name: tensor[k] for name, tensor in weights.items()}
            met = self._met(batch, values, *key, k)
            losses.append(self.task.loss(apply(module, own, *self.task.inputs(met)), met, regularise=True))
            penalties = (effect.penalty(own, values[name]) for name, effect in self.conditions.items())
            losses += [penalty for penalty in penalties if penalty is not None]
        loss = torch.stack(losses).sum() / self.sets
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Make the optimiser and the schedule."""
        optimizer, schedule = self.optimizer(self.generator.parameters()), self.schedule
        if schedule is None:
            return optimizer
        total = float(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: schedule(min(1.0, step / total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _moved(self, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device) for name, value in condition.items()}

    # Validation ------------------------------------------------------------------------------------------------------

    def evaluated(self) -> dict[str, Tensor]:
        """Return the conditions of validation, ``(evaluations, *shape)`` each; the same at every call.

        Categories and bitwidths come in turn, in every combination as far as ``evaluations`` goes; others are drawn.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "evaluations"))
        condition = self.generator.draw(self.evaluations, generator=generator)
        turn = torch.arange(self.evaluations)
        for name, field in self.generator.conditions.items():
            if isinstance(field, Categorical | Bits):
                known = torch.arange(field.count) if isinstance(field, Categorical) else torch.tensor(field.widths)
                condition[name] = known[turn % len(known)]
                turn = turn // len(known)
        return self._moved(condition)

    def score(
        self, weights: Mapping[str, Tensor], values: Mapping[str, Tensor], batches: Iterable[Any]
    ) -> dict[str, float]:
        """Return the task's metrics of one weight set on data as this condition makes it, repeatably.

        Args:
            weights: name -> tensor, without K.
            values: of every condition, without K.
            batches: on the device of the generator.
        """
        metrics, module = self.task.metrics().to(self.device), self.skeleton.eval()
        with torch.no_grad():
            for number, batch in enumerate(batches):
                met = self._met(batch, values, "score", number)
                self.task.update(metrics, apply(module, weights, *self.task.inputs(met)), met)
        return {name: float(value) for name, value in metrics.compute().items()}

    def _begin(self) -> None:
        made = {name: self.task.metrics().to(self.device) for name in ("matched", "shuffled")}
        self._metrics = {name: [metrics.clone() for _ in range(self.evaluations)] for name, metrics in made.items()}

    def _add(self, batch: Any, batch_idx: int) -> None:
        condition, module = self.evaluated(), self.skeleton.eval()
        weights = self.generator.generate(condition)
        for k in range(self.evaluations):
            met = self._met(batch, {name: value[k] for name, value in condition.items()}, "score", batch_idx)
            for name, chosen in (("matched", k), ("shuffled", (k + 1) % self.evaluations)):
                own = {tensor: value[chosen] for tensor, value in weights.items()}
                self.task.update(self._metrics[name][k], apply(module, own, *self.task.inputs(met)), met)

    def _finish(self, stage: str) -> None:
        matched, shuffled = (
            [{key: float(value) for key, value in metrics.compute().items()} for metrics in self._metrics[name]]
            for name in ("matched", "shuffled")
        )
        for key, (_, direction) in self.task.quantities.items():
            values = [found[key] for found in matched]
            self.log(f"{stage}/{key}", sum(values) / len(values))
            self.log(f"{stage}/worst/{key}", max(values) if direction == "minimize" else min(values))
            self.log(f"{stage}/shuffled/{key}", sum(found[key] for found in shuffled) / len(shuffled))
        found = diagnose(self.generator, self.evaluated(), generator=torch.Generator().manual_seed(0))
        self.log_dict({f"{stage}/generator/delta": found.delta, f"{stage}/generator/spread": found.spread})

    def on_validation_epoch_start(self) -> None:
        """Begin new metrics."""
        self._begin()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score every condition, with its own weights and with those of another one."""
        self._add(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log mean, worst and shuffled."""
        self._finish("val")

    def on_test_epoch_start(self) -> None:
        """Begin new metrics."""
        self._begin()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score as in validation."""
        self._add(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log as in validation."""
        self._finish("test")


def _generatable(module: nn.Module) -> None:
    """Refuse a module whose generated weights would not be all of it.

    Raises:
        ValueError: it has batch norm, or parameters that are no floating-point numbers.
    """
    norms = [name for name, layer in module.named_modules() if _has_statistics(layer)]
    if norms:
        raise ValueError(
            f"ConditionedNetwork cannot generate for batch norm ({norms[:5]}), as every weight set needs statistics of "
            "its own; use GroupNorm or LayerNorm, or supernets.Supernet with GeneratedWeights, which calibrates"
        )
    others = [name for name, parameter in module.named_parameters() if not parameter.is_floating_point()]
    if others:
        raise ValueError(f"ConditionedNetwork generates floating-point parameters, {others[:5]} are none; use buffers")


def _has_statistics(layer: nn.Module) -> bool:
    return isinstance(layer, _NormBase) and layer.running_mean is not None
