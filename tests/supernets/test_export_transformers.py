"""Transformers leave as plain files: any batch size, every input, tied tables, positions and masks traced rightly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import SearchSpace, Stack, TransformerSpace, TranslationSpace, VisionTransformerSpace
from supernets import LanguageModelling, Supernet, export

SIZES: dict[str, Any] = {"widths": (8, 12), "depths": (1, 2), "heads": (1, 2), "ffn_ratios": (1, 2)}

SPACES: dict[str, Callable[[], SearchSpace]] = {
    "classifier": lambda: TransformerSpace(9, 6, **SIZES, head_dim=4, positions="rotary", num_classes=3, padding=0),
    "vision": lambda: VisionTransformerSpace(3, 6, 3, **SIZES, head_dim=4),
    "translation": lambda: TranslationSpace(
        9, 6, encoder=Stack(**SIZES), decoder=Stack(**SIZES, cross_heads=(1, 2)), head_dim=4
    ),
}


def inputs_of(space: SearchSpace, count: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(given.shape) if given.is_floating_point() else torch.randint(9, given.shape)
        for given in space.inputs(space.largest(), count)
    )


@pytest.mark.parametrize("name", ["classifier", "vision"])
def test_a_program_of_torch_export(name: str, tmp_path: Path) -> None:
    space = SPACES[name]()
    module = Supernet(space, LanguageModelling()).extract(space.largest())
    exported = export(module, space.inputs(space.largest(), 2), tmp_path / "out", formats=["pt2"], manifest={})
    program = torch.export.load(exported.files["pt2"]).module()
    inputs = inputs_of(space, 5)
    torch.testing.assert_close(program(*inputs), module(*inputs), atol=1e-6, rtol=1e-5)


def test_an_onnx_file(tmp_path: Path) -> None:
    import onnxruntime

    space = SPACES["translation"]()
    module = Supernet(space, LanguageModelling()).extract(space.smallest())
    exported = export(module, space.inputs(space.smallest(), 2), tmp_path / "out", formats=["onnx"], manifest={})
    session = onnxruntime.InferenceSession(exported.files["onnx"])
    inputs = inputs_of(space, 5)
    named = {argument.name: given.numpy() for argument, given in zip(session.get_inputs(), inputs, strict=True)}
    (outputs,) = session.run(None, named)
    torch.testing.assert_close(torch.from_numpy(outputs), module(*inputs), atol=1e-5, rtol=1e-5)
