"""The EfficientTDNN space: its formulas, its block-structured parts, its published costs."""

import numpy as np
import pytest
import torch
from torch import nn

from nas.costs import MACs, Parameters, measure
from search_spaces import Architecture, Slicer, TDNNSpace
from search_spaces.tdnn import AttentiveStatistics, SERes2Block


def small_space(**given):
    sizes = {
        "mels": 6,
        "frames": 9,
        "widths": (8, 16),
        "kernels": (1, 3),
        "depths": (1, 2, 3),
        "head_widths": (5, 10),
        "scale": 4,
        "bottleneck": 3,
        "embedding": 7,
    }
    return TDNNSpace(5, **(sizes | given))


def randomise(module: nn.Module) -> nn.Module:
    """Evaluation mode, with norms that do something."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d):
            for values in (layer.weight, layer.bias, layer.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module.eval()


def convolve(x: np.ndarray, layer: nn.Conv1d) -> np.ndarray:
    """A dilated convolution of one ``(C, T)`` example, tap by tap."""
    weight, frames = layer.weight.detach().double().numpy(), x.shape[1]
    middle = weight.shape[2] // 2
    y = np.zeros((weight.shape[0], frames))
    for tap in range(weight.shape[2]):
        shift = (tap - middle) * layer.dilation[0]
        for t in range(frames):
            if 0 <= t + shift < frames:
                y[:, t] += weight[:, :, tap] @ x[:, t + shift]
    return y if layer.bias is None else y + layer.bias.detach().double().numpy()[:, None]


def rectified(x: np.ndarray, layer: nn.Conv1d, norm: nn.BatchNorm1d) -> np.ndarray:
    """Convolution, rectifier, then batch norm."""
    mean, var, scale, bias = (
        t.detach().double().numpy()[:, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (np.maximum(convolve(x, layer), 0) - mean) / np.sqrt(var + norm.eps) * scale + bias


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def matrix(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()


def block_by_hand(block: SERes2Block, x: np.ndarray) -> np.ndarray:
    h = rectified(x, block.enter, block.enter_norm)
    size = len(h) // block.scale
    groups = [h[i * size : (i + 1) * size] for i in range(block.scale)]
    outputs = []
    for i in range(block.scale - 1):
        outputs.append(rectified(groups[i] + (outputs[-1] if i else 0), block.res2[i], block.res2_norm[i]))
    y = rectified(np.concatenate([*outputs, groups[-1]]), block.leave, block.leave_norm)
    gate = sigmoid(matrix(block.excite, np.maximum(matrix(block.squeeze, y.mean(1)), 0)))
    return y * gate[:, None]


def pool_by_hand(pool: AttentiveStatistics, h: np.ndarray) -> np.ndarray:
    means, deviations = [], []
    scores = convolve(np.tanh(convolve(h, pool.attend)), pool.weigh)
    for channel, row in enumerate(scores):
        weights = np.exp(row) / np.exp(row).sum()
        mean = (weights * h[channel]).sum()
        means.append(mean)
        deviations.append(np.sqrt(max(1e-9, (weights * h[channel] ** 2).sum() - mean**2)))
    return np.array(means + deviations)


def test_a_block_follows_its_formula():
    block = randomise(SERes2Block(6, 8, kernel=3, dilation=2, scale=4, squeeze=2))
    x = torch.randn(2, 6, 11)
    for given, found in zip(x, block(x), strict=True):
        np.testing.assert_allclose(found.detach(), block_by_hand(block, given.double().numpy()), rtol=1e-4, atol=1e-5)


def test_pooling_follows_its_formula_and_survives_a_constant_channel():
    pool = AttentiveStatistics(4, 3)
    h = torch.randn(2, 4, 9)
    h[0, 1] = 2.0
    h.requires_grad_()
    found = pool(h)
    found.sum().backward()
    assert h.grad.isfinite().all()
    for given, row in zip(h, found, strict=True):
        np.testing.assert_allclose(
            row.detach(), pool_by_hand(pool, given.detach().double().numpy()), rtol=1e-3, atol=1e-4
        )


def test_the_network_is_blocks_with_dense_shortcuts_and_one_convolution_of_their_concatenation():
    space = small_space()
    model = randomise(space.build(space.largest()))
    features = torch.randn(2, 6, 9)
    embeddings, cosines = model(features)
    joined_weight = np.concatenate([part.weight.detach().double().numpy()[:, :, 0] for part in model.head], axis=1)
    for given, embedding, cosine in zip(features, embeddings, cosines, strict=True):
        outs = [rectified(given.double().numpy(), model.stem, model.stem_norm)]
        for number, block in enumerate(model.blocks):
            assert block.res2[0].dilation == (number + 2,)
            outs.append(block_by_hand(block, outs[-1]) + sum(outs))
        h = joined_weight @ np.concatenate(outs[1:]) + model.head[0].bias.detach().double().numpy()[:, None]
        pooled = pool_by_hand(model.pool, np.maximum(h, 0))

        def norm(x, layer):
            mean, var, scale, bias = (
                t.detach().double().numpy() for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
            )
            return (x - mean) / np.sqrt(var + layer.eps) * scale + bias

        expected = norm(matrix(model.embed, norm(pooled, model.pool_norm)), model.embed_norm)
        np.testing.assert_allclose(embedding.detach(), expected, rtol=1e-3, atol=1e-3)
        speakers = model.speakers.weight.detach().double().numpy()
        angles = [w @ expected / np.linalg.norm(w) / np.linalg.norm(expected) for w in speakers]
        np.testing.assert_allclose(cosine.detach(), angles, atol=1e-3)


def first_of_blocks(size: int, blocks: int, taken: int) -> list[int]:
    return [block * size // blocks + i for block in range(blocks) for i in range(taken)]


def test_parts_are_cut_by_res2_group_by_block_output_and_by_statistic():
    space = small_space()
    large = space.build(space.largest())
    smaller = space.architecture(
        {
            "stem.kernel": 1,
            "width": 8,
            "depth": 2,
            "head.width": 5,
            "block1.kernel": 3,
            "block1.width": 16,
            "block2.kernel": 1,
            "block2.width": 8,
        }
    )
    cut = Slicer(large, space.rules()).plan(space.build(smaller), smaller)(dict(large.named_parameters()))
    groups = first_of_blocks(16, 4, 2)
    statistics = first_of_blocks(20, 2, 5)
    full = {name: parameter.detach().numpy() for name, parameter in large.named_parameters()}
    for name, expected in {
        "blocks.1.enter.weight": full["blocks.1.enter.weight"][groups][:, :8],
        "blocks.1.enter.bias": full["blocks.1.enter.bias"][groups],
        "blocks.1.enter_norm.weight": full["blocks.1.enter_norm.weight"][groups],
        "blocks.1.res2.2.weight": full["blocks.1.res2.2.weight"][:2, :2, 1:2],
        "blocks.1.leave.weight": full["blocks.1.leave.weight"][:8][:, groups],
        "blocks.0.enter.weight": full["blocks.0.enter.weight"][:, :8],
        "blocks.0.res2.0.weight": full["blocks.0.res2.0.weight"],
        "pool_norm.bias": full["pool_norm.bias"][statistics],
        "embed.weight": full["embed.weight"][:, statistics],
        "pool.weigh.weight": full["pool.weigh.weight"][:5],
        "stem.weight": full["stem.weight"][:8, :, 1:2],
    }.items():
        assert np.array_equal(cut[name].detach().numpy(), expected), name
    joined = np.concatenate([full[f"head.{block}.weight"] for block in range(3)], axis=1)
    kept = [block * 16 + i for block in range(2) for i in range(8)]
    small = np.concatenate([cut[f"head.{block}.weight"].detach().numpy() for block in range(2)], axis=1)
    assert np.array_equal(small, joined[:5][:, kept])
    assert "head.2.weight" not in cut


def published(space: TDNNSpace, depth: int, widths: tuple[int, ...], kernels: tuple[int, ...], head: int):
    values: dict[str, int] = {"depth": depth, "width": widths[0], "stem.kernel": kernels[0], "head.width": head}
    for block in range(1, depth + 1):
        values |= {f"block{block}.width": widths[block], f"block{block}.kernel": kernels[block]}
    return space.architecture(values)


def test_costs_are_those_published_for_efficient_tdnn():
    """MACs of 300 frames and parameters without the classifier, of the base model and of both ends of the space."""
    space = TDNNSpace(5994)
    costs = [MACs(space), Parameters(space)]
    base = published(space, 3, (512,) * 4, (5, 3, 3, 3), 1536)
    for architecture, macs, params in (
        (base, 1.45e9, 5.79e6),
        (space.largest(), 1.93e9, 7.55e6),
        (space.smallest(), 83.5e6, 0.44e6),
    ):
        found = measure(costs, space, architecture)
        assert found["macs"] == pytest.approx(macs, rel=0.02)
        assert found["params"] - 5994 * 192 == pytest.approx(params, rel=0.02)


def test_any_number_of_frames_is_taken():
    space = small_space()
    model = space.build(space.smallest()).eval()
    assert [model(torch.randn(2, 6, frames))[0].shape for frames in (1, 30)] == [(2, 7), (2, 7)]


def test_choices_of_absent_blocks_are_absent_and_single_candidates_are_no_choices():
    space = small_space(kernels=(3,), head_widths=(6,))
    assert [c.name for c in space.choices] == ["width", "depth", "block1.width", "block2.width", "block3.width"]
    assert "block2.width" not in space.smallest()
    assert space.build(space.largest()).blocks[2].res2[0].kernel_size == (3,)
    assert isinstance(space.smallest(), Architecture)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widths": (8, 18)}, r"TDNNSpace.widths must divide into scale >= 2 groups.*widths=\(8, 18\), scale=4"),
        ({"scale": 1}, "TDNNSpace.widths must divide into scale >= 2 groups.*scale=1"),
        ({"kernels": (1, 2)}, r"TDNNSpace.kernels must be odd, got \(1, 2\)"),
        ({"depths": (0, 1)}, r"TDNNSpace.depths must be numbers above zero, got \(0, 1\)"),
        ({"head_widths": ()}, r"TDNNSpace.head_widths must be numbers above zero, got \(\)"),
        ({"mels": 0}, "TDNNSpace.mels must be at least 1, got 0"),
        ({"reduction": 9}, r"TDNNSpace.reduction must be at most the smallest width, got 9 with \(8, 16\)"),
        ({"widths": (16, 8)}, r"choice 'width': ordinal.*ascending"),
    ],
)
def test_a_bad_description_is_refused_with_the_field_and_the_value(given, message):
    with pytest.raises(ValueError, match=message):
        small_space(**given)
