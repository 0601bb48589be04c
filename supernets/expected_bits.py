"""Bits of a distribution over quantised graph networks, differentiable and exact."""

from collections.abc import Iterable
from typing import final

import torch

from search_spaces import FULL_PRECISION, GraphSpace
from search_spaces.graph_layers import FIXED
from search_spaces.graph_network import SITES
from supernets.expected import ExpectedCost, Term, tensor_term
from supernets.laws import Branch, Presence
from supernets.relaxation import Relaxation

__all__ = ["ExpectedBufferBytes", "ExpectedWeightBytes"]


def _graph_space(relaxation: Relaxation, wanted: str) -> GraphSpace:
    if not isinstance(relaxation.space, GraphSpace):
        raise ValueError(f"{wanted} needs a GraphSpace, got {type(relaxation.space).__name__}; use ExpectedParameters")
    return relaxation.space


def _blocks(relaxation: Relaxation) -> list[str]:
    return [name.removesuffix(".bias") for name in relaxation.shapes if name.endswith(".bias")]


def _bits(space: GraphSpace, block: str, site: str) -> tuple[Branch, ...]:
    """Return the bits of a site as a law of its choice."""
    name = f"{block}.bits.{site}"
    for choice in space.choices:
        if choice.name == name:
            return (Branch((), (name,), torch.tensor(choice.candidates)),)
    given = space.weight_bits if site == "weights" else space.activation_bits if site in space.sites else ()
    return (Branch((), (), torch.tensor(given[0] if given else FULL_PRECISION)),)


@final
class ExpectedWeightBytes(ExpectedCost):
    """The expected bytes of the weights of the linear maps: ``E[bits] E[elements] / 8``."""

    name = "weight_bytes"
    unit = "byte"

    def terms(self, relaxation: Relaxation) -> Iterable[Term]:
        """Yield one term for each block.

        Raises:
            ValueError: the space is no :class:`search_spaces.GraphSpace`.
        """
        space = _graph_space(relaxation, type(self).__name__)
        for block in _blocks(relaxation):
            size = tensor_term(relaxation, f"{block}.linear.weight", 1 / 8)
            yield Term(size.factor, (*size.laws, _bits(space, block, "weights")), size.presences)


@final
class ExpectedBufferBytes(ExpectedCost):
    """The expected bytes of all tensors that the network writes, the data left out, see ``GraphSpace.activations_of``.

    The sum, not the largest: of a maximum only one site at a time would get a gradient.
    """

    name = "buffer_bytes"
    unit = "byte"

    def terms(self, relaxation: Relaxation) -> Iterable[Term]:
        """Yield one term for each site of each block.

        Raises:
            ValueError: the space is no :class:`search_spaces.GraphSpace`.
        """
        space = _graph_space(relaxation, type(self).__name__)
        laws = relaxation.laws
        for number, block in enumerate(_blocks(relaxation)):
            presences = relaxation.presences(f"{block}.bias")
            read, made = laws.of((f"{block}.linear.weight", 1)), laws.of((f"{block}.bias", 0))
            for site in SITES[1:]:
                bits, factor, where = _bits(space, block, site), space.nodes / 8, presences
                if (site == "features" and number == 0) or (site == "aggregation" and block == "head"):
                    continue
                if site == "attention":
                    heads = 1 if block == "head" else space.heads
                    learned = self._learned(space, block)
                    if learned is None:
                        continue
                    yield Term((space.nodes + space.edges) * heads / 8, (bits,), (*where, *learned))
                else:
                    yield Term(factor, (read if site == "features" else made, bits), where)

    @staticmethod
    def _learned(space: GraphSpace, block: str) -> tuple[Presence, ...] | None:
        """Return where the coefficients are learned; ``None``: nowhere."""
        positions = tuple(p for p, name in enumerate(space.attentions) if name not in FIXED)
        if not positions:
            return None
        return (Presence(f"{block}.attention", positions),) if len(space.attentions) > 1 else ()
