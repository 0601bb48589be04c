"""``nas fit | validate | test | search``: LightningCLI over one Trainer and one YAML."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from nas.addresses import locate
from nas.callbacks import FitProgress, KeepConfig, LogOften
from nas.commands.boundary import INTERRUPTED, UsageError
from nas.commands.functions import OneLineErrors
from nas.commands.places import Placing
from nas.commands.silence import silenced
from nas.conditioned import ConditionedNetwork
from nas.hypernetworks import publish_conditioned
from nas.own_code import warn_of_data
from nas.publishing import new_run_folder, publish
from nas.samplers import publish_sampler
from nas.search import SearchResult
from nas.settings import SearchSettings
from nas.trainer import NASTrainer
from nas.zoo_diffusion import ZooDiffusion
from supernets import CheckpointMismatchError, Supernet, load_weights, read_card
from trials import TrackingUnavailableError, tracking_uri

__all__ = ["NASCLI", "NASParser", "run"]

_SUBCOMMANDS = ("fit", "validate", "test", "search")


class NASParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with errors of one line."""

    def instantiate_classes(self, cfg: Any, instantiate_groups: bool = True) -> Any:
        """Make the objects of a configuration; what a constructor refuses is told with its place in the file."""
        tree = cfg.as_dict()
        placing = Placing(tree.get(tree.get("subcommand"), tree), {"search": SearchSettings})
        return self.instantiate(cfg, instantiate_groups, instantiators=[(placing, object, True)])


class NASCLI(LightningCLI):
    """Parses one configuration of the sections ``trainer``, ``model``, ``data`` and ``search``, and runs a verb on it.

    Every verb knows every section, so a misspelt key is found by the first command that reads the file.

    Args:
        arguments: the command line after ``nas``; ``worker`` is a search that leaves MLflow and the report to others.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.worker = list(arguments[:1]) == ["worker"]
        self.arguments = ["search", *arguments[1:]] if self.worker else list(arguments)
        self.folder: Path | None = None
        self.result: SearchResult | None = None
        quiet: dict[str, Any] = {"allow_abbrev": False}
        super().__init__(
            save_config_callback=KeepConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_class=NASTrainer,
            trainer_defaults={"enable_model_summary": False, "num_sanity_val_steps": 0, "default_root_dir": "runs"},
            seed_everything_default=0,
            parser_kwargs={"prog": "nas", **quiet, **{name: dict(quiet) for name in _SUBCOMMANDS}},
            parser_class=NASParser,
            args=self.arguments,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, and the arguments of each that do not come from the command line."""
        inherited = {name: hidden for name, hidden in LightningCLI.subcommands().items() if name in _SUBCOMMANDS}
        return {
            **{name: hidden | {"weights_only"} for name, hidden in inherited.items()},
            "search": {"model", "datamodule", "settings", "tracking", "command", "config", "locator", "report"},
        }

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections; a checkpoint may stand in for ``model`` and ``data``, so they are not required here."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True, required=False)
        parser.add_class_arguments(SearchSettings, "search")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Add the options of the verb that runs; those of ``search`` without a heading, which the section has already.

        The other verbs get none: three more parsers take more than half as long again as the rest.
        """
        if subcommand != self.arguments[0]:
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        if subcommand != "search":
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        hidden: set[str | int] = set(self.subcommands()[subcommand])
        added = parser.add_method_arguments(klass, subcommand, skip=hidden, as_group=False)
        self._subcommand_method_arguments[subcommand] = added
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the given arguments and nothing else."""
        del args
        self.config = parser.parse_args(self.arguments)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: our checkpoints describe themselves."""

    def before_instantiate_classes(self) -> None:
        """Require what the verb cannot do without, before anything is built."""
        given = self.config[self.subcommand]
        missing = [name for name in ("model", "data") if given.get(name) is None]
        if self.subcommand == "fit" and missing:
            raise UsageError(f"fit needs the section {' and '.join(missing)}; give a YAML file with -c")
        if self.subcommand != "fit" and not given.get("ckpt_path") and self._needs_checkpoint(missing):
            raise UsageError(
                f"{self.subcommand} needs --ckpt_path: the supernet that `nas fit` saved, a .ckpt file, or "
                "models:/NAME@alias"
            )

    def _needs_checkpoint(self, missing: list[str]) -> bool:
        if self.subcommand != "search" or missing:
            return True
        objective = str(self.config[self.subcommand].search.get("objective"))
        return "WeightSharing" in objective  # an objective that trains by itself needs no trained supernet

    @property
    def settings(self) -> SearchSettings:
        """The ``search`` section."""
        settings = self._get(self.config_init, "search")
        assert isinstance(settings, SearchSettings)  # noqa: S101 - the parser has built it
        return settings

    @property
    def tracking(self) -> str | None:
        """The MLflow address, unless ``trainer.logger`` is false or something else."""
        return tracking_uri() if self._get(self.config, "trainer").get("logger") in (None, True) else None

    @property
    def command(self) -> str:
        """The command line as a person would repeat it."""
        return shlex.join(["nas", *self.arguments])

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer; ``fit`` gets a run folder of its own, a logger, checkpoints and one line of progress."""
        config = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
        if config.get("fast_dev_run"):
            return super().instantiate_trainer(**kwargs)
        callbacks = _listed(config.get("callbacks"))
        if self.tracking is not None:
            kwargs["logger"] = self._logger()
        self.folder = new_run_folder(Path(config.get("default_root_dir") or "runs") / self.settings.study)
        if config.get("enable_checkpointing") is not False and not _any(callbacks, ModelCheckpoint):
            callbacks.append(ModelCheckpoint(self.folder, filename="last", enable_version_counter=False))
        if config.get("enable_progress_bar") is not False and not _any(callbacks, ProgressBar):
            callbacks.append(FitProgress())
        return super().instantiate_trainer(callbacks=[*callbacks, LogOften()], **kwargs)

    def _logger(self) -> Any:
        from trials.logger import TrackingLogger

        try:
            return TrackingLogger(
                self.settings.study, run_name=f"{self.subcommand} {self.settings.study}", tracking_uri=self.tracking
            )
        except TrackingUnavailableError as error:
            raise UsageError(
                f"trainer.logger: {error}; set MLFLOW_TRACKING_URI, or say --trainer.logger false to train without it"
            ) from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "search":
            text = self._parser(subcommand).dump(self.config[subcommand], skip_none=False)
            return {
                **given,
                "settings": self.settings,
                "tracking": None if self.worker else self.tracking,
                "report": not self.worker,
                "command": self.command,
                "config": text,
            }
        if subcommand == "fit":
            if isinstance(self.model, ZooDiffusion):  # its batches are tasks of the zoo
                self.model.learn_from(given.pop("datamodule"))
            return {**given, **self._resumption(given.get("ckpt_path"))}
        located = locate(given["ckpt_path"])
        from nas.trainer import open_trained

        given["model"], given["datamodule"] = open_trained(located, self.model, given.get("datamodule"))
        return {**given, "ckpt_path": None}

    def _resumption(self, checkpoint: str | None) -> dict[str, Any]:
        """Continue a .ckpt file where it stopped, or start anew from the weights of a saved supernet."""
        if checkpoint is None:
            return {}
        path = locate(checkpoint).path
        if isinstance(self.model, ConditionedNetwork | ZooDiffusion) and path.is_file():
            return {"ckpt_path": str(path), "weights_only": True}
        if path.is_dir():
            if not isinstance(self.model, Supernet):
                raise UsageError(f"fit --ckpt_path takes the weights of {path} for a supernets.Supernet, model is none")
            load_weights(self.model, path)
            print(f"[fit] starts from the weights in {path}")
            return {"ckpt_path": None}
        card = read_card(path)
        if isinstance(self.model, Supernet) and card["space_digest"] != self.model.space.digest:
            raise CheckpointMismatchError(
                f"{path} was trained on space {card['space_digest']}, but `model` gives {self.model.space.digest}; "
                "continue with the YAML it was trained with"
            )
        return {"ckpt_path": str(path), "weights_only": True}

    def fit(self, **given: Any) -> None:
        """Train; before it say what will not be kept, and after Ctrl-C how to continue."""
        if self.folder is not None:
            warn_of_data(given.get("datamodule"))
        try:
            self.trainer.fit(**given)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            last = None if self.folder is None else self.folder / "last.ckpt"
            if last is not None and last.exists():
                options = _config_options(self.arguments)
                print(f"[fit] continue with: nas fit {options} --ckpt_path {last}", file=sys.stderr)
            raise KeyboardInterrupt from None

    def search(self, **given: Any) -> None:
        """Run the search and keep its result for the exit code."""
        trainer = self.trainer
        assert isinstance(trainer, NASTrainer)  # noqa: S101 - trainer_class says so
        self.result = trainer.search(**given)

    def after_fit(self) -> None:
        """Save, register and announce the supernet or the hypernetwork."""
        if self.folder is None or not self.trainer.is_global_zero:
            return
        if isinstance(self.model, ConditionedNetwork):
            publish_conditioned(
                self.model, self.datamodule, self.folder, study=self.settings.study, logger=self.trainer.logger
            )
        if isinstance(self.model, ZooDiffusion):
            publish_sampler(
                self.model.sampler, self.datamodule, self.folder, study=self.settings.study, logger=self.trainer.logger
            )
        if isinstance(self.model, Supernet):
            publish(
                self.model,
                self.datamodule,
                self.folder,
                study=self.settings.study,
                logger=self.trainer.logger,
                options=_config_options(self.arguments),
                scores={name: float(value) for name, value in self.trainer.callback_metrics.items()},
            )


def _listed(callbacks: Any) -> list[Callback]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def _any(callbacks: Sequence[Callback], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _config_options(arguments: Sequence[str]) -> str:
    """Return what of a command line belongs in the next one: ``-c FILE`` and the options of the ``search`` section."""
    found = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("-c", "--config") or argument.startswith(("--config=", "--search.")):
            found.append(argument)
            if "=" not in argument and rest:
                found.append(rest.pop(0))
    return shlex.join(found)


def run(arguments: Sequence[str]) -> int:
    """Run one verb and return its exit code: 130 after Ctrl-C, 1 after a search of which every evaluation failed.

    Raises:
        UsageError: the command line or the configuration cannot be used.
    """
    with silenced():
        try:
            result = NASCLI(arguments).result
        except SystemExit as leaving:  # the parser's way to end --help and --print_config
            return leaving.code if isinstance(leaving.code, int) else 0
    if result is None:
        return 0
    return INTERRUPTED if result.reason == "interrupted" else int(result.failed)
