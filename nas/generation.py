"""Weights on request: from a hypernetwork for a condition, from a generated supernet for sizes, and what opens all."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import lightning as L
import torch
from safetensors.torch import save
from torch import Tensor

from hypernets import Examples, save_weights
from hypernets.fields import Field
from nas.addresses import Located
from nas.conditioned import ConditionedNetwork
from nas.dataset_maker import DatasetMaker
from nas.hypernetworks import CARD_FILE, load_conditioned
from nas.making import Generation, GenerationError, Request, WeightMaker, refuse_sampling, replace_file
from nas.objectives import WeightSharing, prepare
from nas.samplers import is_sampler, load_sampler
from nas.trainer import data_of, open_supernet
from search_spaces import Architecture, InvalidArchitectureError
from supernets import Supernet, read_card, weights_version

__all__ = ["ConditionMaker", "SizeMaker", "open_weight_maker"]

_FORMAT_VERSION = 1


def open_weight_maker(
    located: Located, *, data: L.LightningDataModule | None = None, trust: Sequence[str] = ()
) -> WeightMaker:
    """Return what generates weights of a saved model.

    Args:
        located: a folder that `nas fit` saved for a hypernetwork, or a supernet whose weights are generated.
        data: evaluated on; what the files describe when left out. A hypernetwork that samples for data sets takes this
            one as its condition.
        trust: packages of the user's own that the files may name.

    Raises:
        CheckpointError: the files cannot be read.
        GenerationError: the supernet stores its weights.
    """
    if is_sampler(located.path):
        return DatasetMaker(load_sampler(located.path, trust=trust), data)
    if located.path.is_dir() and (located.path / CARD_FILE).exists():
        saved = load_conditioned(located.path, trust=trust)
        if data is None and saved.data is not None:
            data = data_of({"data": saved.data}, None, address=located.address, trust=trust)
        return ConditionMaker(saved.network, data)
    supernet, module = open_supernet(located, None, data, trust=trust)
    if not supernet.source.generated:
        source = read_card(located.path)["model"]["source"]["class_path"]
        raise GenerationError(
            f"nas generate needs generated weights, and {located.address} has {source}, which stores them; "
            f"use `nas export {located.address}`",
            (),
        )
    return SizeMaker(supernet, module)


@final
class ConditionMaker(WeightMaker):
    """Weights of a :class:`nas.ConditionedNetwork`.

    Args:
        network: trained.
        data: evaluated on; ``None`` for no evaluation.
    """

    def __init__(self, network: ConditionedNetwork, data: L.LightningDataModule | None) -> None:
        self.network = network
        self.data = data
        self._scoring = threading.Lock()  # one skeleton serves all requests
        if data is not None:
            prepare(data)

    @property
    def fields(self) -> Mapping[str, str]:
        """Name -> the field as it is written."""
        return {name: str(found) for name, found in self.network.generator.conditions.items()}

    def check(self, request: Request) -> None:
        """See :class:`WeightMaker`."""
        self._read(request)

    def _read(self, request: Request) -> dict[str, Tensor]:
        """The values of a request, ``(1, *shape)`` each."""
        known = self.network.generator.conditions
        refuse_sampling(request)
        if request.size:
            raise GenerationError(
                f"this hypernetwork takes conditions, not sizes ({list(request.size)}); its fields are {list(known)}",
                tuple(request.size),
            )
        missing = [name for name in known if name not in request.condition]
        unknown = [name for name in request.condition if name not in known]
        if missing or unknown:
            raise GenerationError(
                f"a condition needs exactly the fields {list(known)}: {missing=}, {unknown=}", (*missing, *unknown)
            )
        like = next(self.network.generator.parameters())
        return {name: _value(found, request.condition[name], name, like) for name, found in known.items()}

    def write(self, request: Request, path: str | Path, *, evaluate: bool = True) -> Generation:
        """See :class:`WeightMaker`."""
        values = self._read(request)
        evaluation = self._evaluation(values, request.seed) if evaluate and self.data is not None else {}
        provenance = save_weights(self.network.generator, values, path, seed=request.seed, evaluation=evaluation)
        return Generation(Path(path), provenance)

    def _evaluation(self, values: Mapping[str, Tensor], seed: int) -> dict[str, float]:
        """Scores of both held-out splits, as this condition makes them."""
        assert self.data is not None  # noqa: S101 - asked before
        network = self.network
        with torch.no_grad():
            made = network.generator.generate(values, generator=torch.Generator().manual_seed(seed))
        weights = {name: tensor[0] for name, tensor in made.items()}
        single = {name: value[0] for name, value in values.items()}
        loaders = {"val": self.data.val_dataloader(), "test": self.data.test_dataloader()}
        with self._scoring:
            scores = {split: network.score(weights, single, loader) for split, loader in loaders.items()}
        return {f"{split}/{name}": value for split, found in scores.items() for name, value in found.items()}


@final
class SizeMaker(WeightMaker):
    """Weights of one architecture of a supernet whose source generates them, batch norm calibrated.

    Args:
        supernet: trained.
        data: calibrates and evaluates.
    """

    def __init__(self, supernet: Supernet, data: L.LightningDataModule) -> None:
        self.supernet = supernet
        self.objectives = {split: WeightSharing(supernet, data, split=split) for split in ("val", "test")}

    @property
    def fields(self) -> Mapping[str, str]:
        """Choice -> its candidates."""
        return {choice.name: ", ".join(map(str, choice.candidates)) for choice in self.supernet.space.choices}

    def check(self, request: Request) -> None:
        """See :class:`WeightMaker`."""
        self.architecture(request)

    def architecture(self, request: Request) -> Architecture:
        """Return the architecture of a request.

        Raises:
            GenerationError: names the choices that are unknown or have no such candidate.
        """
        space, source = self.supernet.space, self.supernet.source
        refuse_sampling(request)
        if request.condition:
            raise GenerationError(
                f"this supernet takes sizes, not conditions ({list(request.condition)}); its choices are "
                f"{[choice.name for choice in space.choices]}",
                tuple(request.condition),
            )
        table = {choice.name: choice.candidates[-1] for choice in space.choices}
        faults: list[tuple[str, str]] = []
        for name, value in sorted(request.size.items(), key=lambda item: "." in item[0]):  # the particular ones last
            meant = [choice for choice in space.choices if choice.name == name or choice.name.endswith(f".{name}")]
            if not meant:
                faults.append((name, f"{name} is no choice of {[choice.name for choice in space.choices]}"))
            for choice in meant:
                if value in choice.candidates:
                    table[choice.name] = choice.candidates[choice.candidates.index(value)]
                elif source.resizable:
                    try:
                        source.sized(table | {choice.name: value})
                        table[choice.name] = value
                    except InvalidArchitectureError as error:
                        faults.append((name, str(error)))
                else:
                    faults.append((name, f"{choice.name} must be one of {choice.candidates}, got {value!r}"))
        if faults:
            raise GenerationError(
                "; ".join(text for _, text in faults), tuple(dict.fromkeys(name for name, _ in faults))
            )
        return source.sized(table)

    def write(self, request: Request, path: str | Path, *, evaluate: bool = True) -> Generation:
        """See :class:`WeightMaker`."""
        architecture = self.architecture(request)
        module = self.objectives["val"].module(architecture, owned=True)
        evaluation = {
            f"{split}/{name}": value
            for split, objective in (self.objectives.items() if evaluate else ())
            for name, value in objective(architecture, seed=request.seed).measurements.items()
        }
        provenance = {
            "format_version": _FORMAT_VERSION,
            "hypernetwork": (version := weights_version(self.supernet.source)),
            **self.supernet.source.provenance(),
            "weights": version,
            "space": self.supernet.space.digest,
            "arch_id": architecture.arch_id,
            "condition": dict(architecture),
            "seed": request.seed,
            "evaluation": evaluation,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in _once(module.state_dict()).items()}
        replace_file(Path(path), save(tensors, metadata={"generated": json.dumps(provenance, sort_keys=True)}))
        return Generation(Path(path), provenance)


def _value(found: Field, given: Any, name: str, like: Tensor) -> Tensor:
    """One value of a field, with K = 1 in front.

    Raises:
        GenerationError: it does not fit.
    """
    if isinstance(found, Examples):
        raise GenerationError(f"condition {name!r} is a set of examples, which cannot be written as text", (name,))
    try:
        value = torch.as_tensor(given)[None]
    except (ValueError, TypeError, RuntimeError) as error:
        raise GenerationError(
            f"condition {name!r} must be a number or a list of numbers, got {given!r}", (name,)
        ) from error
    try:
        return found.read(value, name, like=like)
    except ValueError as error:
        raise GenerationError(str(error), (name,)) from error


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, none sharing memory with another."""
    return {name: value.clone() for name, value in state.items()}
