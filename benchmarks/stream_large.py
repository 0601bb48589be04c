"""Writing 25 million generated weights to a file: how long, and how much memory does it take?

The tensors of a ResNet-50 (25.5 M weights, 102 MB) from a chunked hypernetwork to safetensors, tensor by tensor,
against generating all first and saving then. Each way runs in a process of its own; memory is the growth of its
resident set's peak during the call, from Linux's own high-water mark. The residual (theta0) alone is as large as the
target and belongs to the hypernetwork, so both kinds are shown; the figures asked for are those of the small one.
What is asked is wall-clock time, which other work of the machine lengthens; CPU time of the process is shown beside it.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks import Result
from hypernets import ChunkedHyperNetwork, Parametrization, Target, TensorSpec, Unit, save_weights

ASKED = ("stream", "none")


def resnet50() -> Target:
    """Convolutions and classifier of a ResNet-50."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    inputs = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, inputs, 1, 1)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{name}.downsample.weight"] = (4 * width, inputs, 1, 1)
            inputs = 4 * width
    shapes |= {"fc.weight": (1000, 2048), "fc.bias": (1000,)}
    return Target(
        tuple(
            TensorSpec(name, shape, "weight" if len(shape) > 1 else "bias", max(1, torch.Size(shape[1:]).numel()))
            for name, shape in shapes.items()
        )
    )


def peak() -> int:
    """Bytes of the resident set's high-water mark."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def measure(way: str, residual: str, path: Path) -> dict[str, float]:
    """Write once and return seconds, bytes of memory and sizes; in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hypernet = ChunkedHyperNetwork(
        resnet50(),
        {"strength": Unit()},
        hidden=(16, 64),
        chunk=8192,
        low_rank_above=None,
        parametrization=Parametrization(residual="learned" if residual == "learned" else "none"),
    )
    condition = {"strength": 0.5}
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from here
    before = peak()
    start, cpu = time.perf_counter(), time.process_time()
    if way == "stream":
        save_weights(hypernet, condition, path)
    else:
        with torch.no_grad():
            save_file({name: value[0].contiguous() for name, value in hypernet.generate(condition).items()}, path)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    grown = peak() - before
    with safe_open(path, "pt") as file, torch.no_grad():
        written = file.get_tensor("layer4.2.conv2.weight")
        expected = hypernet.generate(condition, {"layer4.2.conv2.weight": written.shape})["layer4.2.conv2.weight"][0]
        assert len(list(file.keys())) == len(hypernet.target.tensors)
    torch.testing.assert_close(written, expected)
    return {
        "seconds": seconds,
        "cpu": cpu,
        "grown": grown,
        "parameters": sum(parameter.numel() for parameter in hypernet.parameters()),
        "target": hypernet.target.numel,
    }


def run(quick: bool) -> Result:
    """Five runs of what is asked for and one of the rest; ``quick`` takes one of each."""
    times = 1 if quick else 5
    rows = []
    found: dict[tuple[str, str], tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for residual in ("none", "learned"):
            for way in ("stream", "all at once"):
                command = [sys.executable, "-m", __name__, way, residual, str(Path(folder) / "weights.safetensors")]
                runs = [
                    json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                    for _ in range(times if (way, residual) == ASKED else 1)
                ]
                found[way, residual] = min(run["seconds"] for run in runs), max(run["grown"] for run in runs) / 1e6
                rows.append(
                    {
                        "way": way,
                        "residual": residual,
                        "target": f"{runs[0]['target'] / 1e6:.1f} M",
                        "hypernetwork": f"{runs[0]['parameters'] / 1e6:.1f} M",
                        "seconds, each run": " ".join(f"{run['seconds']:.2f}" for run in runs),
                        "CPU seconds": " ".join(f"{run['cpu']:.2f}" for run in runs),
                        "memory, MB": f"{found[way, residual][1]:.0f}",
                    }
                )
    seconds, grown = found[ASKED]
    return Result(
        tuple(rows),
        f"streaming {rows[0]['target']} weights takes {seconds:.2f} s (asked: <= 1) and {grown:.0f} MB "
        f"(asked: <= 64), the fastest run and the largest growth of {times}",
        seconds <= 1 and grown <= 64,
    )


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
