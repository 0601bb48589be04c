import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from search_spaces import (
    Architecture,
    CellSpace,
    Choice,
    ConvNetSpace,
    FactorySpace,
    MLPSpace,
    SearchSpace,
    Stage,
    TransformerSpace,
)
from supernets import Supernet, WeightSource
from tests.supernets.family import SOURCES

Batch = tuple[Tensor, Tensor]


class Attention(torch.nn.Module):
    """A user's own classifier of ``(B, 6, 5)`` sequences: packed attention, elastic in width and depth."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(5, width)
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(width, 3 * width) for _ in range(depth))
        self.norm = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(depth))
        self.head = torch.nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for qkv, norm in zip(self.qkv, self.norm, strict=True):
            query, key, value = qkv(norm(x)).chunk(3, dim=-1)
            x = x + torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
        logits: Tensor = self.head(x.mean(1))
        return logits


@functools.cache
def spaces() -> dict[str, SearchSpace]:
    """Spaces are immutable, so one of each serves all tests."""
    return {
        "mlp": MLPSpace(12, 4, widths=(6, 10), depths=(1, 2, 3)),
        "residual": ConvNetSpace(
            [Stage((4, 8), (1, 2), (3, 5, 7), (1, 2), block="residual")], 4, resolutions=(6, 8), per_block=True
        ),
        "inverted": ConvNetSpace(
            [Stage((4, 8), (1, 2), (3, 5), (1, 2), squeeze_excite=True), Stage((8, 12), (1, 2), (3,), (2,), stride=2)],
            4,
            resolutions=(6, 8),
        ),
        "cells": CellSpace(
            4, resolution=6, widths=(4, 6), cells=1, operations=("skip_connect", "none", "nor_conv_1x1")
        ),
        "factory": FactorySpace(
            Attention,
            {"width": [4, 8, 12], "depth": [1, 2]},
            input_shape=(6, 5),
            slicing={"qkv.*": {"blocks": {0: 3}}},
        ),
        "transformer": TransformerSpace(
            7, 5, widths=(6, 8), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4, num_classes=4
        ),
    }


@pytest.fixture(params=list(spaces()))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return spaces()[request.param]


@pytest.fixture(params=list(SOURCES))
def source(request: pytest.FixtureRequest, space: SearchSpace) -> WeightSource:
    """Every weight source, at weights where nothing is still zero, one or identity."""
    made = SOURCES[request.param](space, 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.fixture
def architectures(space: SearchSpace) -> list[Architecture]:
    """Both ends and a few in between."""
    generator = torch.Generator().manual_seed(3)
    return [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(4))]


def random_inputs(space: SearchSpace, count: int = 5, seed: int = 0) -> Tensor:
    (zeros,) = space.inputs(space.largest(), count)
    generator = torch.Generator().manual_seed(seed)
    if not zeros.is_floating_point():
        return torch.randint(7, zeros.shape, generator=generator)
    return torch.randn(zeros.shape, generator=generator)


@pytest.fixture
def inputs(space: SearchSpace) -> Tensor:
    return random_inputs(space)


class Batches:
    """The same labelled batches at every pass; a train loader of any origin."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@pytest.fixture
def labelled() -> Callable[..., Batches]:
    def make(space: SearchSpace, count: int = 2, size: int = 6, classes: int = 4) -> Batches:
        generator = torch.Generator().manual_seed(5)
        return Batches(
            [
                (random_inputs(space, size, seed=step), torch.randint(classes, (size,), generator=generator))
                for step in range(count)
            ]
        )

    return make


class GradientRecorder(L.Callback):
    """Keeps the gradients of the last optimiser step."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in pl_module.named_parameters()
        }


@pytest.fixture
def recorder() -> GradientRecorder:
    return GradientRecorder()


@pytest.fixture
def fit(tmp_path: Any) -> Callable[..., L.Trainer]:
    """Train quietly for ``steps`` steps."""

    def run(
        supernet: Supernet,
        loader: Batches | None,
        steps: int,
        ckpt_path: str | None = None,
        datamodule: L.LightningDataModule | None = None,
        **options: Any,
    ) -> L.Trainer:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"You defined a `validation_step` but have no `val_dataloader`")
            trainer.fit(supernet, loader, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


class TiedAutoencoder(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encode = torch.nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.decode = torch.nn.Conv1d(width, width, 3, padding=1, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.decode(self.encode(x).relu())
        return outputs


class TiedSpace(SearchSpace):
    choices = (Choice("width", (2, 4)),)

    def build(self, architecture: Architecture) -> torch.nn.Module:
        return TiedAutoencoder(architecture.integer("width"))

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, architecture.integer("width"), 5),)


@pytest.fixture
def tied_space() -> SearchSpace:
    return TiedSpace()
