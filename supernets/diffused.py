"""Sampled weights: a supernet that starts from a network which a hypernetwork has drawn."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hypernets import DiffusionHyperNetwork, HyperNetworkFileError, digest, load
from search_spaces import Architecture, RelaxedArchitecture, SearchSpace
from supernets.weights import SharedWeights, WeightSource

__all__ = ["DiffusionWeights"]


@final
class DiffusionWeights(WeightSource):
    """Shared weights that start as one sample of a diffusion hypernetwork (D2NWG, arXiv 2402.18153).

    The sample is a network of the largest architecture for the data set that the condition describes; smaller ones are
    cut out of it, and training goes on as with :class:`SharedWeights`. What was sampled belongs to the source from
    then on: a saved supernet needs neither file again.

    Scores must show that they rank before a search may use them (``nas.TrustGate``): a zoo is trained one network at a
    time, so nothing has taught its networks to be cut.

    Args:
        space: the space whose architectures are filled.
        hypernet: file of :func:`hypernets.save_hypernetwork`, whose target are tensors of the largest build. What is
            not in it starts as with :class:`SharedWeights`.
        condition: safetensors file with the value of every condition field, ``(1, *shape)`` each, as
            ``LabelledExamples.of`` makes it.
        temperature: factor on the noise of the prior.
        seed: of the sample, and of what is not sampled. The global random state is left as it was.
        origin: what a saved supernet knows of its sample; not for people.

    Raises:
        ValueError: a file cannot be read, or does not fit the space or the other one.
        SlicingError: see :class:`SharedWeights`.
    """

    generated = True

    def __init__(
        self,
        space: SearchSpace,
        *,
        hypernet: str | None = None,
        condition: str | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        if origin is None and (hypernet is None or condition is None):
            raise ValueError(
                f"DiffusionWeights needs the files hypernet and condition, got {hypernet!r} and {condition!r}"
            )
        shared = SharedWeights(space, seed=seed)
        super().__init__(space, skeletons=shared.skeletons)
        self.shared = shared
        self.temperature = temperature
        self.seed = seed
        if origin is None and hypernet is not None and condition is not None:
            origin = self._start(Path(hypernet), Path(condition))
        self.origin = dict(origin or {})
        self.hypernet, self.condition = None, None  # the weights are in the state from now on

    @torch.no_grad()
    def _start(self, hypernet: Path, condition: Path) -> dict[str, str]:
        """Sample into the shared weights, and return where the sample comes from."""
        try:
            generator, values = load(hypernet), load_file(condition)
        except (HyperNetworkFileError, SafetensorError, OSError) as error:
            raise ValueError(f"DiffusionWeights cannot read {hypernet} or {condition}: {error}") from error
        if not isinstance(generator, DiffusionHyperNetwork):
            raise ValueError(
                f"DiffusionWeights.hypernet must hold a DiffusionHyperNetwork, {hypernet} holds a "
                f"{type(generator).__name__}; train one over a zoo, or use GeneratedWeights"
            )
        stored = self.shared.stored()
        odd = {
            name: (shape, tuple(stored[name].shape) if name in stored else None)
            for name, shape in generator.target.shapes.items()
            if name not in stored or tuple(stored[name].shape) != tuple(shape)
        }
        if odd:
            raise ValueError(
                f"DiffusionWeights.hypernet must make tensors of the largest build of {type(self.space).__name__}; "
                f"(made, needed) differ for {odd}; train the zoo on the largest architecture of this space"
            )
        made = generator.sample(
            values, 1, generator=torch.Generator().manual_seed(self.seed), temperature=self.temperature
        )
        if any(len(value) != 1 for value in made.values()):
            raise ValueError(f"DiffusionWeights.condition must hold one data set, {condition} holds several")
        for name, value in made.items():
            stored[name].copy_(value[0])
        return {
            "hypernetwork": digest(generator),
            "condition": hashlib.sha256(condition.read_bytes()).hexdigest()[:32],
            "seed": str(self.seed),
            "temperature": str(self.temperature),
        }

    def forward(self, architecture: Architecture) -> dict[str, Tensor]:
        """Cut ``architecture`` out of the largest build; see :class:`WeightSource`."""
        return self.shared(architecture)  # type: ignore[no-any-return]

    def relaxed(self, architecture: RelaxedArchitecture) -> dict[str, Tensor]:
        """Mask the tensors of the largest build; see :class:`WeightSource`."""
        return self.shared.relaxed(architecture)

    def assign(self, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
        """Write ``tensors`` into the part that ``architecture`` uses; see :class:`WeightSource`."""
        self.shared.assign(architecture, tensors)

    def provenance(self) -> Mapping[str, str]:
        """Return where the sample comes from: digests of hypernetwork and condition, seed and temperature."""
        return self.origin
