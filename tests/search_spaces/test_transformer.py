"""What transformer spaces promise beyond the contract of all spaces."""

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces import Stack, TransformerSpace, TranslationSpace, VisionTransformerSpace
from search_spaces.attention import Attention, TransformerBlock, attended, rotate

SIZES = {"widths": (8, 12), "depths": (1, 2), "heads": (1, 2), "ffn_ratios": (1, 2), "head_dim": 4}


def numbers(tensor):
    return tensor.detach().double().numpy()


def affine(layer, x):
    return x @ numbers(layer.weight).T + (0 if layer.bias is None else numbers(layer.bias))


def attention(module, x, source, seen):
    """Loop over examples, heads and positions; ``seen(b, t, s)`` says whether t of example b looks at s."""
    query, key, value = affine(module.query, x), affine(module.key, source), affine(module.value, source)
    mixed = np.zeros_like(query)
    for b in range(len(x)):
        for head in range(module.heads):
            part = slice(head * module.head_dim, (head + 1) * module.head_dim)
            for t in range(x.shape[1]):
                places = [s for s in range(source.shape[1]) if seen(b, t, s)]
                scores = np.array([query[b, t, part] @ key[b, s, part] for s in places]) / np.sqrt(module.head_dim)
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                mixed[b, t, part] = sum(p * value[b, s, part] for p, s in zip(shares, places, strict=True))
    return affine(module.out, mixed)


def layer_norm(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps)
    return scaled * numbers(layer.weight) + numbers(layer.bias)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_equation(causal):
    module = Attention(6, 2, 4, causal=causal)
    x = torch.randn(2, 5, 6)
    expected = attention(module, numbers(x), numbers(x), lambda b, t, s: s <= t or not causal)
    np.testing.assert_allclose(numbers(module(x)), expected, atol=1e-5)


def test_attention_to_a_source_skips_its_padding():
    module = Attention(6, 2, 4, source_width=3)
    x, source = torch.randn(2, 4, 6), torch.randn(2, 5, 3)
    kept = torch.tensor([[True, True, False, False, True], [True, False, True, True, True]])
    expected = attention(module, numbers(x), numbers(source), lambda b, t, s: bool(kept[b, s]))
    np.testing.assert_allclose(numbers(module(x, source, kept)), expected, atol=1e-5)


def test_a_block_is_its_equation():
    block = TransformerBlock(6, 2, 10, head_dim=4, cross_heads=1, source_width=3, causal=True, activation="relu")
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, source = torch.randn(2, 4, 6), torch.randn(2, 5, 3)
    stream, beside = numbers(x), numbers(source)
    normed = layer_norm(block.norm1, stream)
    stream = stream + attention(block.attention, normed, normed, lambda b, t, s: s <= t)
    stream = stream + attention(block.cross, layer_norm(block.norm_cross, stream), beside, lambda b, t, s: True)
    hidden = np.maximum(affine(block.ffn.fc1, layer_norm(block.norm2, stream)), 0)
    np.testing.assert_allclose(
        numbers(block(x, source=source)), stream + affine(block.ffn.fc2, hidden), rtol=1e-4, atol=1e-4
    )


def test_rotation_is_its_equation():
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    turned = rotate(x, base=100.0).numpy()
    for t in range(7):
        for pair in range(3):
            angle = t * 100.0 ** (-2 * pair / 6)
            matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            expected = x[:, t, [pair, pair + 3]].numpy() @ matrix.T
            np.testing.assert_allclose(turned[:, t, [pair, pair + 3]], expected, atol=1e-6)


def test_rotated_attention_sees_distances_only():
    """The same tokens, two places later, attend to each other alike."""
    torch.manual_seed(0)
    query, key = torch.randn(5, 8), torch.randn(5, 8)
    scores = rotate(query) @ rotate(key).T
    later = rotate(nn.functional.pad(query, (0, 0, 2, 0))) @ rotate(nn.functional.pad(key, (0, 0, 2, 0))).T
    torch.testing.assert_close(later[2:, 2:], scores)


def test_the_first_token_is_always_attended_to():
    assert attended(torch.tensor([[3, 0, 4, 0], [0, 0, 0, 0]]), 0).tolist() == [
        [True, False, True, False],
        [True, False, False, False],
    ]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_language_model_never_looks_ahead(positions):
    model = TransformerSpace(9, 6, **SIZES, positions=positions)
    module = model.build(model.largest()).eval()
    tokens = torch.randint(9, (2, 6))
    changed = tokens.clone()
    changed[:, 4] = (tokens[:, 4] + 1) % 9
    before, after = module(tokens), module(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])
    assert module(tokens[:, :3]).shape == (2, 3, 9)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_word_order_matters(positions):
    space = TransformerSpace(9, 6, **SIZES, positions=positions, num_classes=3)
    module = space.build(space.largest()).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert not torch.allclose(module(tokens), module(tokens.flip(1)), atol=1e-3)


def test_a_classifier_does_not_see_padding():
    space = TransformerSpace(9, 6, **SIZES, num_classes=3, padding=0)
    module = space.build(space.largest()).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    short = torch.tensor([[3, 5, 2], [7, 1, 4]])
    torch.testing.assert_close(module(nn.functional.pad(short, (0, 3))), module(short))


def test_a_translator_does_not_see_the_padding_of_its_source():
    stack = {"widths": (8,), "depths": (2,), "heads": (2,), "ffn_ratios": (2,)}
    space = TranslationSpace(9, 6, encoder=Stack(**stack), decoder=Stack(**stack, cross_heads=(2,)), head_dim=4)
    module = space.build(space.largest()).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    source, target = torch.tensor([[3, 5, 2], [7, 1, 4]]), torch.tensor([[1, 4, 4, 2], [1, 3, 8, 8]])
    expected = module(source, target)
    torch.testing.assert_close(module(nn.functional.pad(source, (0, 3)), target), expected)
    assert not torch.allclose(module(source.flip(1), target), expected, atol=1e-3)
    target[:, 3] = 5
    assert torch.equal(module(source, target)[:, :3], expected[:, :3])


def test_patches_are_cut_from_the_image():
    """One patch seen by the first layer is the product of its pixels with the layer's matrix."""
    space = VisionTransformerSpace(3, 6, 3, **SIZES, in_channels=2)
    module = space.build(space.largest())
    images = torch.randn(2, 2, 6, 6)
    patches = module.embedding(images).flatten(2).transpose(1, 2)
    matrix = module.embedding.weight.flatten(1)
    for number, (top, left) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        pixels = images[:, :, top : top + 3, left : left + 3].flatten(1)
        torch.testing.assert_close(patches[:, number], pixels @ matrix.T + module.embedding.bias)


def test_tied_embeddings_are_one_tensor():
    def parameters(tied):
        space = TransformerSpace(50, 6, **SIZES, tie_embeddings=tied)
        return sum(parameter.numel() for parameter in space.build(space.largest()).parameters())

    assert parameters(False) - parameters(True) == 50 * 12 + 50  # a matrix and a bias


def test_depth_leaves_out_the_last_blocks_and_their_choices():
    space = TransformerSpace(9, 6, **SIZES)
    assert set(space.smallest()) == {"width", "depth", "layer1.heads", "layer1.ffn_ratio"}
    names = {name.split(".")[1] for name, _ in space.build(space.smallest()).named_parameters() if "blocks" in name}
    assert names == {"0"}
    alike = TransformerSpace(9, 6, **SIZES, per_layer=False)
    assert {choice.name for choice in alike.choices} == {"width", "depth", "heads", "ffn_ratio"}


def test_mixtures_of_experts_mix_the_feed_forward_pair():
    space = TransformerSpace(9, 6, **SIZES)
    assert space.mixed() == ("*.ffn.fc1.*", "*.ffn.fc2.*")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 1}, "vocabulary >= 2"),
        ({"widths": (12, 8)}, r"widths must be ascending numbers above zero, got \(12, 8\)"),
        ({"heads": (0, 1)}, "heads must be ascending numbers above zero"),
        ({"depths": ()}, "depths must name at least one candidate"),
        ({"ffn_widths": (4,)}, "exactly one of ffn_ratios .* and ffn_widths"),
        ({"ffn_ratios": ()}, "exactly one of ffn_ratios .* and ffn_widths"),
        ({"positions": "rotary", "head_dim": 3}, "head_dim must be even, got 3"),
        ({"positions": "sinusoidal"}, "must be 'learned' or 'rotary', got 'sinusoidal'"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"padding": 0}, "belongs to classifiers"),
        ({"padding": 9, "num_classes": 2}, "padding must be a token of the 9"),
    ],
)
def test_bad_options_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerSpace(**{"vocabulary": 9, "context": 6, **SIZES, **change})


def test_patches_must_tile_the_image():
    with pytest.raises(ValueError, match=r"multiple of patch_size, got .*image_size=8, patch_size=3"):
        VisionTransformerSpace(3, 8, 3, **SIZES)


@pytest.mark.parametrize(("encoder", "decoder"), [((1,), (1,)), ((), ())])
def test_cross_heads_belong_to_the_decoder(encoder, decoder):
    stack = {"widths": (8,), "depths": (1,), "heads": (1,), "ffn_ratios": (1,)}
    with pytest.raises(ValueError, match="give candidates to decoder and none to encoder"):
        TranslationSpace(
            9, 6, encoder=Stack(**stack, cross_heads=encoder), decoder=Stack(**stack, cross_heads=decoder), head_dim=4
        )


def test_too_many_tokens_are_an_error():
    space = TransformerSpace(9, 6, **SIZES)
    with pytest.raises(ValueError, match="at most 6 tokens fit, got 7"):
        space.build(space.smallest())(torch.zeros(1, 7, dtype=torch.int64))
