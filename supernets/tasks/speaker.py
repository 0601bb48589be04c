"""Speaker verification: does one person speak in two recordings?"""

import math
from collections.abc import Mapping
from typing import Any, Literal, final

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from supernets.distillation import Distillation, SoftTargets
from supernets.tasks.base import Task

__all__ = ["SpeakerVerification", "equal_error_rate", "minimum_detection_cost"]


def _operating_points(targets: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Miss and false-alarm rates at every distinct threshold, from accepting all trials to accepting none."""
    scores = torch.cat([targets, others])
    order = torch.argsort(scores)
    is_target = (torch.arange(len(scores), device=scores.device) < len(targets))[order].double()
    ends = torch.nonzero(torch.diff(scores[order], append=scores.new_full((1,), math.inf)) > 0).flatten()
    zero = is_target.new_zeros(1)
    misses = torch.cat([zero, is_target.cumsum(0)[ends]]) / len(targets)
    passed = torch.cat([zero, (1 - is_target).cumsum(0)[ends]]) / len(others)
    return misses, 1 - passed


def _undefined(targets: Tensor, others: Tensor) -> bool:
    return not (len(targets) and len(others) and bool(targets.isfinite().all() & others.isfinite().all()))


def equal_error_rate(targets: Tensor, others: Tensor) -> Tensor:
    """Return the error rate where misses and false alarms are equally frequent.

    Rates are exact at every distinct score, and linear in between (on the line between the two operating points around
    the crossing), so ties and small numbers of trials are treated alike.

    Args:
        targets: ``(N,)`` scores of pairs by one speaker.
        others: ``(M,)`` scores of pairs by two speakers.

    Returns:
        ``()`` fraction in [0, 1]; NaN where there are no trials of one kind or a score is not finite.
    """
    if _undefined(targets, others):
        return torch.tensor(math.nan, device=targets.device)
    misses, alarms = _operating_points(targets, others)
    after = int(torch.nonzero(misses >= alarms)[0])  # the last point misses all, so there is one; the first misses none
    gap, next_gap = (misses - alarms)[after - 1], (misses - alarms)[after]
    share = -gap / (next_gap - gap)
    return torch.lerp(misses[after - 1], misses[after], share).float()


def minimum_detection_cost(targets: Tensor, others: Tensor, p_target: float) -> Tensor:
    """Return the smallest detection cost over all thresholds, relative to the better of two fixed answers.

    ``min_t (p P_miss(t) + (1 - p) P_alarm(t)) / min(p, 1 - p)``, with both kinds of error costing 1, as in the NIST
    speaker recognition evaluations.

    Args:
        targets: ``(N,)`` scores of pairs by one speaker.
        others: ``(M,)`` scores of pairs by two speakers.
        p_target: prior probability ``p`` of a pair by one speaker.

    Returns:
        ``()`` in [0, 1]; NaN where there are no trials of one kind or a score is not finite.
    """
    if _undefined(targets, others):
        return torch.tensor(math.nan, device=targets.device)
    misses, alarms = _operating_points(targets, others)
    return ((p_target * misses + (1 - p_target) * alarms).min() / min(p_target, 1 - p_target)).float()


@final
class _Trials(torchmetrics.Metric):
    """Equal error rate and detection cost over pairs of embeddings."""

    full_state_update = False
    embeddings: list[Tensor]
    speakers: list[Tensor]

    def __init__(self, p_target: float, pairs: int, seed: int) -> None:
        super().__init__()
        self.p_target = p_target
        self.pairs = pairs
        self.seed = seed
        self.add_state("embeddings", default=[], dist_reduce_fx="cat")
        self.add_state("speakers", default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, speakers: Tensor) -> None:
        """Add ``(B, D)`` embeddings and the ``(B,)`` numbers of their speakers."""
        self.embeddings.append(F.normalize(embeddings.detach().float()))
        self.speakers.append(speakers)

    def _pairs(self, count: int) -> tuple[Tensor, Tensor]:
        if count * (count - 1) // 2 <= self.pairs:
            first, second = torch.triu_indices(count, count, offset=1)
            return first, second
        generator = torch.Generator().manual_seed(self.seed)
        first = torch.randint(count, (self.pairs,), generator=generator)
        return first, (first + torch.randint(1, count, (self.pairs,), generator=generator)) % count

    def compute(self) -> dict[str, Tensor]:
        """Return ``eer`` and ``min_dcf``."""
        embeddings, speakers = dim_zero_cat(self.embeddings), dim_zero_cat(self.speakers)
        first, second = (index.to(embeddings.device) for index in self._pairs(len(speakers)))
        chunks = zip(torch.split(first, 100_000), torch.split(second, 100_000), strict=True)
        scores = torch.cat([(embeddings[a] * embeddings[b]).sum(1) for a, b in chunks])
        same = speakers[first] == speakers[second]
        targets, others = scores[same], scores[~same]
        return {
            "eer": equal_error_rate(targets, others),
            "min_dcf": minimum_detection_cost(targets, others, self.p_target),
        }


class SpeakerVerification(Task):
    """Learns speaker embeddings from ``(features, speakers)`` batches and scores them on pairs of recordings.

    The module returns (embeddings ``(B, D)``, cosines ``(B, speakers)`` to the training speakers), as those of
    ``search_spaces.TDNNSpace``. The loss is the additive-angular-margin softmax (ArcFace, Deng et al. 2019, arXiv
    1801.07698): with ``cos t_j`` the cosine to speaker j and y the speaker, the cross-entropy of the logits
    ``s cos t_j`` where that of y is ``s cos(t_y + m)`` or, beyond ``t_y = pi - m`` where this would rise again,
    ``s (cos t_y - m sin(pi - m))``.

    Metrics compare all pairs of scored recordings by the cosine of their embeddings; speakers need not be those of
    training. They are NaN where the recordings are all by one speaker or each by another one.

    Args:
        margin: ``m``, in radians.
        scale: ``s``.
        p_target: prior of a pair by one speaker in the detection cost.
        pairs: most pairs to score; of more, so many are drawn at random with replacement.
        seed: of that draw.
        distillation: loss between the logits ``s cos t`` of a student and of its teacher, without margin, averaged over
            the batch; default soft targets.

    Raises:
        ValueError: an argument is out of range.
    """

    headline = "eer"
    quantities: Mapping[str, tuple[str, Literal["minimize", "maximize"]]] = {
        "eer": ("fraction", "minimize"),
        "min_dcf": ("1", "minimize"),
    }

    def __init__(
        self,
        *,
        margin: float = 0.2,
        scale: float = 30.0,
        p_target: float = 0.01,
        pairs: int = 1_000_000,
        seed: int = 0,
        distillation: Distillation | None = None,
    ) -> None:
        if not 0 <= margin < math.pi / 2 or scale <= 0:
            raise ValueError(
                f"SpeakerVerification needs 0 <= margin < pi/2 and scale > 0, got margin={margin}, scale={scale}"
            )
        if not 0 < p_target < 1 or pairs < 1:
            raise ValueError(
                f"SpeakerVerification needs 0 < p_target < 1 and pairs >= 1, got p_target={p_target}, pairs={pairs}"
            )
        self.margin = margin
        self.scale = scale
        self.p_target = p_target
        self.pairs = pairs
        self.seed = seed
        self.distillation = SoftTargets() if distillation is None else distillation

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Return ``(features,)``."""
        return (batch[0],)

    def loss(self, outputs: Any, batch: Any, *, regularise: bool = False) -> Tensor:
        """Return the mean additive-angular-margin softmax loss; the margin belongs to it, ``regularise`` or not."""
        del regularise
        _, cosines = outputs
        speakers = batch[1]
        own = cosines.gather(1, speakers[:, None])
        sine = (1 - own**2).clamp(min=1e-12).sqrt()
        margined = own * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = own - self.margin * math.sin(math.pi - self.margin)
        margined = torch.where(own > math.cos(math.pi - self.margin), margined, beyond)
        return F.cross_entropy(self.scale * cosines.scatter(1, speakers[:, None], margined), speakers)

    def distil(self, outputs: Any, teacher: Any) -> Tensor:
        """Return the mean distillation loss against the teacher's cosines to the training speakers."""
        return self.distillation(self.scale * outputs[1], self.scale * teacher[1].detach()).mean()

    def metrics(self) -> torchmetrics.MetricCollection:
        """Return ``eer`` (equal error rate, fraction) and ``min_dcf`` (minimum detection cost)."""
        return torchmetrics.MetricCollection({"trials": _Trials(self.p_target, self.pairs, self.seed)})

    def update(self, metrics: torchmetrics.MetricCollection, outputs: Any, batch: Any) -> None:
        """Add one batch."""
        metrics.update(outputs[0], batch[1])
