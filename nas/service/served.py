"""One version of one supernet, loaded and ready to answer."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from nas.addresses import Located
from nas.bitops import chosen_layers
from nas.commands.limits import costs_for
from nas.commands.sample import data_from
from nas.evaluation import Evaluate, Job, Screen
from nas.generation import SizeMaker, open_weight_maker
from nas.hypernetworks import CARD_FILE
from nas.known import Known, known_trials
from nas.making import WeightMaker
from nas.objectives import WeightSharing
from nas.quick import measured
from nas.sampling import reach
from nas.service.identity import revision_of, subnetwork_id
from nas.service.settings import Offer, ServiceSettings
from nas.trainer import open_supernet
from search_spaces import FULL_PRECISION, Architecture, SearchSpace, derive_seed, describe
from supernets import Supernet, read_card
from supernets.calibration import norms
from supernets.formats import FORMATS, QUANTIZED_FORMATS
from trials import Limit, Metric, Outcome

__all__ = ["Generator", "Memory", "Served", "load", "with_trials"]

COSTS = ("params", "macs", "model_size")
_OUTCOMES = 4096
_MODULES = 16


@final
class Memory:
    """Outcomes and calibrated subnetworks that were computed before; bounded, for any number of threads.

    Args:
        evaluate: scores an architecture.
        objective: calibrates one.
    """

    def __init__(self, evaluate: Evaluate, objective: WeightSharing) -> None:
        self._evaluate = evaluate
        self._objective = objective
        self._outcomes: OrderedDict[Architecture, Outcome] = OrderedDict()
        self._modules: OrderedDict[Architecture, nn.Module] = OrderedDict()
        self._lock = threading.Lock()

    def outcome(self, job: Job) -> Outcome:
        """Return the score of an architecture; the seed of the job has no part in it."""
        with self._lock:
            found = self._outcomes.get(job.architecture)
        if found is None:
            found = self._evaluate(job)
            with self._lock:
                self._outcomes[job.architecture] = found
                while len(self._outcomes) > _OUTCOMES:
                    self._outcomes.popitem(last=False)
        return found

    def module(self, architecture: Architecture) -> nn.Module:
        """Return the calibrated subnetwork, to be run only."""
        with self._lock:
            found = self._modules.get(architecture)
            if found is not None:
                self._modules.move_to_end(architecture)
                return found
        made = self._objective.module(architecture)
        with self._lock:
            self._modules[architecture] = made
            while len(self._modules) > _MODULES:
                self._modules.popitem(last=False)
        return made


@final
@dataclass(frozen=True, eq=False)
class Served:
    """One version of one supernet; immutable, and for any number of threads.

    Attributes:
        offer: name and address.
        located: its files.
        supernet: trained; only read.
        objective: calibrates and scores, its data in memory.
        screen: costs.
        revision: of everything that the bytes of a subnetwork depend on.
        known: trials that answers are chosen from, with all costs.
        reach: cost -> (smallest, largest) of the space.
        memory: what was computed before.
        maker: generates weights, where the source of the supernet does.
    """

    offer: Offer
    located: Located
    supernet: Supernet
    objective: WeightSharing
    screen: Screen
    revision: str
    known: Known
    reach: Mapping[str, tuple[float, float]]
    memory: Memory
    maker: WeightMaker | None = None

    @property
    def space(self) -> SearchSpace:
        """The architectures."""
        return self.supernet.space

    @cached_property
    def metrics(self) -> Mapping[str, Metric]:
        """Everything that can be limited or optimised: costs, metrics of the task, and what studies measured."""
        found = {
            name: Metric(name, item.unit, item.direction)
            for trial in self.known.trials
            for name, item in trial.measurements.items()
        }
        return found | self.computed()

    def computed(self) -> dict[str, Metric]:
        """Return what this process can measure itself."""
        return dict(self.screen.metrics) | {metric.name: metric for metric in self.objective.metrics}

    def screened(self, limits: Sequence[Limit]) -> Screen:
        """Return a screen for limits that remembers the costs measured so far."""
        screen = Screen(self.space, self.screen.costs, limits)
        screen.meter = self.screen.meter
        return screen

    def name_of(self, architecture: Architecture) -> str:
        """Return the id of one of its subnetworks."""
        return subnetwork_id(self.revision, self.space, architecture)

    def formats(self, architecture: Architecture | None = None) -> tuple[str, ...]:
        """Return which formats the files of a subnetwork can have; of any subnetwork by default."""
        packed = self.supernet.source.quantizes and (
            architecture is None
            or any(bits < FULL_PRECISION for bits, _ in self.space.bitwidths(architecture).values())
        )
        return (*FORMATS, *QUANTIZED_FORMATS) if packed else FORMATS

    def extracted(self, architecture: Architecture) -> tuple[nn.Module, nn.Module]:
        """Return the calibrated subnetwork, owning its tensors, and a binding to the supernet to compare it with."""
        handed = self.objective.module(architecture, owned=True)
        bound = self.supernet.bind(architecture)
        statistics = norms(handed)
        for name, layer in norms(bound).items():
            for own, given in zip(layer.buffers(recurse=False), statistics[name].buffers(recurse=False), strict=True):
                own.copy_(given)
        return handed, bound


@final
@dataclass(frozen=True, eq=False)
class Generator:
    """One version of one hypernetwork.

    Attributes:
        offer: name and address.
        located: its files.
        revision: of its files.
        maker: generates weights.
    """

    offer: Offer
    located: Located
    revision: str
    maker: WeightMaker


def load(offer: Offer, settings: ServiceSettings) -> "Served | Generator":
    """Read a supernet or a hypernetwork.

    Raises:
        CheckpointError: it cannot be read.
        ModelNotFoundError: there is no such registered model.
        ValueError: a supernet does not name its data, and the settings do not either.
    """
    located = offer.locate()
    if not (located.path / CARD_FILE).exists():
        return load_served(offer, settings, located)
    files = [path.read_bytes() for path in sorted(located.path.iterdir()) if path.is_file()]
    revision = hashlib.sha256(b"".join(files)).hexdigest()[:16]
    maker = open_weight_maker(located, data=data_from(settings.data), trust=settings.trust)
    return Generator(offer, located, revision, maker)


def load_served(offer: Offer, settings: ServiceSettings, located: Located) -> Served:
    """Read a supernet, its data and its studies; see :func:`load`."""
    data = data_from(settings.data)
    supernet, module = open_supernet(located, None, data, trust=settings.trust)
    supernet.requires_grad_(False).eval()
    objective = WeightSharing(supernet, module)
    objective.batches()
    costs = (*COSTS, "weight_bits") if chosen_layers(supernet.space) else COSTS
    screen = Screen(supernet.space, costs_for(supernet.space, (), always=costs), ())
    card = read_card(located.path)
    described: Any = card["data"] if data is None else _described(module, settings.data)
    generator = torch.Generator().manual_seed(derive_seed(0, "reach"))
    served = Served(
        offer=offer,
        located=located,
        supernet=supernet,
        objective=objective,
        screen=screen,
        revision=revision_of(card, described),
        known=Known((), "no search"),
        reach=reach(supernet.space, screen.meter, generator),
        memory=Memory(Evaluate(objective), objective),
        maker=SizeMaker(supernet, module) if supernet.source.generated else None,
    )
    served.memory.module(supernet.space.smallest())
    return with_trials(served, settings)


def _described(data: Any, path: str | None) -> Any:
    try:
        return describe(data)
    except ValueError:
        return Path(path).read_text(encoding="utf-8") if path is not None else None


def with_trials(served: Served, settings: ServiceSettings) -> Served:
    """Return ``served`` with the trials that its studies hold now."""
    known = known_trials(
        served.located, weights=served.objective.version, study=settings.study, storage=settings.storage
    )
    trials = tuple(measured(trial, served.screen) for trial in known.trials)
    return replace(served, known=Known(trials, known.source))
