"""Fixed stratified splits of labelled examples."""

import torch
from torch import Tensor

__all__ = ["check_fraction", "stratified_split"]


def stratified_split(labels: Tensor, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Take ``count`` examples with every class in proportion (largest remainders), chosen by ``seed`` alone.

    Args:
        labels: (N,) class indices, int64.
        count: how many examples to take, 0 <= count <= N.
        seed: of the choice.

    Returns:
        ``(rest, taken)``: (N - count,) and (count,) ascending indices, disjoint.

    Raises:
        ValueError: ``count`` is outside 0..N.
    """
    total = len(labels)
    if not 0 <= count <= total:
        raise ValueError(f"a split takes between 0 and {total} examples, all there are, got {count}")
    sizes = torch.bincount(labels)
    quotas = sizes.double() * count / max(total, 1)
    shares = quotas.floor().long()
    short = count - int(shares.sum())
    shares[torch.argsort(shares - quotas, stable=True)[:short]] += 1
    generator = torch.Generator().manual_seed(seed)
    taken = torch.zeros(total, dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        members = torch.nonzero(labels == label).flatten()
        taken[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return torch.nonzero(~taken).flatten(), torch.nonzero(taken).flatten()


def check_fraction(field: str, value: float) -> None:
    """Check that a split takes some and leaves some.

    Raises:
        ValueError: ``value`` is not strictly between 0 and 1.
    """
    if not 0 < value < 1:
        raise ValueError(f"data.{field} must be between 0 and 1, both excluded, got {value}")
