"""Are low bits real in an exported file: the same outputs, the bytes of the cost model, and faster than fp32?

Linear layers of 2, 4 and 8 bits out of quantised supernets, on grids with zero (LSQ) and mid-rise (StatsQ, with the
half-step correction), weights alone quantised, at both accuracy levels of the runtime's operator; convolutions W8A8
with batch norm, the outputs of the quantiser behind them counted in steps. Times are minima of runs in turns of the
fp32 export and the low-bit export of the same network, one thread.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks import Result
from nas.costs import ModelSize, measure
from nas.runtime import fingerprint, time_models
from search_spaces import FactorySpace, InputQuantizer, QuantizedSpace
from search_spaces.quantizer import quantize_input
from supernets import QuantizedWeights
from supernets.deployment import max_abs_layers, quantized_layers
from supernets.format import Subject
from supernets.formats import OnnxFormat
from supernets.lowbit import LowBitOnnxFormat
from supernets.lowbit_graph import at_level
from supernets.quantizers import LSQ, StatsQ, WeightQuantizer

ERROR = {0: 1e-5, 4: 1e-2}
SIZE, OFF, SPEED = 0.05, 1e-3, 1.5
SHAPES = ((64, 32), (128, 16), (256, 8))


class Dense(nn.Module):
    """One linear layer."""

    def __init__(self, outputs: int = 512) -> None:
        super().__init__()
        self.linear = nn.Linear(1024, outputs)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear(x)
        return made


class Convolution(nn.Module):
    """A convolution, batch norm and ReLU, and a layer that passes on what its quantiser makes of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.end = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        passed: Tensor = self.end(torch.relu(self.norm(self.body(x))))
        return passed


def run_file(source: str | bytes, x: Tensor) -> Tensor:
    """What ONNX Runtime makes of one input."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def linear_row(bits: int, quantizer: WeightQuantizer, folder: Path, generator: torch.Generator) -> Mapping[str, object]:
    """Errors and size of one exported linear layer with weights of ``bits`` bits."""
    plain = FactorySpace(Dense, {"outputs": [256, 512]}, input_shape=(1024,))
    space = QuantizedSpace(plain, weight_bits=(bits,), input_bits=None, ends=None)
    source = QuantizedWeights(space, quantizer=quantizer)
    architecture = space.largest()
    module = space.build(architecture).eval()
    module.load_state_dict(source(architecture))
    x = torch.randn(16, 1024, generator=generator)
    path = folder / "linear.onnx"
    told = LowBitOnnxFormat(quantized_layers(source, architecture)).write(Subject(module, (x,)), path, {})
    with torch.no_grad():
        wanted = module(x)
    model = onnx.load(path)
    errors = {
        level: float(
            (run_file(at_level(model, level).SerializeToString(), x) - wanted).abs().max() / wanted.abs().max()
        )
        for level in ERROR
    }
    promised = measure([ModelSize(space)], space, architecture)["model_size"]
    size = path.stat().st_size
    real = all(layer["deploy"] == "real" for layer in told["layers"].values())
    passed = real and abs(size / promised - 1) <= SIZE and all(errors[level] <= ERROR[level] for level in ERROR)
    return {
        "network": f"linear 1024 > 512, W{bits}, {type(quantizer).__name__}",
        "layers": "real" if real else "not real",
        "error, level 0": f"{errors[0]:.1e}",
        "error, level 4": f"{errors[4]:.1e}",
        "file, byte": f"{size:,}",
        "of the cost model": f"{100 * size / promised:.1f} %",
        "outputs off by a step": "",
        "fp32, ms": "",
        "low bits, ms": "",
        "times faster": "",
        "passed": passed,
    }


def convolution(channels: int, size: int, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """A network whose quantiser steps are fitted to its own values, and an input."""
    with torch.random.fork_rng():
        torch.manual_seed(channels)
        net = Convolution(channels).eval()
        nn.init.normal_(net.norm.weight)
        nn.init.normal_(net.norm.bias)
    x = torch.rand(1, channels, size, size, generator=generator)
    with torch.no_grad():
        hidden = net.body(x)
        net.norm.get_buffer("running_mean").copy_(hidden.mean((0, 2, 3)))
        net.norm.get_buffer("running_var").copy_(hidden.var((0, 2, 3)))
        net.end.weight.fill_(1.0)
        largest = float(torch.relu(net.norm(hidden)).max())
    for layer, high in ((net.body, 1.0), (net.end, largest)):
        quantizer = InputQuantizer(8, signed=False)
        quantizer.scale.data.fill_(high / 255)
        quantize_input(layer, quantizer)
    return net, x


def convolution_row(
    channels: int, size: int, folder: Path, generator: torch.Generator, repeats: int
) -> dict[str, object]:
    """Outputs off by a step and times of one W8A8 convolution."""
    net, x = convolution(channels, size, generator)
    plain = Convolution(channels).eval()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "quantizer" not in k})
    layers = max_abs_layers(net, {"body": (8, 8), "end": (8, 8)})
    files = {"fp32": folder / "conv32.onnx", "low": folder / "conv8.onnx"}
    batch = torch.cat([x, x])
    OnnxFormat().write(Subject(plain, (batch,)), files["fp32"], {})
    told = LowBitOnnxFormat(layers).write(Subject(net, (batch,)), files["low"], {})
    step = float(net.get_parameter("end.input_quantizer.scale").detach())
    with torch.no_grad():
        off = (run_file(str(files["low"]), x) - net(x)).abs() > step / 2
    share = float(off.float().mean())
    timed = time_models(files, [x], repeats=repeats)
    ratio = timed["fp32"].minimum / timed["low"].minimum
    real = told["layers"]["body"]["deploy"] == "real"
    return {
        "network": f"conv 3x3 W8A8, {channels} channels at {size}x{size}",
        "layers": "real" if real else "not real",
        "error, level 0": "",
        "error, level 4": "",
        "file, byte": f"{files['low'].stat().st_size:,}",
        "of the cost model": "",
        "outputs off by a step": f"{share:.1e}",
        "fp32, ms": f"{timed['fp32'].minimum:.3f}",
        "low bits, ms": f"{timed['low'].minimum:.3f}",
        "times faster": f"{ratio:.2f}",
        "passed": real and share <= OFF and (ratio >= SPEED or not has_vnni()),
    }


def speed_rows(widths: tuple[int, ...], folder: Path, repeats: int) -> list[dict[str, object]]:
    """Times of a perceptron of 1024 units at batch 1, in fp32 and with packed weights; 4 bits are to be faster."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).eval()
    x = torch.rand(1, 1024)
    files = {0: folder / "dense.onnx"} | {bits: folder / f"dense{bits}.onnx" for bits in widths}
    batch = torch.cat([x, x])
    OnnxFormat().write(Subject(net, (batch,)), files[0], {})
    for bits in widths:
        twin = copy.deepcopy(net)
        layers = max_abs_layers(twin, {"0": (bits, 32), "2": (bits, 32)})
        LowBitOnnxFormat(layers).write(Subject(twin, (batch,)), files[bits], {})
    timed = time_models({str(bits): path for bits, path in files.items()}, [x], repeats=repeats)
    rows = []
    for bits in widths:
        ratio = timed["0"].minimum / timed[str(bits)].minimum
        rows.append(
            {
                "network": f"2 linear W{bits} of 1024 units, batch 1",
                "layers": "real",
                "error, level 0": "",
                "error, level 4": "",
                "file, byte": f"{files[bits].stat().st_size:,}",
                "of the cost model": "",
                "outputs off by a step": "",
                "fp32, ms": f"{timed['0'].minimum:.3f}",
                "low bits, ms": f"{timed[str(bits)].minimum:.3f}",
                "times faster": f"{ratio:.2f}",
                "passed": bits != 4 or ratio >= SPEED or not has_vnni(),
            }
        )
    return rows


def has_vnni() -> bool:
    """Whether this machine multiplies 8-bit integers in vectors."""
    return any("vnni" in flag for flag in fingerprint(1)["instructions"])


def run(quick: bool) -> Result:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    repeats = 100 if quick else 1000
    rows: list[Mapping[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for bits in (4,) if quick else (2, 4, 8):
            rows += [linear_row(bits, quantizer, folder, generator) for quantizer in (LSQ(), StatsQ())]
        shapes = SHAPES[1:2] if quick else SHAPES
        rows += [convolution_row(*shape, folder, generator, repeats) for shape in shapes]
        rows += speed_rows((4,) if quick else (2, 4, 8), folder, repeats)
    failed = [str(row["network"]) for row in rows if not row["passed"]]
    speed = f"{SPEED} times faster than fp32" + ("" if has_vnni() else " (not asked: no VNNI here)")
    verdict = (
        f"{len(rows) - len(failed)} of {len(rows)} as asked: linear layers within {ERROR[0]:g} at level 0 and "
        f"{ERROR[4]:g} at level 4, files within {100 * SIZE:.0f} % of the cost model, at most {OFF:g} of outputs off "
        f"by a step, W8A8 convolutions and 4-bit linear layers at batch 1 at least {speed}"
    )
    return Result(tuple(rows), verdict + (f"; short: {', '.join(failed)}" if failed else ""), not failed)
