"""May scores with generated weights rank candidates? Measured against networks that are trained by themselves."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch

from nas.addresses import locate
from nas.commands.tables import amount, table
from nas.evaluation import Screen
from nas.objectives import FromScratch, Objective, WeightSharing
from nas.progress import Progress
from nas.rankings import Ranking, ranking
from nas.sampling import sample_within
from nas.standalone import Recipe
from search_spaces import Architecture, construct, derive_seed, describe
from supernets import SamplingRule, SandwichRule, SharedWeights, Supernet, load
from trials import write_atomically

__all__ = ["TrustGate", "TrustReport", "UntrustedError", "refuse_quick_ranking"]

_FEWEST = 12
_ALONE = "trained alone"


class UntrustedError(ValueError):
    """Scores with generated weights were not shown to rank candidates."""


@dataclass(frozen=True)
class TrustReport:
    """What a gate has measured.

    Attributes:
        subject: what was asked; another subject needs another measurement.
        source: name of the weight source under test, a column of ``scores``.
        metric: name of what was scored.
        architectures: identities of the architectures.
        scores: column -> score of each; one column is of the networks trained alone.
        rankings: column -> its ranking.
    """

    subject: str
    source: str
    metric: str
    architectures: Sequence[str]
    scores: Mapping[str, Sequence[float]]
    rankings: Mapping[str, Ranking]

    @property
    def trusted(self) -> bool:
        """Whether the interval of the source lies above 0."""
        return self.rankings[self.source].low > 0

    def __str__(self) -> str:
        others = ", ".join(f"{name} {found}" for name, found in self.rankings.items() if name != self.source)
        return f"Kendall tau of {self.source} {self.rankings[self.source]}" + (f"; {others}" if others else "")

    def table(self, unit: str) -> str:
        """Return the scores and rankings for a terminal."""
        rows = [
            [arch_id, *(amount(column[row], unit) for column in self.scores.values())]
            for row, arch_id in enumerate(self.architectures)
        ]
        found = ["" if name not in self.rankings else str(self.rankings[name]) for name in self.scores]
        return table([self.metric, *self.scores], [*rows, ["Kendall tau", *found]])

    def to_json(self) -> str:
        """Return what :meth:`from_json` needs."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "TrustReport":
        """Return the report that wrote ``text``."""
        data: dict[str, Any] = json.loads(text)
        rankings = {name: Ranking(**found) for name, found in data.pop("rankings").items()}
        return cls(rankings=rankings, **data)


@dataclass(frozen=True)
class TrustGate:
    """Trains some networks by themselves and asks whether scores with generated weights put them in the same order.

    Architectures are drawn within the limits of the search. Their order by the scores is compared with the order of the
    networks trained alone by Kendall's tau-b, with a bootstrap interval over the architectures (percentiles). The gate
    opens if the interval lies above 0. Shared weights stand in the same table as the baseline.

    Args:
        networks: trained by themselves, at least 12.
        recipe: how each is trained.
        baseline: a supernet with shared weights of the same space (a folder or models:/NAME@alias); ``train`` to train
            one with the same sampling rule by ``recipe``, or with the sandwich rule where that one needs more steps;
            ``none`` for no baseline.
        level: of the interval.
        resamples: of the bootstrap.
        override: search all the same where the gate stays shut.

    Raises:
        ValueError: an argument is out of range.
    """

    networks: int = _FEWEST
    recipe: Recipe = field(default_factory=Recipe)
    baseline: str = "train"
    level: float = 0.95
    resamples: int = 2000
    override: bool = False

    def __post_init__(self) -> None:
        if self.networks < _FEWEST or not 0 < self.level < 1 or self.resamples < 100:
            raise ValueError(
                f"search.trust needs networks >= {_FEWEST}, level in (0, 1) and resamples >= 100, got "
                f"networks={self.networks}, level={self.level}, resamples={self.resamples}"
            )

    def __call__(
        self,
        supernet: Supernet,
        data: L.LightningDataModule,
        objective: Objective,
        screen: Screen,
        *,
        metric: str,
        seed: int,
        path: Path,
    ) -> TrustReport:
        """Measure, or read what was measured before, and say so.

        Args:
            supernet: trained, with generated weights.
            data: what candidates are scored on.
            objective: scores candidates with the weights of ``supernet``.
            screen: the limits within which architectures are drawn.
            metric: of ``objective``, whose order is compared.
            seed: of the draw, the networks and the bootstrap.
            path: of the report, kept so that a study that continues measures nothing twice.

        Raises:
            UntrustedError: the interval does not lie above 0, and ``override`` is off.
            ValueError: the space has too few architectures within the limits.
        """
        subject = self._subject(objective, screen, metric, seed)
        report = self._known(path, subject)
        if report is None:
            architectures = self._drawn(screen, seed)
            scores = self._scores(supernet, data, objective, architectures, metric, seed)
            rankings = {
                name: ranking(scores[_ALONE], found, level=self.level, resamples=self.resamples, seed=seed)
                for name, found in scores.items()
                if name != _ALONE
            }
            identities = [architecture.arch_id for architecture in architectures]
            report = TrustReport(subject, type(supernet.source).__name__, metric, identities, scores, rankings)
            write_atomically(path, report.to_json())
        unit = supernet.task.quantities[report.metric][0]
        print(f"\n{report.table(unit)}\n")
        if report.trusted:
            print(f"[trust] scores may rank candidates: {report}")
        elif self.override:
            print(f"[trust] the order of scores may mean nothing, and search.trust.override is on: {report}")
        else:
            raise UntrustedError(
                f"scores with {report.source} must rank networks as training them alone does, with a Kendall tau whose "
                f"{100 * self.level:g} % interval lies above 0: {report}, over {len(report.architectures)} networks; "
                "train longer, use SharedWeights, search with objective nas.FromScratch, measure more networks with "
                "search.trust.networks, or set search.trust.override: true"
            )
        return report

    def _subject(self, objective: Objective, screen: Screen, metric: str, seed: int) -> str:
        limits = ",".join(f"{limit.key}={limit.bound:g}" for limit in screen.limits)
        settings = f"{self.networks}x{self.recipe.steps} {self.baseline} {self.level:g} {self.resamples} seed {seed}"
        return f"{metric} {objective.identity()} {screen.space.digest} {settings} {limits}".strip()

    @staticmethod
    def _known(path: Path, subject: str) -> TrustReport | None:
        try:
            report = TrustReport.from_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError, TypeError, KeyError):
            return None
        return report if report.subject == subject else None

    def _scores(
        self,
        supernet: Supernet,
        data: L.LightningDataModule,
        objective: Objective,
        architectures: Sequence[Architecture],
        metric: str,
        seed: int,
    ) -> dict[str, list[float]]:
        """Every column of the table."""
        alone = FromScratch(supernet, data, recipe=self.recipe)
        columns: dict[str, Objective] = {_ALONE: alone, type(supernet.source).__name__: objective}
        shared = self._baseline(supernet, data, seed)
        if shared is not None:
            columns[f"{type(shared.source).__name__} (baseline)"] = WeightSharing(shared, data)
        scores: dict[str, list[float]] = {name: [] for name in columns}
        progress = Progress("trust", len(architectures), "networks")
        for number, architecture in enumerate(architectures):
            for name, scored in columns.items():
                own = derive_seed(seed, "trust", architecture.arch_id)
                scores[name].append(float(scored(architecture, seed=own).measurements[metric]))
            progress.update(number + 1)
        progress.close()
        return scores

    def _drawn(self, screen: Screen, seed: int) -> list[Architecture]:
        """Different architectures within the limits."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "trust"))
        found: dict[Architecture, None] = {}
        for _ in range(20):
            found |= dict.fromkeys(
                sample_within(screen.space, screen.limits, screen.meter, generator, count=self.networks)
            )
            if len(found) >= self.networks:
                return list(found)[: self.networks]
        raise ValueError(
            f"search.trust needs {self.networks} different architectures within the limits, and draws found "
            f"{len(found)}; loosen the limits, or search with objective nas.FromScratch, which trains them all"
        )

    def _baseline(self, supernet: Supernet, data: L.LightningDataModule, seed: int) -> Supernet | None:
        if self.baseline == "none":
            return None
        parts = (supernet.space, supernet.task, supernet.source, supernet.rule)
        packages = {type(part).__module__.partition(".")[0] for part in parts}
        if self.baseline != "train":
            net = load(locate(self.baseline).path, space=supernet.space, trust=[*packages])
            if net.source.generated:
                raise ValueError(
                    f"search.trust.baseline must have shared weights, and {self.baseline} has "
                    f"{type(net.source).__name__}; name another, or say train or none"
                )
            return net.to(supernet.source.device)
        net = Supernet(
            supernet.space,
            supernet.task,
            source=lambda space: SharedWeights(space, seed=seed),
            rule=self._rule(supernet),
            optimizer=self.recipe.optimizer,
            schedule=self.recipe.schedule,
            clip=self.recipe.clip,
            clip_algorithm="value",
            calibration=supernet.calibration,
            seed=seed,
        )
        return _fitted(net, data, self.recipe.steps, supernet.source.device)

    def _rule(self, supernet: Supernet) -> SamplingRule:
        """Return a rule like that of the supernet, if it can be run in the steps of one network."""
        rule = construct(describe(supernet.rule), SamplingRule)
        assert isinstance(rule, SamplingRule)  # noqa: S101 - construct has checked
        try:
            rule.check_length(self.recipe.steps)
        except ValueError:
            return SandwichRule()
        return rule


def refuse_quick_ranking(supernet: Supernet) -> None:
    """Refuse to rank by generated weights where there is no time to check them.

    Raises:
        UntrustedError: the weights of ``supernet`` are generated.
    """
    if supernet.source.generated:
        raise UntrustedError(
            f"weights of {type(supernet.source).__name__} are generated, and their scores must prove themselves before "
            "they may rank, for which a quick search has no time; run `nas search`, or take one architecture with "
            "`nas export` or `nas generate`"
        )


def _fitted(net: Supernet, data: L.LightningDataModule, steps: int, device: torch.device) -> Supernet:
    """Train quietly where the supernet under test lies."""
    trainer = L.Trainer(
        accelerator="cpu" if device.type == "cpu" else "auto",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(net, datamodule=data)
    return net.to(device).eval()
