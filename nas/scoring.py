"""A registered supernet as a model of MLflow: limits in, the best known subnetwork out.

``mlflow models serve -m models:/NAME@champion --env-manager local`` then answers what ``nas sample`` would choose.
"""

import functools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import lightning as L
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from pydantic import BaseModel, ConfigDict

from nas.addresses import Located
from nas.commands.limits import costs_for, given_limits
from nas.commands.silence import silenced
from nas.costs import Cost
from nas.evaluation import Evaluate, Screen
from nas.known import best_under, known_trials
from nas.objectives import WeightSharing
from nas.quick import best_tried, measured, quick_search
from nas.sampling import UnsatisfiableError
from nas.trainer import open_supernet
from nas.trust import refuse_quick_ranking
from search_spaces import SearchSpace
from supernets import Supernet, weights_version
from trials import Limit, ModelNotFoundError, Tracker, TrackingUnavailableError, Trial, tracking_uri

__all__ = ["SubnetworkAnswer", "SubnetworkQuestion", "SupernetModel"]

_SECONDS = 30.0


class SubnetworkQuestion(BaseModel):
    """Limits that the subnetwork shall keep, as in ``nas sample``; what is left out is no limit.

    Attributes:
        max_params: number of parameters.
        max_macs: multiply-accumulates of one example.
        max_model_size: bytes of the exported weights.
        max_weight_bits: bits of weights, in layers whose bits can be chosen.
        max_latency: milliseconds of one forward pass on the serving machine.
        min_accuracy: validation accuracy, a fraction.
        seed: of the quick search that stands in where no search has found one.
    """

    model_config = ConfigDict(extra="forbid")

    max_params: float | None = None
    max_macs: float | None = None
    max_model_size: float | None = None
    max_weight_bits: float | None = None
    max_latency: float | None = None
    min_accuracy: float | None = None
    seed: int | None = None


class SubnetworkAnswer(BaseModel):
    """The best subnetwork that is known to keep the limits.

    Attributes:
        arch_id: digest of the architecture; empty where there is none.
        architecture: choice -> candidate, as JSON, as ``nas export --architecture`` takes it.
        measurements: name -> value.
        origin: where it comes from: a search, or a quick search that stood in.
        problem: why there is none.
    """

    arch_id: str = ""
    architecture: str = ""
    measurements: dict[str, float] = {}
    origin: str = ""
    problem: str = ""


@final
class SupernetModel(PythonModel):
    """Chooses subnetworks of one supernet.

    Life cycle: MLflow makes it, calls :meth:`load_context` once, then :meth:`predict` from any number of threads.
    What was searched after it was loaded is not known to it.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the supernet and look up what its searches have found.

        Args:
            context: its ``model_config`` says ``name`` (of the registered model), ``trust`` (packages that the supernet
                may name) and may say ``storage`` (a journal of studies beside MLflow).

        Raises:
            CheckpointError: the supernet cannot be read.
        """
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # where a model of the user's own lies in every other command
        config: Mapping[str, Any] = context.model_config or {}
        located = _registered(Path(context.artifacts["supernet"]), str(config.get("name", "")))
        with silenced():
            self._supernet, self._data = open_supernet(located, None, None, trust=list(config.get("trust", ())))
            version = weights_version(self._supernet.source)
            located = _searched(located, version)
            storage = str(config.get("storage", "studies.journal"))
            self._known = known_trials(located, weights=version, study=None, storage=storage)
            self._costs = functools.cache(functools.partial(_costs, self._supernet.space))

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[SubnetworkQuestion],
        params: dict[str, Any] | None = None,
    ) -> list[SubnetworkAnswer]:
        """Answer each question by itself.

        Args:
            context: not used.
            model_input: questions.
            params: not used.
        """
        del context, params
        return [self._answer(asked) for asked in model_input]

    def _answer(self, asked: SubnetworkQuestion) -> SubnetworkAnswer:
        limits = given_limits(**asked.model_dump(exclude={"seed"}))
        space, headline = self._supernet.space, self._supernet.task.headline
        screen = Screen(space, self._costs(frozenset(limit.metric for limit in limits)), limits)
        best = best_under([measured(trial, screen) for trial in self._known.trials], limits, headline)
        if best is not None:
            return _said(best, "search")
        try:
            return _said(_quick(self._supernet, self._data, screen, limits, asked.seed or 0), "quick search")
        except UnsatisfiableError as error:
            return SubnetworkAnswer(problem=str(error))


def _costs(space: SearchSpace, limited: frozenset[str]) -> list[Cost]:
    """Return the costs that answer limits on ``limited``; making them checks their formulas, which takes a while."""
    return costs_for(space, [Limit(name, 0.0, "max") for name in sorted(limited)])


def _registered(path: Path, name: str) -> Located:
    """Return the supernet as it lies in a model that MLflow has made local."""
    return Located(f"models:/{name}", path, name or None, None, None, {}, tracking_uri())


def _searched(located: Located, weights: str) -> Located:
    """Add the tags of the registered version with these weights, which name its search; none where MLflow is away."""
    if located.name is None:
        return located
    try:
        tags = Tracker(located.tracking).version_tags(located.name, {"nas.weights": weights})
    except (TrackingUnavailableError, ModelNotFoundError):
        return located
    return Located(located.address, located.path, located.name, None, None, tags, located.tracking)


def _quick(
    supernet: Supernet, data: L.LightningDataModule, screen: Screen, limits: tuple[Limit, ...], seed: int
) -> Trial:
    refuse_quick_ranking(supernet)
    tried = quick_search(Evaluate(WeightSharing(supernet, data)), screen, seed=seed, seconds=_SECONDS)
    return best_tried(tried, limits, supernet.task.headline)[0]


def _said(trial: Trial, origin: str) -> SubnetworkAnswer:
    return SubnetworkAnswer(
        arch_id=trial.arch_id,
        architecture=json.dumps(dict(trial.architecture)),
        measurements={name: item.value for name, item in sorted(trial.measurements.items())},
        origin=origin,
    )
