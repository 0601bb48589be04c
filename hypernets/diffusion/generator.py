"""Hypernetworks that sample weights: a prior over the latents of a model zoo, given a data set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor

from hypernets.base import Condition, HyperNetwork
from hypernets.card import HyperCard
from hypernets.diffusion.codecs import PCACodec, WeightCodec
from hypernets.diffusion.denoising import Denoising
from hypernets.diffusion.priors import FlowMatching, Prior
from hypernets.diffusion.vae import VAECodec
from hypernets.fields import Field
from hypernets.parametrization import Parametrization
from hypernets.target import Target, TensorSpec

__all__ = ["DiffusionHyperNetwork"]


@final
class DiffusionHyperNetwork(HyperNetwork):
    """Samples the weights of networks for a data set (D2NWG: Soro et al., ICLR 2025, arXiv 2402.18153).

    ``theta = mean + scale * decode(z)`` with a latent ``z`` drawn by the prior for the encoded condition; mean (the
    residual, not learned by gradient) and scale, one number per tensor, are those of a zoo of trained networks. Train
    it by :func:`fit_diffusion`; untrained, it gives random networks.

    Weights are random: pass ``generator`` to repeat them; :meth:`sample` draws several for one condition. Differs from
    the paper: a choice of codecs and priors beside its variational autoencoder and diffusion model, and networks of a
    zoo should be aligned first (:func:`align`).

    >>> from torch import nn
    >>> from hypernets import LabelledExamples
    >>> data = LabelledExamples(size=4, classes=3)
    >>> hypernet = DiffusionHyperNetwork(Target.of(nn.Linear(4, 3)), {"data": data}, codec=PCACodec(6))
    >>> examples = data.of(torch.randn(9, 4), torch.arange(9) % 3)
    >>> hypernet.sample({"data": examples}, 20, generator=torch.Generator().manual_seed(0))["weight"].shape
    torch.Size([20, 3, 4])

    Args:
        target: what is generated.
        conditions: name -> field.
        codec: new; the default is ``PCACodec()``.
        prior: new; the default is ``FlowMatching()``.
        parametrization: of the condition; the residual must be ``frozen`` and the head as it is by default.
    """

    scale: Tensor

    def __init__(
        self,
        target: Target,
        conditions: Mapping[str, Field],
        *,
        codec: WeightCodec | None = None,
        prior: Prior | None = None,
        parametrization: Parametrization | None = None,
    ) -> None:
        switches = Parametrization(residual="frozen") if parametrization is None else parametrization
        if (switches.residual, switches.head_init) != ("frozen", "fan_out"):
            raise ValueError(
                "DiffusionHyperNetwork takes mean and scale of the weights from a zoo: residual must be 'frozen' and "
                f"head_init 'fan_out', got {switches.residual!r} and {switches.head_init!r}"
            )
        super().__init__(target, conditions, parametrization=switches)
        self.codec = PCACodec() if codec is None else codec
        self.prior = FlowMatching() if prior is None else prior
        for part in (self.codec, self.prior):
            if any(True for _ in part.parameters()) or any(True for _ in part.buffers()):
                raise ValueError(f"{type(part).__name__} belongs to another hypernetwork already; make a new one")
        self.codec.allocate(target.numel)
        self.prior.allocate(self.codec.width, self.encoder.width)
        self.register_buffer("scale", torch.tensor([spec.deviation or 1e-2 for spec in target]))
        self.finish()

    @property
    def card(self) -> HyperCard:  # noqa: D102
        card = HyperCard.of(
            type(self).__name__,
            self.conditions.values(),
            outputs="once",
            architecture="diffusion",
            reference="Soro et al.: Diffusion-based Neural Network Weights Generation, arXiv 2402.18153",
        )
        return replace(card, inputs=tuple(dict.fromkeys((*card.inputs, "noise"))), input_variability="dynamic")

    def settings(self) -> dict[str, Any]:  # noqa: D102
        return {"codec": self.codec.to_json(), "prior": self.prior.to_json()}

    @classmethod
    def build(  # noqa: D102
        cls,
        target: Target,
        conditions: Mapping[str, Field],
        parametrization: Parametrization,
        settings: Mapping[str, Any],
        *,
        parts: Sequence[type] = (),
    ) -> Self:
        codecs = [part for part in parts if issubclass(part, WeightCodec)]
        priors = [part for part in parts if issubclass(part, Prior)]
        return cls(
            target,
            conditions,
            codec=WeightCodec.from_json(settings["codec"], (PCACodec, VAECodec, *codecs)),
            prior=Prior.from_json(settings["prior"], (FlowMatching, Denoising, *priors)),
            parametrization=parametrization,
        )

    def sample(
        self, condition: Condition, count: int, *, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """Return ``count`` weight sets for each of K conditions, which are encoded once.

        Args:
            condition: as in :meth:`generate`.
            count: sets for each condition.
            generator: makes them repeatable.
            temperature: factor on the noise of the prior; below 1 networks come closer to the middle of what the
                condition allows, which is the better start for training.

        Returns:
            name -> ``(K * count, *shape)``, the sets of one condition behind each other.
        """
        code = self._code(condition).repeat_interleave(count, dim=0)
        latents = self.prior.sample(code, generator=generator, temperature=temperature)
        deltas = self._cut(self.codec.decode(latents), self.target.tensors)
        return {spec.name: self._whole(spec, deltas[spec.name]) for spec in self.target}

    def emit(  # noqa: D102
        self, code: Tensor, specs: Sequence[TensorSpec], *, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        return self._cut(self.codec.decode(self.prior.sample(code, generator=generator)), specs)

    def emit_groups(  # noqa: D102
        self, code: Tensor, groups: Sequence[Sequence[TensorSpec]], *, generator: torch.Generator | None
    ) -> Iterator[dict[str, Tensor]]:
        with torch.no_grad():
            vectors = self.codec.decode(self.prior.sample(code, generator=generator))
        for specs in groups:
            yield self._cut(vectors, specs)

    @torch.no_grad()
    def rescale(self, name: str, factor: float) -> None:  # noqa: D102
        self.scale[self.target.names.index(name)] *= factor

    @torch.no_grad()
    def learn_codec(self, tensors: Mapping[str, Tensor], *, generator: torch.Generator) -> None:
        """Take mean and scale of a zoo, and fit the codec to it.

        Args:
            tensors: name -> ``(N, *shape)``, aligned.
            generator: of the codec.

        Raises:
            ValueError: tensors do not fit the target, or are too few for the codec.
        """
        self.target.check(tensors, sets=len(next(iter(tensors.values()), ())))
        self.start_from({name: value.mean(0) for name, value in tensors.items()})
        spread = torch.stack([_deviation(tensors[spec.name]) for spec in self.target])
        self.scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
        self.codec.fit(self.vectors(tensors), generator=generator)

    def vectors(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return weights ``(N, *shape)`` by name as the centred and scaled vectors ``(N, P)`` that the codec sees."""
        parts = []
        for spec, scale in zip(self.target, self.scale, strict=True):
            value = tensors[spec.name].to(self.scale)
            parts.append(((value - self.residual(spec.name)) / scale).flatten(1))
        return torch.cat(parts, dim=1)

    def encode(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the latents ``(N, width)`` of weights ``(N, *shape)`` by name."""
        return self.codec.encode(self.vectors(tensors))

    def reconstruct(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the codec keeps of weights ``(N, *shape)`` by name: the best that sampling can reach."""
        deltas = self._cut(self.codec.decode(self.encode(tensors)), self.target.tensors)
        return {spec.name: self._whole(spec, deltas[spec.name]) for spec in self.target}

    def loss(self, condition: Condition, latents: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the training loss of the prior, for latents ``(B, width)`` of networks trained under a condition."""
        return self.prior.loss(latents, self.encode_condition(condition), generator=generator)

    def encode_condition(self, condition: Condition) -> Tensor:
        """Return the code ``(K, encoder.width)`` that the prior sees."""
        return self._code(condition)

    def _cut(self, vectors: Tensor, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
        """Scale and cut vectors ``(K, P)`` into tensors."""
        wanted = {spec.name for spec in specs}
        found = {}
        start = 0
        for spec, scale in zip(self.target, self.scale, strict=True):
            if spec.name in wanted:
                part = vectors[:, start : start + spec.numel] * scale
                found[spec.name] = part.reshape(len(vectors), *spec.shape)
            start += spec.numel
        return found


def _deviation(values: Tensor) -> Tensor:
    """Root mean square of the differences from the mean over the first axis; 0 for an empty tensor."""
    return (values - values.mean(0)).float().square().mean().sqrt() if values.numel() else torch.zeros(())
