"""Expected costs that need a forward pass to be known."""

import math
from collections.abc import Iterable, Mapping
from typing import final

import torch
from torch import nn

from nas.costs import MACs
from nas.counting import functional_macs, layer_macs
from search_spaces import Architecture, skeleton
from supernets import ExpectedCost, Relaxation
from supernets.expected import Term, tensor_term
from supernets.laws import Laws

__all__ = ["ExpectedMACs"]


@final
class ExpectedMACs(ExpectedCost):
    """The expected multiply-accumulates of one example, for differentiable search.

    ``E[MACs] = sum_l positions_l E[size of weight_l]`` over layers, where a layer is applied at a number of positions
    that no choice changes, and what a module multiplies itself (attention) as a function of the few choices it depends
    on. Equals ``nas.MACs`` at every architecture.
    """

    name = "macs"
    unit = "MAC"

    def terms(self, relaxation: Relaxation) -> Iterable[Term]:
        """Yield the terms of layers, then those of modules that multiply themselves.

        Raises:
            ValueError: a layer is not applied a whole number of times to each weight.
        """
        space = relaxation.space

        def build(architecture: Architecture) -> nn.Module:
            with torch.device("meta"):
                return skeleton(space, architecture)

        largest = space.largest()
        model = build(largest)
        with torch.device("meta"):
            counts = layer_macs(model, space.inputs(largest))
        layers = dict(model.named_modules(remove_duplicate=False))
        for name, count in counts.items():
            weights = [
                f"{name}.{leaf}" if name else leaf
                for leaf, parameter in layers[name]._parameters.items()
                if parameter is not None and parameter.ndim >= 2
            ]
            size = sum(math.prod(relaxation.shapes[weight]) for weight in weights)
            if count % size:
                raise ValueError(
                    f"ExpectedMACs needs layers that use every weight equally often, but {name!r} multiplies {count} "
                    f"times with {size} weights; use ExpectedParameters, or nas search with a limit on macs"
                )
            for weight in weights:
                yield tensor_term(relaxation, weight, count / size)
        macs = MACs(space)
        if macs.method == "layers" and not macs.attends:
            return

        def measure(architecture: Architecture) -> Mapping[str, int]:
            with torch.device("meta"):
                module = build(architecture)
                own = functional_macs(module, space.inputs(architecture))
                return {name: own.get(name, 0) for name, _ in module.named_modules()}

        laws = Laws(space, measure, skip=relaxation.operations)
        for name, count in laws.largest.items():
            if count or laws.elastic(name):
                yield Term(1.0, (laws.of(name),), laws.presences(name))
