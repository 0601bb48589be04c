"""Transformers leave as plain files: any batch size, every input, tied tables, rotations and masks traced rightly."""

from pathlib import Path
from typing import Any

import torch

from search_spaces import SearchSpace, Stack, TranslationSpace, VisionTransformerSpace
from supernets import SharedWeights, Supernet, Translation, export

SIZES: dict[str, Any] = {"widths": (8, 12), "depths": (1, 2), "heads": (1, 2), "ffn_ratios": (1, 2)}


def extracted(space: SearchSpace) -> torch.nn.Module:
    """A subnetwork whose outputs are far from zero."""
    supernet = Supernet(space, Translation(max_length=6))
    assert isinstance(supernet.source, SharedWeights)
    for parameter in supernet.source.stored().values():
        torch.nn.init.normal_(parameter, std=0.5)
    return supernet.extract(space.smallest())


def test_a_vision_transformer_as_a_program_of_torch_export(tmp_path: Path) -> None:
    space = VisionTransformerSpace(3, 6, 3, **SIZES, head_dim=4)
    module = extracted(space)
    exported = export(module, space.inputs(space.smallest(), 2), tmp_path / "out", formats=["pt2"], manifest={})
    images = torch.randn(5, 3, 6, 6)
    program = torch.export.load(exported.files["pt2"]).module()
    torch.testing.assert_close(program(images), module(images), atol=1e-5, rtol=1e-5)


def test_a_translator_as_an_onnx_file(tmp_path: Path) -> None:
    import onnxruntime

    stacks = {"encoder": Stack(**SIZES), "decoder": Stack(**SIZES, cross_heads=(1, 2))}
    space = TranslationSpace(9, 6, **stacks, head_dim=4, positions="rotary")
    module = extracted(space)
    exported = export(module, space.inputs(space.smallest(), 2), tmp_path / "out", formats=["onnx"], manifest={})
    session = onnxruntime.InferenceSession(exported.files["onnx"])
    inputs = torch.randint(9, (5, 6)), torch.randint(9, (5, 6))
    inputs[0][:3, 4:] = 0
    named = {argument.name: given.numpy() for argument, given in zip(session.get_inputs(), inputs, strict=True)}
    (outputs,) = session.run(None, named)
    torch.testing.assert_close(torch.from_numpy(outputs), module(*inputs), atol=1e-4, rtol=1e-4)
