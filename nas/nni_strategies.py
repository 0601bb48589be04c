"""Our search spaces as model spaces of NNI 3.0, and its strategies over them."""

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any, final

import nni
import torch
from torch import Tensor, nn

from nas.controllers.nni_log import quiet
from search_spaces import Architecture, CellSpace, SearchSpace
from search_spaces.cell_graph import EDGES
from search_spaces.operations import operation

with warnings.catch_warnings():  # NNI 3.0 does not know two classes of torch 2.13, and needs neither
    warnings.simplefilter("ignore", RuntimeWarning)
    from nni.nas.evaluator import FunctionalEvaluator
    from nni.nas.execution import SequentialExecutionEngine
    from nni.nas.nn.pytorch import LayerChoice, ModelSpace
    from nni.nas.space import RawFormatModelSpace
    from nni.nas.strategy import DARTS, TPE, GumbelDARTS, Proxyless, Random, RandomOneShot, RegularizedEvolution

__all__ = ["nni_model_space", "search_with_nni"]

_MULTI_TRIAL = (Random, RegularizedEvolution, TPE)
_ONE_SHOT = (DARTS, GumbelDARTS, Proxyless, RandomOneShot)
_REFUSED = {
    "GridSearch": "NNI 3.0 empties each sample of its grid before the model is made, and stops with SampleMissingError",
    "PolicyBasedRL": "it needs the interface that tianshou had in 2022",
    "ENAS": "it needs the interface that tianshou had in 2022",
}


def nni_model_space(space: SearchSpace) -> Any:
    """Return ``space`` as a ``ModelSpace`` of NNI 3.0 with our names as labels.

    The operations of a :class:`search_spaces.CellSpace` become ``LayerChoice``s, one label for the same edge of every
    cell, so that one-shot strategies work on it. Any other space becomes value choices, which multi-trial strategies
    search; a one-shot strategy is refused there, because NNI has no supernet for layers it does not know.

    ``freeze(sample)`` is ``space.build`` of that architecture, without weights of the search.
    """
    return _Cells(space) if isinstance(space, CellSpace) else _Values(space)


def search_with_nni(
    space: SearchSpace, strategy: Any, evaluator: Any, *, trials: int = 100
) -> list[tuple[Architecture, float | None]]:
    """Run a strategy of NNI 3.0 over ``space`` in this process.

    Nothing is recorded and nothing is continued: for a study use :class:`nas.NNIController`, which also obeys limits.

    Args:
        space: where architectures come from.
        strategy: ``Random``, ``RegularizedEvolution`` or ``TPE("maximize")`` of ``nni.nas.strategy``; or ``DARTS``,
            ``GumbelDARTS``, ``RandomOneShot`` or ``Proxyless``, over a :class:`search_spaces.CellSpace`.
        evaluator: architecture -> score, the larger the better; for a one-shot strategy an evaluator of
            ``nni.nas.evaluator.pytorch``, e.g. ``Classification``.
        trials: evaluations; a one-shot strategy trains once.

    Returns:
        Architectures with their scores, best first; one without a score from a one-shot strategy.

    Raises:
        ValueError: the strategy does not work, or not over this space, or minimises.
    """
    name = type(strategy).__name__
    if not isinstance(strategy, (*_MULTI_TRIAL, *_ONE_SHOT)) or name in _REFUSED:
        known = [kind.__name__ for kind in (*_MULTI_TRIAL, *_ONE_SHOT)]
        why = f": {_REFUSED[name]}" if name in _REFUSED else ""
        raise ValueError(f"strategy must be one of {known}, got {name}{why}")
    if trials < 1:
        raise ValueError(f"trials must be 1 or more, got {trials}")
    one_shot = isinstance(strategy, _ONE_SHOT)
    if one_shot and not isinstance(space, CellSpace):
        raise ValueError(
            f"{name} needs a space of operations, a CellSpace, got {type(space).__name__}: NNI has no supernet for "
            "other layers; use supernets.DifferentiableRule, or a multi-trial strategy"
        )
    if isinstance(strategy, TPE) and strategy.tuner.optimize_mode.value != "maximize":
        raise ValueError("scores are the larger the better and NNI's TPE() minimises; give TPE('maximize')")
    found: dict[Architecture, float] = {}

    def score(model: Any) -> None:
        architecture = model.architecture
        if architecture not in found:
            found[architecture] = float(evaluator(architecture))
        if math.isnan(found[architecture]):
            raise ValueError(f"the evaluator must return a number, got nan for {architecture}")
        nni.report_final_result(found[architecture])

    with quiet(logging.ERROR):
        judge = evaluator if one_shot else FunctionalEvaluator(score)
        strategy(
            RawFormatModelSpace.from_model(nni_model_space(space), judge),
            SequentialExecutionEngine(max_model_count=1 if one_shot else trials),
        )
        if one_shot:
            return [(space.architecture(model.sample), None) for model in strategy.list_models(limit=1)]
    return sorted(found.items(), key=lambda item: -math.inf if item[1] is None else item[1], reverse=True)


@final
class _Values(ModelSpace):  # type: ignore[misc]
    """Choices without layers; models are made by the space."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        for choice in space.choices:
            self.add_mutable(nni.choice(choice.name, list(choice.candidates)))

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        """Return the build of ``sample``, which knows its ``architecture``."""
        return _built(self.space, sample)

    def extra_oneshot_hooks(self, strategy: Any) -> list[Callable[..., Any]]:
        """Refuse: NNI does not look at choices of the outermost module, and would train one model instead.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"{type(strategy).__name__} needs LayerChoices, and only a CellSpace becomes them; "
            f"{type(self.space).__name__} became value choices: use a multi-trial strategy, or "
            "supernets.DifferentiableRule"
        )


@final
class _Cells(ModelSpace):  # type: ignore[misc]
    """The network of every operation, each edge a LayerChoice."""

    def __init__(self, space: CellSpace) -> None:
        super().__init__()
        self.space = space
        self.network = space.superset()
        for number, width in enumerate(space.widths, 1):
            stage = self.network.get_submodule(f"stage{number}")
            for count in range(1, space.cells + 1):
                stage.add_module(f"cell{count}", _Cell(space, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        logits: Tensor = self.network(x)
        return logits

    def freeze(self, sample: dict[str, Any]) -> nn.Module:
        """Return the build of ``sample``, which knows its ``architecture``."""
        return _built(self.space, sample)


@final
class _Cell(nn.Module):
    """Three nodes, each the sum of one operation from every node before it.

    Args:
        space: operations of the edges.
        channels: of every node.
    """

    def __init__(self, space: CellSpace, channels: int) -> None:
        super().__init__()
        for source, target in EDGES:
            edge = f"edge{source}_{target}"
            candidates = {
                name: _Nothing() if name == "none" else operation(name, channels, affine=space.affine)
                for name in space.operations
            }
            self.add_module(edge, LayerChoice(candidates, label=edge))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape."""
        nodes = [x]
        for target in range(1, EDGES[-1][1] + 1):
            terms = [self.get_submodule(f"edge{source}_{target}")(nodes[source]) for source in range(target)]
            nodes.append(torch.stack(terms).sum(0))
        return nodes[-1]


@final
class _Nothing(nn.Module):
    """An absent edge."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(x)


def _built(space: SearchSpace, sample: dict[str, Any]) -> nn.Module:
    architecture = space.architecture({choice.name: sample[choice.name] for choice in space.choices})
    module = space.build(architecture)
    module.architecture = architecture  # type: ignore[assignment]
    return module
