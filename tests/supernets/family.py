"""Every weight source and every sampling rule, for the contracts that all of them keep. A new one joins by a line."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from hypernets import ChunkedHyperNetwork
from search_spaces import SearchSpace
from supernets import (
    SBS,
    AttentiveRule,
    DifferentiableRule,
    DiffusionWeights,
    GeneratedWeights,
    ImplicitWeights,
    MixtureWeights,
    ProgressiveRule,
    QuantizedWeights,
    SamplingRule,
    SandwichRule,
    SharedWeights,
    ShrinkingStage,
    SingleRule,
    TemplateWeights,
    UniformRule,
    WeightSource,
)
from tests.supernets.diffusion_file import write

SMALL = partial(ChunkedHyperNetwork, hidden=(4, 8), chunk=64)


def diffused(space: SearchSpace, seed: int) -> DiffusionWeights:
    with TemporaryDirectory() as folder:
        hypernet, condition = write(space, Path(folder))
        return DiffusionWeights(space, hypernet=hypernet, condition=condition, seed=seed)


SOURCES: Mapping[str, Callable[[SearchSpace, int], WeightSource]] = {  # (space, seed) -> source
    "shared": lambda space, seed: SharedWeights(space, seed=seed),
    "kernel_transform": lambda space, seed: SharedWeights(space, seed=seed, kernel_transform=True),
    "implicit": lambda space, seed: ImplicitWeights(space, width=4, seed=seed),
    "mixture": lambda space, seed: MixtureWeights(space, seed=seed, hidden=8),
    "mixture_low_rank": lambda space, seed: MixtureWeights(
        space, experts=3, routing="neuron", rank=1, seed=seed, hidden=8
    ),
    "templates": lambda space, seed: TemplateWeights(space, seed=seed),
    "templates_of_a_layer": lambda space, seed: TemplateWeights(space, share="layer", seed=seed),
    "diffused": diffused,
    "generated": lambda space, seed: GeneratedWeights(space, hypernet=SMALL, seed=seed),
}

QUANTIZED: Mapping[str, Callable[[SearchSpace], WeightSource]] = {  # of a QuantizedSpace
    "quantized": QuantizedWeights,
    "quantized_mixture": lambda space: QuantizedWeights(
        space, source=partial(MixtureWeights, hidden=8), quantizer=SBS("tensor")
    ),
}

RULES: Mapping[str, Callable[[], SamplingRule]] = {
    "uniform": UniformRule,
    "sandwich": lambda: SandwichRule(1),
    "sandwich_labels": lambda: SandwichRule(1, distillation=False),
    "single": lambda: SingleRule("middle"),
    "differentiable": lambda: DifferentiableRule(schedule="single"),
    "attentive": lambda: AttentiveRule(candidates=2, n_attentive=1, buckets=3, draws=20),
    "attentive_worst": lambda: AttentiveRule("worst", candidates=2, n_attentive=1, buckets=3, draws=20),
    "progressive": lambda: ProgressiveRule([ShrinkingStage(until=1), ShrinkingStage(elastic={"*": "all"})]),
    "progressive_sorted": lambda: ProgressiveRule(
        [ShrinkingStage(until=1), ShrinkingStage(elastic={"*": "all"}, sort_channels=True)]
    ),
}
