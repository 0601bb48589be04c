"""Exported files: what they hold, what they refuse, and that they need none of our code."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces import ConvNetSpace, MLPSpace, QuantizedSpace, SearchSpace, Stage
from supernets import Classification, QuantizedWeights, Supernet
from supernets.export import ExportError, export
from tests.programs import run_code

ROOT = Path(__file__).parents[2]
SMALL = ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), (2,), squeeze_excite=True)], 4, resolutions=(6, 8))


def subnetwork(space: SearchSpace = SMALL, seed: int = 0) -> nn.Module:
    supernet = Supernet(space, Classification(4), seed=seed).eval()
    architecture = space.sample(torch.Generator().manual_seed(1))
    (zeros,) = space.inputs(architecture, 6)
    generator = torch.Generator().manual_seed(2)
    return supernet.calibrated(supernet.extract(architecture), [(torch.randn(zeros.shape, generator=generator), None)])


INPUTS = SMALL.inputs(SMALL.largest())
IMAGES = torch.linspace(-2, 2, 3 * INPUTS[0].numel()).reshape(3, *INPUTS[0].shape[1:])


@pytest.fixture
def module() -> nn.Module:
    return subnetwork()


def test_every_format_agrees_with_the_functional_call_of_the_supernet(space: SearchSpace, tmp_path: Path) -> None:
    supernet = Supernet(space, Classification(4)).eval()
    architecture = space.sample(torch.Generator().manual_seed(5))
    (zeros,) = space.inputs(architecture, 2)
    module = supernet.calibrated(supernet.extract(architecture), [(torch.randn(6, *zeros.shape[1:]), None)])
    tensors = supernet.source(architecture) | dict(module.named_buffers())

    def functional(inputs: Tensor) -> Any:
        return functional_call(space.build(architecture).eval(), tensors, (inputs,))

    made = export(
        module,
        (zeros,),
        tmp_path / "out",
        formats=["safetensors", "pt2", "onnx"],
        manifest={"arch_id": architecture.arch_id},
        reference=functional,
    )
    assert made.parity["safetensors"] == 0.0
    assert all(difference <= 1e-5 for difference in made.parity.values())
    assert made.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["manifest.json", "model.safetensors", "model.pt2", "model.onnx"]
    )


def test_formats_share_one_trace_and_leave_it_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces, export_program = [], torch.export.export

    def counting(*arguments: Any, **options: Any) -> Any:
        traces.append(export_program(*arguments, **options))
        return traces[-1]

    monkeypatch.setattr(torch.export, "export", counting)
    net, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), (torch.ones(1, 3),)
    both = export(net, inputs, tmp_path / "both", formats=["onnx", "pt2"], manifest={})
    assert len(traces) == 1
    alone = export(net, inputs, tmp_path / "alone", formats=["pt2"], manifest={})
    assert both.files["pt2"].read_bytes() == alone.files["pt2"].read_bytes()


def test_the_manifest_tells_what_was_written(module: nn.Module, tmp_path: Path) -> None:
    made = export(module, INPUTS, tmp_path / "out", manifest={"arch_id": "abc", "architecture": {"stage1.width": 4}})
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == made.manifest
    assert manifest["format_version"] == 1
    assert manifest["arch_id"] == "abc"
    assert manifest["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert manifest["inputs"] == [{"shape": ["batch", 3, 8, 8], "dtype": "float32"}]
    assert manifest["module"] == "torch.nn.modules.container.Sequential"
    assert manifest["versions"] == {"torch": torch.__version__}
    for name, about in manifest["files"].items():
        content = (tmp_path / "out" / name).read_bytes()
        assert about["sha256"] == hashlib.sha256(content).hexdigest()
        assert about["bytes"] == len(content)
        assert about["parity"] == made.parity[about["format"]]


def test_safetensors_carry_one_key_with_the_part_that_equal_requests_share(module: nn.Module, tmp_path: Path) -> None:
    made = export(module, INPUTS, tmp_path / "out", formats=["safetensors"], manifest={"arch_id": "abc"})
    with safe_open(made.files["safetensors"], framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["weightloom"]
    kept = {key: value for key, value in made.manifest.items() if key not in ("files", "versions")}
    assert json.loads(metadata["weightloom"]) == kept


EXPORT = """
import sys
from tests.supernets import test_export
test_export.export(test_export.subnetwork(), test_export.INPUTS, sys.argv[1], formats=["safetensors"],
                   manifest={"b": 1, "a": 2, "arch_id": "x"})
print(hash("x"))
"""


def test_equal_requests_give_equal_bytes_in_another_process(tmp_path: Path) -> None:
    mine = export(
        subnetwork(), INPUTS, tmp_path / "a", formats=["safetensors"], manifest={"arch_id": "x", "a": 2, "b": 1}
    )
    done = run_code(EXPORT, str(tmp_path / "b"), folder=tmp_path, scratch=tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) != hash("x")
    assert mine.files["safetensors"].read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


PLAIN = """
import sys
import torch
torch.set_num_threads(1)
images, expected = torch.load("case.pt", weights_only=True)
outputs = torch.export.load("out/model.pt2").module()(images)
ours = {"search_spaces", "hypernets", "supernets", "trials", "nas"} & set(sys.modules)
assert not ours, ours
print((outputs - expected).abs().max().item())
"""


def test_a_program_that_knows_nothing_of_us_gets_the_same_outputs(module: nn.Module, tmp_path: Path) -> None:
    export(module, INPUTS, tmp_path / "out", formats=["pt2"], manifest={})
    torch.save((IMAGES, module(IMAGES).detach()), tmp_path / "case.pt")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0.0


def test_files_name_no_path_of_the_machine_that_wrote_them(module: nn.Module, tmp_path: Path) -> None:
    made = export(module, INPUTS, tmp_path / "out", formats=["safetensors", "pt2", "onnx"], manifest={})
    for path in made.files.values():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content
        assert str(Path(torch.__file__).parent).encode() not in content
        assert str(ROOT).encode() not in content
    graph = onnx.load(made.files["onnx"]).graph
    stored = {tensor.name for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert any(len(node.input) == 2 for node in convolutions)  # or runtimes would not fold the batch norm behind it
    assert all(name in stored for node in convolutions for name in node.input[1:])
    assert not any(node.metadata_props for node in graph.node)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.b(self.a(x)), "hidden": (x + 1,)}


def test_tied_parameters_are_stored_once(tmp_path: Path) -> None:
    made = export(
        Tied().eval(), (torch.zeros(1, 4),), tmp_path / "out", formats=["safetensors", "pt2", "onnx"], manifest={}
    )
    assert made.parameters == 24
    with safe_open(made.files["safetensors"], framework="pt") as file:
        assert sorted(file.keys()) == ["a.bias", "a.weight", "b.bias"]


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        outputs: Tensor = self.table(tokens) * scale[:, None, None]
        return outputs


def test_integer_inputs_and_several_inputs(tmp_path: Path) -> None:
    inputs = (torch.tensor([[6, 0, 3]]), torch.ones(1))
    made = export(Embedding().eval(), inputs, tmp_path / "out", formats=["safetensors", "pt2", "onnx"], manifest={})
    assert [given["dtype"] for given in made.manifest["inputs"]] == ["int64", "float32"]


class Variadic(nn.Module):
    """A wrapper that passes on whatever it is given, as ``from_config`` makes for Hugging Face models."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return self.linear(first) + sum(other.sum(1, keepdim=True) for other in others)


@pytest.mark.parametrize("widths", [(3,), (3, 4)])
def test_modules_that_take_any_number_of_inputs(widths: tuple[int, ...], tmp_path: Path) -> None:
    inputs = tuple(torch.ones(2, width) for width in widths)
    written = export(Variadic().eval(), inputs, tmp_path / "out", formats=["pt2"], manifest={})
    program = torch.export.load(written.files["pt2"]).module()
    assert program(*(torch.ones(7, width) for width in widths)).shape == (7, 2)


def test_views_of_the_supernet_are_refused(tmp_path: Path) -> None:
    supernet = Supernet(SMALL, Classification(4)).eval()
    bound = supernet.bind(SMALL.smallest())
    with pytest.raises(ExportError, match=r"must own its tensors.*stem.weight|classifier.weight.*use extract instead"):
        export(bound, INPUTS, tmp_path / "out", manifest={}, allow_uncalibrated=True)
    assert not list(tmp_path.iterdir())


def test_uncalibrated_modules_are_refused_unless_told_to(tmp_path: Path) -> None:
    extracted = Supernet(SMALL, Classification(4)).extract(SMALL.smallest())
    with pytest.raises(ExportError, match=r"must be calibrated before export.*'stem_norm'.*allow_uncalibrated=True"):
        export(extracted, INPUTS, tmp_path / "out", manifest={})
    assert not list(tmp_path.iterdir())
    export(extracted, INPUTS, tmp_path / "out", formats=["safetensors"], manifest={}, allow_uncalibrated=True)


def test_training_mode_is_refused(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must be in evaluation mode; call module.eval\(\) first"):
        export(module.train(), INPUTS, tmp_path / "out", manifest={})


def test_tensors_elsewhere_than_on_the_cpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must be on the CPU, but these tensors are not: \['weight \(meta\)'"):
        export(nn.Linear(2, 2, device="meta").eval(), (torch.zeros(1, 2),), tmp_path / "out", manifest={})


def test_outputs_that_differ_from_the_reference_are_refused_and_leave_nothing(
    module: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"model.safetensors must give the outputs of the reference within"):
        export(module, INPUTS, tmp_path / "out", manifest={}, reference=lambda images: module(images) + 1e-3)
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_not_finite_are_refused(module: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)
    with pytest.raises(ExportError, match=r"must give finite outputs"):
        export(module, INPUTS, tmp_path / "out", manifest={})


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x) if float(x.sum()) > 0 else x
        return outputs


def test_a_module_that_cannot_be_traced_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Untraceable cannot be exported as pt2: .*leave 'pt2' out of formats"):
        export(Untraceable().eval(), (torch.ones(1, 2),), tmp_path / "out", manifest={})
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(module, INPUTS, tmp_path / "deep" / "out", manifest={})
    assert not list((tmp_path / "deep").iterdir())


def test_a_folder_in_use_is_kept_unless_it_is_an_export_to_overwrite(module: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write: Callable[..., Any] = lambda **options: export(  # noqa: E731
        module, INPUTS, folder, formats=["safetensors"], manifest={}, **options
    )
    folder.mkdir()
    write()
    with pytest.raises(ExportError, match=r"out is not empty; choose another folder, or say overwrite=True"):
        write()
    (folder / "stale.txt").touch()
    write(overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder / "manifest.json").unlink()
    with pytest.raises(ExportError, match=r"holds no earlier export"):
        write(overwrite=True)
    assert (folder / "model.safetensors").exists()


def test_a_failing_overwrite_keeps_the_earlier_export(module: nn.Module, tmp_path: Path) -> None:
    made = export(module, INPUTS, tmp_path / "out", formats=["safetensors"], manifest={})
    before = made.files["safetensors"].read_bytes()
    with pytest.raises(ExportError, match=r"reference within"):
        export(module, INPUTS, tmp_path / "out", manifest={}, overwrite=True, reference=lambda x: module(x) + 1)
    assert made.files["safetensors"].read_bytes() == before


def test_an_output_that_cannot_be_a_folder_is_told(module: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"must be a folder, but .*file is a file"):
        export(module, INPUTS, tmp_path / "file", manifest={})
    with pytest.raises(ExportError, match=r"cannot write .*below: Not a directory; choose a writable folder"):
        export(module, INPUTS, tmp_path / "file" / "below", manifest={})


def test_formats_are_checked_first(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"format must be one of \('safetensors', .*'onnx-lowbit'\), got 'tflite'"):
        export(module, INPUTS, tmp_path / "out", formats=["tflite"], manifest={})
    with pytest.raises(ExportError, match=r"at least one format, got 'pt2'"):
        export(module, INPUTS, tmp_path / "out", formats="pt2", manifest={})


def test_a_missing_onnx_library_is_told(module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else find(name))
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxscript.*pip install 'weightloom\[onnx\]'"):
        export(module, INPUTS, tmp_path / "out", formats=["onnx"], manifest={})


@pytest.mark.parametrize("inputs", [(), (torch.zeros(()),), (torch.zeros(0, 2),), (torch.zeros(2), torch.zeros(3))])
def test_inputs_need_one_common_batch(module: nn.Module, tmp_path: Path, inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(ExportError, match=r"same non-empty batch dimension first, got shapes"):
        export(module, inputs, tmp_path / "out", manifest={})


def test_manifests_hold_json_and_no_key_of_ours(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must not use the keys \['files', 'parameters'\]"):
        export(module, INPUTS, tmp_path / "out", manifest={"parameters": 1, "files": {}})
    for bad in (object(), float("nan")):
        with pytest.raises(ExportError, match=r"manifest must hold finite JSON values only"):
            export(module, INPUTS, tmp_path / "out", manifest={"value": bad})
    assert not list(tmp_path.iterdir())


def test_a_plain_build_computes_what_a_quantised_network_does(tmp_path: Path) -> None:
    space = QuantizedSpace(MLPSpace(6, 3, widths=(8,), depths=(3,), batch_norm=False), input_bits=(3, 4))
    supernet = Supernet(space, Classification(3), source=QuantizedWeights).eval()
    images = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    supernet.source.observe([(images,)])
    network = supernet.extract(space.largest())
    exported = export(network, (images[:2],), tmp_path / "out", formats=["safetensors"], manifest={})
    facts = exported.manifest["files"]["model.safetensors"]
    plain = space.space.build(space.space.largest())
    lines = "\n".join(facts["load"]).replace("model.safetensors", str(exported.files["safetensors"]))
    exec(lines, {"model": plain, "rounded_inputs": facts["rounded_inputs"]})
    with torch.no_grad():
        assert torch.equal(plain(images), network(images))
