"""One pass of the largest build against explicit sums over candidates and against subnetworks."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import (
    Architecture,
    CellSpace,
    Choice,
    ConvNetSpace,
    FactorySpace,
    Head,
    MLPSpace,
    RelaxedArchitecture,
    SearchSpace,
    Stage,
    TransformerSpace,
)
from supernets import SharedWeights
from supernets.masked_network import weighted_norm
from supernets.relaxation import Relaxation, RelaxationError


class Packed(nn.Module):
    """A user's own classifier of ``(B, 5, 6)`` sequences: a packed matrix, recurrence, a root-mean-square norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(5, width, 1)
        self.gated = nn.Linear(width, 2 * hidden)
        self.norm = nn.RMSNorm(hidden)
        self.recurrent = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.gated(self.embed(x).transpose(1, 2)).chunk(2, dim=-1)
        states, _ = self.recurrent(self.norm(left * right.sigmoid()))
        logits: Tensor = self.head(states.mean(1))
        return logits


SPACES: dict[str, Callable[[], SearchSpace]] = {
    "mlp": lambda: MLPSpace(6, 3, widths=(3, 5), depths=(1, 2, 3)),
    "plain_mlp": lambda: MLPSpace(6, 3, widths=(3, 5), depths=(1, 3), batch_norm=False),
    "residual": lambda: ConvNetSpace(
        [Stage((4, 6), (1, 3), (3, 5, 7), (0.5, 1), block="residual")], 3, resolutions=(7,), per_block=True
    ),
    "inverted": lambda: ConvNetSpace(
        [Stage((4, 6), (1, 2), (3, 5), (1, 2), squeeze_excite=True), Stage((8, 10), (1, 2), stride=2)],
        3,
        resolutions=(6,),
        head=Head((8, 12), expansion=2),
    ),
    "transformer": lambda: TransformerSpace(
        7, 5, widths=(4, 6), depths=(1, 2), heads=(1, 2), ffn_ratios=(1, 2), head_dim=4
    ),
    "cells": lambda: CellSpace(3, resolution=6, widths=(4,), cells=1, affine=False),
    "packed": lambda: FactorySpace(
        Packed, {"width": [2, 4], "hidden": [4, 6]}, input_shape=(5, 6), slicing={"gated.*": {"blocks": {0: 2}}}
    ),
}


def randomised(space: SearchSpace) -> SharedWeights:
    source = SharedWeights(space, seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in source.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return source


def inputs_of(space: SearchSpace) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    return tuple(
        torch.randn(x.shape, generator=generator)
        if x.is_floating_point()
        else torch.randint(7, x.shape, generator=generator)
        for x in space.inputs(space.largest(), 6)
    )


def soft(space: SearchSpace, seed: int = 0) -> RelaxedArchitecture:
    generator = torch.Generator().manual_seed(seed)
    return RelaxedArchitecture(
        {c.name: torch.randn(c.size, generator=generator).softmax(0).requires_grad_() for c in space.choices}
    )


@pytest.mark.parametrize("name", SPACES)
def test_with_all_weight_on_one_architecture_it_is_that_subnetwork(name: str) -> None:
    space = SPACES[name]()
    source, inputs = randomised(space), inputs_of(space)
    generator = torch.Generator().manual_seed(2)
    for architecture in (space.smallest(), space.largest(), *(space.sample(generator) for _ in range(4))):
        source.skeletons.borrow(architecture, source.device).train()
        wanted = source.skeletons.call(architecture, source.device, source(architecture), inputs)
        relaxed = space.relax(architecture)
        found = source.relaxation(relaxed, source.relaxed(relaxed), inputs)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max(), dict(architecture)


def test_weights_are_the_sum_over_all_candidates_padded_with_their_gradients() -> None:
    """TangleNAS, Sec. 3: ``sum_k a_k pad(W[:c_k])`` over every combination of choices, as loops."""
    space = ConvNetSpace([Stage((3, 5), (1,), (1, 3, 5), (1, 2)), Stage((4, 6), (1,))], 3, resolutions=(5,))
    source, relaxed = randomised(space), soft(space)
    stored = source.stored()
    found = source.soften(relaxed, stored)
    expected = {name: torch.zeros_like(found[name]) for name in found}
    for positions in itertools.product(*(range(choice.size) for choice in space.choices)):
        chosen = list(zip(space.choices, positions, strict=True))
        probability = torch.stack([relaxed[choice.name][position] for choice, position in chosen]).prod()
        architecture = space.architecture({choice.name: choice.candidates[position] for choice, position in chosen})
        for part in source.plan(architecture):
            tensor = stored[part.source]
            for dim, start, length, _ in part.cuts:
                if dim > 0:  # what is written stays whole: norms follow
                    window = torch.zeros(tensor.shape[dim])
                    window[start : start + length] = 1
                    tensor = tensor * window.view([-1 if d == dim else 1 for d in range(tensor.ndim)])
            expected[part.name] = expected[part.name] + probability * tensor
    leaves = [*stored.values(), *relaxed.values()]
    noise = {name: torch.randn_like(value) for name, value in found.items()}
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-6), name
    mine = torch.autograd.grad(sum((found[n] * noise[n]).sum() for n in found), leaves, allow_unused=True)
    theirs = torch.autograd.grad(sum((expected[n] * noise[n]).sum() for n in found), leaves, allow_unused=True)
    moved = 0
    for one, other in zip(mine, theirs, strict=True):
        if other is not None and one is not None:
            moved += 1
            other = other - (other.mean() if one.ndim == 1 and len(one) < 4 else 0)
            one = one - (one.mean() if one.ndim == 1 and len(one) < 4 else 0)
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-6)
    assert moved == len(leaves)


def test_a_width_in_front_of_a_norm_has_a_gradient_through_what_reads_it() -> None:
    """A mask on the convolution itself would be cancelled by the norm (|dL/da| 1e6 times smaller)."""
    space = ConvNetSpace([Stage((4, 8), (1,), block="residual")], 3, resolutions=(6,))
    source, (images,), relaxed = randomised(space), inputs_of(space), soft(space)
    outputs = source.relaxation(relaxed, source.relaxed(relaxed), (images,))
    (through,) = torch.autograd.grad(outputs.square().sum(), relaxed["stage1.width"])

    weights = relaxed["stage1.width"].detach().requires_grad_()
    mask = weights @ torch.tensor([[1.0] * 4 + [0.0] * 4, [1.0] * 8])
    tensors = source.relaxed(space.relax(space.largest()))
    tensors["stage1.block1.conv2.weight"] = tensors["stage1.block1.conv2.weight"] * mask[:, None, None, None]
    module = source.skeletons.borrow(space.largest(), source.device).train()
    outputs = torch.func.functional_call(module, tensors, (images,))
    (inert,) = torch.autograd.grad(outputs.square().sum(), weights)
    contrast = torch.tensor([1.0, -1.0])
    assert abs(float(through @ contrast)) > 1e3 * abs(float(inert @ contrast))


@pytest.mark.parametrize("centre", [True, False])
def test_a_norm_under_weights_follows_its_equation_and_is_exact_for_a_prefix(centre: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, scale, bias = torch.randn(3, 6, generator=generator), torch.rand(6), torch.rand(6)
    weights = torch.tensor([1.0, 1.0, 0.7, 0.7, 0.2, 0.2])
    found = weighted_norm(x, weights, scale=scale, bias=bias, eps=1e-5, centre=centre).numpy()
    for row, values in zip(found, x.double().numpy(), strict=True):
        shares = weights.double().numpy() / weights.double().numpy().sum()
        mean = sum(s * v for s, v in zip(shares, values, strict=True)) if centre else 0.0
        variance = sum(s * (v - mean) ** 2 for s, v in zip(shares, values, strict=True))
        expected = (values - mean) / np.sqrt(variance + 1e-5) * scale.numpy() + bias.numpy()
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    hard = weighted_norm(x, (torch.arange(6) < 4).float(), scale=scale, bias=bias, eps=1e-5, centre=centre)[:, :4]
    if centre:
        exact = nn.functional.layer_norm(x[:, :4], (4,), scale[:4], bias[:4], 1e-5)
    else:
        exact = nn.functional.rms_norm(x[:, :4], (4,), scale[:4], 1e-5) + bias[:4]
    assert torch.allclose(hard, exact, atol=1e-6)


def test_blocks_that_depth_leaves_out_are_gated_by_the_probability_that_they_exist() -> None:
    """``x + P(depth > d) f(x)`` of a pre-norm block, all of its own choices at their largest."""
    space = TransformerSpace(7, 5, widths=(4,), depths=(1, 2, 3), heads=(2,), ffn_ratios=(2,), head_dim=4)
    source, (tokens,) = randomised(space), inputs_of(space)
    weights = torch.tensor([0.2, 0.5, 0.3])
    relaxed = RelaxedArchitecture({c.name: torch.ones(1) for c in space.choices} | {"depth": weights})
    found = source.relaxation(relaxed, source.relaxed(relaxed), (tokens,), regularise=False)
    module = source.largest.eval()
    x = module.embedding(tokens) + module.position(torch.arange(5))
    for block, exists in zip(module.blocks, (1.0, 0.8, 0.3), strict=True):
        x = x + exists * (block(x) - x)
    assert torch.allclose(found, module.head(module.norm(x)), atol=1e-5)


def test_each_equal_mask_is_computed_once_however_many_layers_read_the_width() -> None:
    space = SPACES["transformer"]()
    relaxation = Relaxation(space)
    assert len({mask.key for mask in relaxation._masks}) == len(relaxation._masks)
    assert len(relaxation._masks) == 5  # one width, and heads and hidden features of either layer


class NormLast(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.linear(x)).mean(1, keepdim=True)
        return outputs


class Cancelled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.linear(x.mean(1, keepdim=True).expand(-1, self.width)))
        return outputs


class Softmax(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.soft = nn.Softmax(dim=1)
        self.second = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.soft(self.first(x)))
        return outputs


class Unshaped(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 6) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)[:, :3]
        return x


class Sized(SearchSpace):
    choices = (Choice("width", (2, 4)),)

    def build(self, architecture: Architecture) -> nn.Module:
        return nn.Linear(architecture.integer("width"), 3)

    def inputs(self, architecture: Architecture, batch_size: int = 1) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, architecture.integer("width")),)


def factory(builder: type[nn.Module], choice: str, candidates: list[int], features: int = 4) -> FactorySpace:
    return FactorySpace(builder, {choice: candidates}, input_shape=(features,))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (lambda: factory(NormLast, "width", [4, 8]), r"'width' has no place for a mask.*linear.*norm.*cancels it"),
        (lambda: factory(Cancelled, "width", [4, 8]), r"\['width'\] have no effect.*in front of a norm"),
        (
            lambda: factory(Softmax, "width", [4, 8]),
            r"\['width'\] cannot be relaxed.*first in module 'soft' \(Softmax\)",
        ),
        (lambda: factory(Unshaped, "depth", [1, 2], 3), r"\['depth'\] leave out \['layers.1'\].*cannot be gated"),
        (Sized, r"take the same inputs"),
        (
            lambda: ConvNetSpace([Stage((4,), (1, 2))], 3, resolutions=(6, 8)),
            r"'resolution' has no place for a mask: it changes neither",
        ),
    ],
)
def test_what_no_single_pass_can_hold_is_refused_by_name(space: Callable[[], SearchSpace], message: str) -> None:
    with pytest.raises(RelaxationError, match=message):
        Relaxation(space())


def test_transformed_kernels_are_refused() -> None:
    space = ConvNetSpace([Stage((4,), (1,), (3, 5))], 3, resolutions=(6,))
    with pytest.raises(ValueError, match="set kernel_transform: false"):
        SharedWeights(space, kernel_transform=True).relaxed(space.relax(space.largest()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_under_weights_keeps_its_precision_under_autocast(dtype: torch.dtype) -> None:
    space = TransformerSpace(7, 5, widths=(6, 8), depths=(1,), heads=(2,), ffn_ratios=(2,), head_dim=4, num_classes=4)
    relaxation = SharedWeights(space).relaxation
    norm = next(
        m for m in relaxation.network(torch.device("cpu")).module.modules() if type(m).__name__ == "_WeightedNorm"
    )
    norm._weights = lambda: torch.ones(8)
    norm.weight, norm.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
    x = torch.randn(3, 8) + 300
    with torch.autocast("cpu", dtype=dtype):
        found = norm(x)
    torch.testing.assert_close(found, nn.functional.layer_norm(x, (8,)), rtol=1e-4, atol=1e-3)
