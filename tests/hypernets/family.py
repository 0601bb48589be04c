"""Small hypernetworks for the contract tests: one line per generator."""

import functools

import torch
from torch import nn

from hypernets import (
    BestResponseHyperNetwork,
    ChunkedHyperNetwork,
    DenseHyperNetwork,
    ImplicitHyperNetwork,
    RecurrentHyperNetwork,
    Target,
    Unit,
)

ENCODED = {
    "dense": functools.partial(DenseHyperNetwork, hidden=(6, 10)),
    "chunked": functools.partial(ChunkedHyperNetwork, hidden=(6, 10), chunk=7),
    "low_rank": functools.partial(ChunkedHyperNetwork, hidden=(6, 10), chunk=7, low_rank_above=20, rank=2),
    "implicit": functools.partial(ImplicitHyperNetwork, width=5, layers=2),
    "recurrent": functools.partial(RecurrentHyperNetwork, width=10, vectors=4, chunk=7),
}
HOMOGENEOUS = ("dense", "chunked")
GENERATORS = {
    **ENCODED,
    "best_response": functools.partial(BestResponseHyperNetwork, centred=False),
}


def module():
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def make(name, *, seed=0, target=None, conditions=None, **options):
    torch.manual_seed(seed)
    return GENERATORS[name](
        Target.of(module()) if target is None else target,
        {"strength": Unit(), "mix": Unit(3)} if conditions is None else conditions,
        **options,
    )
