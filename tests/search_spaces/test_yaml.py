"""Spaces as a configuration file writes them, read by the parser of the command line."""

import pytest
from jsonargparse import ArgumentParser

from search_spaces import SearchSpace, construct, describe

TEXTS = {
    "mlp": "{class_path: search_spaces.MLPSpace, init_args: {in_features: 64, num_classes: 10, widths: [8, 16]}}",
    "convnet": """
        class_path: search_spaces.ConvNetSpace
        init_args:
          num_classes: 3
          stages:
            - {widths: [4, 8], depths: [1, 2], kernels: [3, 5], block: residual}
            - {widths: [4, 8], depths: [1, 2], expansions: [2, 3.5], squeeze_excite: true}
          stem: {widths: [4, 8], stride: 2}
          head: {widths: [16, 32]}
    """,
    "mobilenet": "{class_path: search_spaces.mobilenet_v3_space, init_args: {num_classes: 10}}",
    "language_model": """
        class_path: search_spaces.TransformerSpace
        init_args: {vocabulary: 9, context: 6, widths: [8, 12], depths: [1, 2], heads: [1, 2], ffn_ratios: [1, 2.5]}
    """,
    "vision": """
        class_path: search_spaces.VisionTransformerSpace
        init_args:
          {num_classes: 3, image_size: 8, patch_size: 4, widths: [8, 12], depths: [1], heads: [1, 2], ffn_widths: [9]}
    """,
    "translation": """
        class_path: search_spaces.TranslationSpace
        init_args:
          vocabulary: 9
          context: 6
          encoder: {widths: [8, 12], depths: [1], heads: [2], ffn_ratios: [2]}
          decoder: {widths: [8, 12], depths: [1], heads: [2], ffn_ratios: [2], cross_heads: [1, 2]}
    """,
    "user_class": """
        class_path: search_spaces.FactorySpace
        init_args:
          builder: tests.search_spaces.models.UserCNN
          choices: {widths.length: [1, 3], "widths.*": [4, 8], kernel: [3, 5]}
          input_shape: [1, 6, 6]
          fixed: {num_classes: 4}
    """,
    "rules": """
        class_path: search_spaces.FactorySpace
        init_args:
          builder: tests.search_spaces.models.PackedAttention
          choices: {heads: {low: 1, high: 4}}
          input_shape: [5, 6]
          slicing: {"qkv.*": {blocks: {0: 3}}}
    """,
}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mlp", 14),
        ("convnet", 256),
        ("language_model", 40),
        ("vision", 4),
        ("translation", 8),
        ("user_class", 20),
        ("rules", 4),
    ],
)
def test_a_space_written_in_yaml(name, size):
    space = read(name)
    assert space.size() == size
    assert construct(describe(space)).digest == space.digest


def test_a_function_that_returns_a_space_serves_as_a_class_path():
    assert read("mobilenet").choice("stage5.depth").candidates == (3, 4, 5, 6, 7, 8)


def read(name: str) -> SearchSpace:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SearchSpace, "space")
    body = TEXTS[name].strip("\n")
    text = f"space: {body}" if body.startswith("{") else f"space:\n{body}"
    space = parser.instantiate(parser.parse_string(text)).space
    assert isinstance(space, SearchSpace)
    return space
