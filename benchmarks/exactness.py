"""Are bind, extract and the functional call the same to the bit, and exported files the same within 1e-5?"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks import Result
from search_spaces import Architecture, ConvNetSpace, MLPSpace, SearchSpace, Stage
from supernets import Classification, Supernet
from supernets.export import export

TOLERANCE = 1e-5


def spaces() -> Mapping[str, SearchSpace]:
    return {
        "perceptron": MLPSpace(64, 10),
        "residual": ConvNetSpace(
            [Stage((16, 24, 32), (1, 2, 3), (3, 5, 7), (0.5, 1), stride=2, block="residual")] * 2,
            10,
            resolutions=(16, 24, 32),
        ),
        "inverted residual": ConvNetSpace(
            [
                Stage((16, 24), (1, 2), (3, 5), (3, 4, 6), stride=2, activation="silu"),
                Stage((24, 32, 40), (2, 3, 4), (3, 5), (3, 4, 6), stride=2, squeeze_excite=True, activation="silu"),
            ],
            10,
            resolutions=(24, 32),
            per_block=True,
        ),
    }


def difference(given: Tensor, expected: Tensor) -> float:
    return float((given.double() - expected.double()).abs().max())


def check(supernet: Supernet, architecture: Architecture, generator: torch.Generator) -> dict[str, float]:
    """Largest difference of every form of one architecture to the functional call; files only of calibrated ones."""
    space = supernet.space
    (zeros,) = space.inputs(architecture, 4)
    images = torch.randn(zeros.shape, generator=generator)
    plain = space.build(architecture).eval()
    expected = functional_call(plain, supernet.source(architecture), (images,))
    found = {
        "bind": difference(supernet.bind(architecture)(images), expected),
        "extract": difference(supernet.extract(architecture)(images), expected),
    }
    many = torch.randn(64, *zeros.shape[1:], generator=generator)
    module = supernet.calibrated(supernet.extract(architecture), [(many, None)])
    tensors = supernet.source(architecture) | dict(module.named_buffers())

    def reference(inputs: Tensor) -> Any:
        return functional_call(plain, tensors, (inputs,))

    with tempfile.TemporaryDirectory() as folder:
        formats = ("safetensors", "pt2", "onnx")
        made = export(module, (zeros,), Path(folder) / "out", formats=formats, manifest={}, reference=reference)
    return found | dict(made.parity)


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    count = 2 if quick else 12
    rows = []
    worst: dict[str, float] = {}
    for name, space in spaces().items():
        generator = torch.Generator().manual_seed(0)
        supernet = Supernet(space, Classification(10)).eval()
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
            architectures = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(count))]
            results = [check(supernet, architecture, generator) for architecture in architectures]
        most = {form: max(result[form] for result in results) for form in results[0]}
        rows.append({"space": name, "architectures": len(architectures), **{f: f"{d:.1e}" for f, d in most.items()}})
        worst = {form: max(value, worst.get(form, 0.0)) for form, value in most.items()}
    exact = worst["bind"] == worst["extract"] == worst["safetensors"] == 0.0
    close = max(worst["pt2"], worst["onnx"]) <= TOLERANCE
    return Result(
        tuple(rows),
        f"bind, extract and safetensors {'equal' if exact else 'differ from'} the functional call; .pt2 differs by "
        f"{worst['pt2']:.1e} and ONNX by {worst['onnx']:.1e} (asked: equal, and <= {TOLERANCE:.0e})",
        exact and close,
    )
