"""How far a subnetwork's confidence can be believed, measured beside its accuracy."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from search_spaces import derive_seed
from supernets import Bins, Task, brier_score, fit_temperature, negative_log_likelihood, reliability
from trials import Limit, Metric

__all__ = ["Confidence", "Listener"]

_SCALED = "_scaled"
_KINDS = (("ece", "fraction"), ("ece_adaptive", "fraction"), ("nll", "nats"), ("brier", "1"))
_BLIND = frozenset({"ece", "ece_adaptive", "ece_scaled", "ece_adaptive_scaled", "temperature"})


@final
class Confidence:
    """Measures calibration errors, likelihood and Brier score, before and after temperature scaling.

    The temperature (Guo et al. 2017) is fitted on examples that nothing else here is measured on: on a share of the
    validation split where that one is scored, on all of it where the test split is. Tokens of one sentence stay
    together. What it measures:

    - ``ece``: expected calibration error over bins of equal width, in [0, 1];
    - ``ece_adaptive``: the same over bins of equal mass;
    - ``nll``: negative log-likelihood in nats;
    - ``brier``: squared distance between probabilities and the right answer, in [0, 2];
    - ``temperature``: what logits are to be divided by; above 1 the network is too sure of itself;
    - ``ece_scaled``, ``ece_adaptive_scaled``, ``nll_scaled``, ``brier_scaled``: after that division.

    Temperature scaling changes no decision, so it costs a user nothing: ``ece_scaled`` or ``nll_scaled`` say what can
    be had. A calibration error says nothing of how often a network is right (one that answers at random and says so has
    none), so it is refused as an objective unless something else that is measured of the network is one too, or is
    limited.

    Args:
        bins: of the calibration errors.
        share: of the validation examples, to fit the temperature on where the rest are scored.
        most: decisions that are looked at, drawn evenly from all batches; bounds memory for large vocabularies.
        seed: of the division.

    Raises:
        ValueError: an argument is out of range.
    """

    metrics = tuple(
        Metric(name + suffix, unit, "minimize")
        for suffix in ("", _SCALED)
        for name, unit in (*_KINDS, *((("temperature", "1"),) if not suffix else ()))
    )

    def __init__(self, *, bins: int = 15, share: float = 0.5, most: int = 20_000, seed: int = 0) -> None:
        if bins < 1 or most < 2 or not 0 < share < 1:
            raise ValueError(
                f"Confidence needs bins >= 1, most >= 2 and share between 0 and 1, got {bins=}, {most=}, {share=}"
            )
        self.bins, self.share, self.most, self.seed = bins, share, most, seed

    def check_task(self, task: Task) -> None:
        """Refuse a task without classes.

        Raises:
            ValueError: naming it.
        """
        if not task.decides:
            raise ValueError(
                f"confidence needs a task that chooses among classes with known labels, got {type(task).__name__}; "
                "leave the objective's confidence out"
            )

    def identity(self) -> str:
        """Return what the measurements depend on."""
        return (
            f"confidence in {self.bins} bins, temperature from {self.share:g} by seed {self.seed}, {self.most} at most"
        )

    def check(self, objectives: Sequence[Metric], limits: Sequence[Limit], known: Sequence[Metric]) -> None:
        """Refuse a search that cares for calibration errors and not for whether the network is right.

        Args:
            objectives: of the search.
            limits: of the search.
            known: what the objective measures; costs say nothing of a network's answers either.

        Raises:
            ValueError: saying what to add.
        """
        sought = {metric.name for metric in objectives}
        telling = {metric.name for metric in known} - _BLIND
        if sought & _BLIND and not telling & (sought | {limit.metric for limit in limits}):
            raise ValueError(
                f"search.objectives must not rest on {sorted(sought & _BLIND)} alone, which a network that guesses and "
                f"says so gets perfectly; add one of {sorted(telling)} to search.objectives or a limit on it to "
                "search.limits, min_accuracy say"
            )

    def listener(self, task: Task, batches: int, *, divided: bool = True) -> "Listener":
        """Return what is to hear every batch of one subnetwork.

        Args:
            task: reads the outputs.
            batches: number of the batches that are scored.
            divided: whether a share of them fits the temperature; else :meth:`Listener.learn` hears other batches.
        """
        return Listener(self, task, batches, divided=divided)


@final
class Listener:
    """Collects what one subnetwork decided."""

    def __init__(self, confidence: Confidence, task: Task, batches: int, *, divided: bool) -> None:
        self.confidence = confidence
        self.task = task
        self.quota = max(1, confidence.most // max(batches, 1))
        self.divided = divided
        self._fitting: list[tuple[Tensor, Tensor]] = []
        self._scored: list[tuple[Tensor, Tensor]] = []
        self._digest = hashlib.sha256()
        self._found: tuple[dict[str, float], dict[str, str]] | None = None

    def __call__(self, number: int, outputs: Any, batch: Any) -> None:
        """Take in batch ``number`` of those that are scored.

        Raises:
            TypeError: the task does not choose among classes.
        """
        self._hear(number, outputs, batch, self.confidence.share if self.divided else 0.0)

    def learn(self, number: int, outputs: Any, batch: Any) -> None:
        """Take in batch ``number`` of those that only fit the temperature.

        Raises:
            TypeError: the task does not choose among classes.
        """
        self._hear(number, outputs, batch, 1.0)

    def _hear(self, number: int, outputs: Any, batch: Any, share: float) -> None:
        heard = self.task.decisions(outputs, batch)
        logits, labels, examples = (tensor.detach().cpu() for tensor in (heard.logits, heard.labels, heard.examples))
        generator = torch.Generator().manual_seed(derive_seed(self.confidence.seed, "confidence", number))
        fits = torch.rand(int(examples.max()) + 1 if len(examples) else 0, generator=generator) < share
        kept = torch.randperm(len(labels), generator=generator)[: self.quota].sort().values
        fitting = fits[examples[kept]]
        for part, rows in ((self._fitting, kept[fitting]), (self._scored, kept[~fitting])):
            part.append((logits[rows].float(), labels[rows]))
        self._digest.update(f"{number}:{kept[fitting].tolist()}:{labels[kept[fitting]].tolist()};".encode())

    def results(self) -> tuple[Mapping[str, float], Mapping[str, str]]:
        """Return the measurements, and where they come from.

        Raises:
            ValueError: a part is empty, or the outputs are no finite logits.
        """
        fitting, scored = (
            tuple(torch.cat(column) for column in zip(*part, strict=True)) if part else (torch.empty(0),) * 2
            for part in (self._fitting, self._scored)
        )
        if not len(fitting[1]) or not len(scored[1]):
            raise ValueError(
                f"confidence needs examples to fit the temperature and others to score, got {len(fitting[1])} and "
                f"{len(scored[1])} decisions; use more validation data or another share than {self.confidence.share:g}"
            )
        temperature = fit_temperature(*fitting)
        values, bins = {"temperature": temperature}, {}
        for suffix, divisor in (("", 1.0), (_SCALED, temperature)):
            found, bins["scaled" if suffix else "raw"] = self._measured(scored[0] / divisor, scored[1])
            values |= {name + suffix: value for name, value in found.items()}
        split = f"{len(fitting[1])} decisions beside {len(scored[1])} scored, {self._digest.hexdigest()[:16]}"
        return values, {"temperature_split": split, "reliability": json.dumps(bins, separators=(",", ":"))}

    def _measured(self, logits: Tensor, labels: Tensor) -> tuple[dict[str, float], list[list[float]]]:
        probabilities = torch.softmax(logits.double(), 1)
        equal = reliability(probabilities, labels, bins=self.confidence.bins)
        adaptive = reliability(probabilities, labels, bins=self.confidence.bins, equal_mass=True)
        values = (
            equal.error,
            adaptive.error,
            negative_log_likelihood(logits, labels),
            brier_score(probabilities, labels),
        )
        return dict(zip((name for name, _ in _KINDS), values, strict=True)), _rows(equal)


def _rows(bins: Bins) -> list[list[float]]:
    """Return ``[count, confidence, accuracy]`` of every bin that is not empty."""
    columns = (bins.counts.tolist(), bins.confidence.tolist(), bins.accuracy.tolist())
    return [[int(n), round(c, 4), round(a, 4)] for n, c, a in zip(*columns, strict=True) if n]
