"""Costs of a distribution over architectures, differentiable and exact."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from search_spaces import SearchSpace
from supernets.laws import Branch, Presence, RelaxationError, joint
from supernets.relaxation import Relaxation

__all__ = ["Expectation", "ExpectedCost", "ExpectedParameters", "Term"]

_MOST = 65_536


@dataclass(frozen=True)
class Term:
    """A product of sizes that counts where something exists.

    Attributes:
        factor: a constant.
        laws: of each size.
        presences: where it exists; everywhere if there are none.
    """

    factor: float
    laws: tuple[tuple[Branch, ...], ...]
    presences: tuple[Presence, ...]


class ExpectedCost(ABC):
    """A cost that is a sum of products of sizes, as parameters and multiply-accumulates are.

    Attributes:
        name: of the cost.
        unit: of the cost.
    """

    name: str
    unit: str

    @abstractmethod
    def terms(self, relaxation: Relaxation) -> Iterable[Term]:
        """Return the terms of the space of ``relaxation``."""


@final
class ExpectedParameters(ExpectedCost):
    """The expected number of parameters, each tied one counted once."""

    name = "params"
    unit = "1"

    def terms(self, relaxation: Relaxation) -> Iterable[Term]:
        """Yield one term for each tensor: ``P(exists) prod_d size_d``."""
        for name, source in relaxation.sources.items():
            if name == source:
                yield tensor_term(relaxation, name, 1.0)


def tensor_term(relaxation: Relaxation, name: str, factor: float) -> Term:
    """Return ``factor`` times the number of elements of the parameter ``name``."""
    laws = relaxation.laws
    dims = [(name, dim) for dim in range(len(relaxation.shapes[name]))]
    constant = factor * math.prod(laws.largest[key] for key in dims if not laws.elastic(key))
    elastic = tuple(laws.of(key) for key in dims if laws.elastic(key))
    return Term(constant, elastic, relaxation.presences(name))


@final
class Expectation:
    """The expectation of a sum of terms under independent choices.

    ``E[sum_t c_t prod_d n_td] = sum_S <T_S, p_1 x p_2 x ...>``: terms that depend on the same choices are added up in
    one table ``T_S`` of all their combinations, which is then contracted with the weights. It is a polynomial in the
    weights, linear in those of each choice, and at one-hot weights it is the cost of that architecture. Because it is
    linear in each, its value at mean weights is its mean over draws of the weights.

    Args:
        space: order and sizes of choices.
        terms: of the cost.

    Raises:
        RelaxationError: a term depends on too many choices together.
    """

    def __init__(self, space: SearchSpace, terms: Iterable[Term]) -> None:
        self._sizes = {choice.name: choice.size for choice in space.choices}
        self.tables: dict[tuple[str, ...], Tensor] = {}
        for term in terms:
            for branches in itertools.product(*term.laws):
                self._add(term, branches)

    def _add(self, term: Term, branches: Sequence[Branch]) -> None:
        """Add the product for one combination of branches, where their conditions agree."""
        used = {name for branch in branches for name in (*branch.choices, *(name for name, _ in branch.given))}
        used |= {presence.choice for presence in term.presences}
        names = tuple(name for name in self._sizes if name in used)
        shape = [self._sizes[name] for name in names]
        if math.prod(shape) > _MOST:
            raise RelaxationError(
                f"an expected cost depends on {list(names)} together, {math.prod(shape)} combinations of at most "
                f"{_MOST}; give these choices fewer candidates, or leave the cost out"
            )
        table = torch.full(shape, term.factor, dtype=torch.float64)
        for branch in branches:
            table = table * branch.sizes.view([self._sizes[name] if name in branch.choices else 1 for name in names])
            for name, position in branch.given:
                table = table * self._only(names, name, (position,))
        for presence in term.presences:
            table = table * self._only(names, presence.choice, presence.positions)
        self.tables[names] = self.tables[names] + table if names in self.tables else table

    def _only(self, names: Sequence[str], name: str, positions: Sequence[int]) -> Tensor:
        """Return 1 at ``positions`` of ``name`` and 0 elsewhere, to be multiplied with a table over ``names``."""
        inside = torch.zeros(self._sizes[name], dtype=torch.float64)
        inside[list(positions)] = 1
        return inside.view([-1 if other == name else 1 for other in names])

    def __call__(self, relaxed: Mapping[str, Tensor]) -> Tensor:
        """Return the expectation ``()``, float64, on the device of the weights."""
        total: Tensor | None = None
        for names, table in self.tables.items():
            flat = table.flatten()
            if names:
                weights = joint([relaxed[name].double() for name in names])
                value = weights @ flat.to(weights.device)
            else:
                value = flat.sum()
            total = value if total is None else total + value
        assert total is not None  # noqa: S101 - a space has a cost
        return total
