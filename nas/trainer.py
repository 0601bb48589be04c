"""A Lightning Trainer that can also search."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L

from nas.addresses import Located, locate
from nas.rungs import stages
from nas.search import SearchResult
from nas.settings import SearchSettings
from nas.studies import run_study
from search_spaces import construct
from supernets import CheckpointError, Supernet, load, read_card, trusted
from supernets.readiness import check_options

__all__ = ["NASTrainer", "data_of", "open_supernet", "open_trained"]


def data_of(
    card: dict[str, object], given: L.LightningDataModule | None, *, address: str, trust: Sequence[str] = ()
) -> L.LightningDataModule:
    """Return the data module to use: the given one, else the one that a checkpoint's card describes.

    Raises:
        CheckpointError: the card names code that is not trusted.
        ValueError: there is neither.
    """
    if given is not None:
        return given
    if card.get("data") is None:
        raise ValueError(
            f"{address} does not say which data it was trained on, and calibration needs training data; "
            "name a data module: `data` in the YAML of `nas search`, --data CONFIG.yaml of `nas sample`"
        )
    try:
        made = construct(card["data"], L.LightningDataModule, trusted=trusted(trust))
    except ValueError as error:
        raise CheckpointError(
            f"data of {address}: {error}, or name the data module yourself: `data` in the YAML of `nas search`, "
            "--data CONFIG.yaml of `nas sample`"
        ) from error
    assert isinstance(made, L.LightningDataModule)  # noqa: S101 - construct has checked
    return made


def open_supernet(
    located: Located,
    model: Supernet | None,
    data: L.LightningDataModule | None,
    *,
    trust: Sequence[str] = (),
) -> tuple[Supernet, L.LightningDataModule]:
    """Return the trained supernet and its data module.

    Args:
        located: the checkpoint.
        model: what the configuration describes, checked against the checkpoint; ``None`` takes the checkpoint's.
        data: the same for the data.
        trust: packages of the user's own that the checkpoint may name, beside those of ``model``.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        CheckpointMismatchError: it belongs to another space than ``model``.
    """
    card = read_card(located.path)
    names = [*trust, *(() if model is None else _packages(model))]
    supernet = load(located.path, space=None if model is None else model.space, trust=names)
    return supernet, data_of(card, data, address=located.address, trust=names)


def open_trained(
    located: Located, model: L.LightningModule | None, data: L.LightningDataModule | None
) -> tuple[L.LightningModule, L.LightningDataModule]:
    """Return what was trained, a supernet or a hypernetwork over conditions, and its data module, to be scored.

    Args:
        located: the checkpoint, or the folder that `nas fit` saved.
        model: what the configuration describes, if anything.
        data: the same for the data.

    Raises:
        CheckpointError: it cannot be read, or is a hypernetwork that samples for data sets.
    """
    from nas.conditioned import ConditionedNetwork
    from nas.hypernetworks import CARD_FILE, load_conditioned
    from nas.samplers import is_sampler

    if not (located.path / CARD_FILE).exists():
        return open_supernet(located, model if isinstance(model, Supernet) else None, data)
    if is_sampler(located.path):
        raise CheckpointError(
            f"{located.address} samples networks for data sets and is scored on one of them: "
            f"nas generate {located.address} --data data.yaml --count 20"
        )
    names = (
        _known(model.task, model.builder, *model.conditions.values()) if isinstance(model, ConditionedNetwork) else ()
    )
    saved = load_conditioned(located.path, trust=sorted(names))
    return saved.network, data_of({"data": saved.data}, data, address=located.address, trust=sorted(names))


def _packages(model: Supernet) -> set[str]:
    """Packages of the parts of a supernet that the user has described, and so trusts."""
    return _known(model.space, model.task, model.source, model.rule)


def _known(*parts: object) -> set[str]:
    """Packages that objects come from, or that hold a function or the class of that name."""
    names = (part if isinstance(part, str) else getattr(part, "__module__", "") for part in parts)
    return {str(name).partition(".")[0] for name in names}


class NASTrainer(L.Trainer):
    """``lightning.Trainer`` with one more verb: ``search``."""

    def fit(self, model: L.LightningModule, *given: Any, **named: Any) -> None:
        """Train; see ``lightning.Trainer.fit``.

        Raises:
            ValueError: the trainer is to clip or accumulate gradients of a supernet.
        """
        if isinstance(model, Supernet):
            check_options(self)
        super().fit(model, *given, **named)

    def search(
        self,
        model: Supernet | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        *,
        settings: SearchSettings | None = None,
        tracking: str | None = None,
        command: str = "",
        config: str = "",
        report: bool = True,
        locator: Callable[..., Located] = locate,
    ) -> SearchResult:
        """Search the subnetworks of a trained supernet.

        Running a study again continues it. With ``settings.rungs`` each rung is a study of its own, and the result is
        that of the last one.

        Args:
            model: the supernet, or what a checkpoint is checked against; left out, the checkpoint says.
            datamodule: its data; left out, the checkpoint says.
            ckpt_path: trained supernet: a .ckpt file, a folder that `nas fit` saved, or models:/NAME@alias.
            settings: the ``search`` section of a configuration.
            tracking: MLflow address that mirrors the study; ``None`` for no mirror.
            command: how a person continues the study.
            config: the whole configuration, kept with the search.
            report: whether to write the report at the end.
            locator: finds the files of ``ckpt_path``.

        Raises:
            ValueError: there is neither a model nor a checkpoint, or the settings do not fit them.
        """
        settings = SearchSettings() if settings is None else settings
        located = None if ckpt_path is None else locator(ckpt_path, tracking=tracking)
        if located is not None:
            supernet, data = open_supernet(located, model, datamodule)
        elif model is not None and datamodule is not None:
            supernet, data = model, datamodule
        else:
            raise ValueError("search needs --ckpt_path, or both a model and data in the configuration")
        if settings.workers == 0:
            supernet.to(self.strategy.root_device)
        for stage in stages(settings):
            result = run_study(
                supernet.eval(),
                data,
                stage,
                tracking=tracking,
                origin=located,
                command=command,
                config=config,
                report=report,
            )
            if result.reason == "interrupted":
                break
        return result
