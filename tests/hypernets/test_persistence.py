import json
from typing import final

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hypernets import (
    Bits,
    Bounded,
    Categorical,
    HyperCard,
    HyperNetwork,
    HyperNetworkFileError,
    Parametrization,
    Target,
    Unit,
    digest,
    load,
    read_card,
    read_provenance,
    save_hypernetwork,
    save_weights,
)
from tests.hypernets.family import ENCODED, GENERATORS, make, module
from tests.programs import run_code

FIELDS = {"g": Bounded(0.0, 3.0, size=2), "bits": Bits((2, 8)), "task": Categorical(2)}
CONDITION = {"g": torch.tensor([[0.5, 2.0]]), "bits": 8, "task": 1}


@final
class Constant(HyperNetwork):
    """A user's own generator: the condition plus a constant."""

    def __init__(self, target, conditions, *, gain=1.0, parametrization=None):
        super().__init__(target, conditions, parametrization=parametrization)
        self.gain = gain
        self.shift = nn.Parameter(torch.zeros(()))
        self.finish()

    @property
    def card(self):
        return HyperCard.of("Constant", self.conditions.values(), outputs="once", architecture="mlp", reference="-")

    def emit(self, code, specs, *, generator):
        base = code.mean(1) * self.gain + self.shift
        return {spec.name: base.view(-1, *[1] * len(spec.shape)).expand(-1, *spec.shape) for spec in specs}

    def rescale(self, name, factor):
        self.gain *= factor


@pytest.mark.parametrize("name", GENERATORS)
def test_a_hypernetwork_comes_back_as_it_was(name, tmp_path):
    before = torch.get_rng_state()
    state = before.clone()
    switches = Parametrization(encoding="complement" if name in ENCODED else "none", residual="frozen")
    hypernet = make(name, conditions=FIELDS, parametrization=switches)
    hypernet.add_task()
    state = torch.get_rng_state()
    path = save_hypernetwork(hypernet, tmp_path / "folder" / "h.safetensors")
    again = load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(again) is type(hypernet)
    assert (again.target, again.conditions) == (hypernet.target, hypernet.conditions)
    assert again.parametrization == hypernet.parametrization
    expected = hypernet.generate({**CONDITION, "task": 2})
    assert all(torch.equal(value, expected[n]) for n, value in again.generate({**CONDITION, "task": 2}).items())
    assert not again.training
    assert digest(again) == digest(hypernet) == read_card(path)["digest"]
    card = read_card(path)["card"]
    assert HyperCard(**{**card, "inputs": tuple(card["inputs"])}) == hypernet.card
    assert [file.name for file in path.parent.iterdir()] == ["h.safetensors"]


def test_a_grown_recurrence_comes_back(tmp_path):
    hypernet = make("recurrent")
    hypernet.widen(2)
    again = load(save_hypernetwork(hypernet, tmp_path / "h.safetensors"))
    assert again.width == 12
    condition = hypernet.draw(1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.generate(condition)["0.weight"], hypernet.generate(condition)["0.weight"])


def test_equal_hypernetworks_give_equal_bytes_and_the_digest_sees_every_change(tmp_path):
    first, second = (save_hypernetwork(make("chunked"), tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    hypernet = make("chunked")
    found = {digest(hypernet), digest(make("chunked", parametrization=Parametrization(residual="frozen")))}
    with torch.no_grad():
        hypernet.residual("3.bias")[0] += 1e-6
    found.add(digest(hypernet))
    assert len(found) == 3


def test_a_generator_of_ones_own_is_named_at_loading(tmp_path):
    path = save_hypernetwork(Constant(Target.of(module()), {"g": Unit()}, gain=2.0), tmp_path / "h")
    with pytest.raises(HyperNetworkFileError, match=r"holds a .*Constant.*load\(..., classes="):
        load(path)
    again = load(path, classes=[Constant])
    assert again.gain == 2.0


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = save_hypernetwork(make("dense"), tmp_path / "h")
    whole = path.read_bytes()
    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["hypernetwork"])
    tensors = {name: value.clone() for name, value in load_file(path).items()}  # the file behind it is overwritten

    def edited(changes, contents=tensors):
        save_file(contents, path, metadata={"hypernetwork": json.dumps({**card, **changes})})
        return path

    path.write_bytes(whole[:100])
    with pytest.raises(HyperNetworkFileError, match="cannot be read"):
        load(path)
    with pytest.raises(HyperNetworkFileError, match="cannot be read"):
        load(tmp_path / "nothing")
    save_file(tensors, path)
    with pytest.raises(HyperNetworkFileError, match="is not a saved hypernetwork"):
        load(path)
    with pytest.raises(HyperNetworkFileError, match="format version 2, this package reads 1"):
        load(edited({"format_version": 2}))
    with pytest.raises(HyperNetworkFileError, match=r"holds a os\.system"):
        load(edited({"class": "os.system"}))
    with pytest.raises(HyperNetworkFileError, match=r"does not describe a hypernets\.DenseHyperNetwork"):
        load(edited({"settings": {"hidden": [3, 3]}}))
    with pytest.raises(HyperNetworkFileError, match="does not describe"):
        load(edited({"settings": {"hiden": [6, 10]}}))
    with pytest.raises(HyperNetworkFileError, match="its digest is not that of its contents"):
        load(edited({}, {**tensors, "head": tensors["head"] + 1}))
    assert isinstance(load(edited({})), HyperNetwork)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generated_weights_are_a_file_of_the_module_with_provenance(name, dtype, tmp_path):
    target = Target.of(module().to(dtype))
    hypernet = make(name, target=target, conditions=FIELDS)
    provenance = save_weights(
        hypernet, CONDITION, tmp_path / "w.safetensors", seed=3, evaluation={"accuracy": 0.5}, max_bytes=100
    )
    assert provenance == read_provenance(tmp_path / "w.safetensors")
    assert provenance == {
        "format_version": 1,
        "hypernetwork": digest(hypernet),
        "target": target.fingerprint,
        "condition": {"g": [0.5, 2.0], "bits": 8.0, "task": 1},
        "seed": 3,
        "evaluation": {"accuracy": 0.5},
    }
    weights = load_file(tmp_path / "w.safetensors")
    expected = hypernet.generate(CONDITION)
    assert set(weights) == set(expected)
    for n, value in weights.items():
        torch.testing.assert_close(value, expected[n][0], rtol=1e-5, atol=1e-6)
    module().to(dtype).load_state_dict(weights)


def test_empty_and_scalar_tensors_are_written(tmp_path):
    own = nn.Linear(2, 2)
    own.empty, own.gain = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(()))
    hypernet = make("chunked", target=Target.of(own), conditions={"g": Unit()})
    save_weights(hypernet, {"g": 0.5}, tmp_path / "w")
    assert {n: tuple(v.shape) for n, v in load_file(tmp_path / "w").items()} == Target.of(own).shapes


def test_one_file_holds_one_set_and_a_failure_leaves_none(tmp_path):
    hypernet = make("dense", conditions={"g": Unit()})
    path = tmp_path / "w"
    with pytest.raises(ValueError, match="got K = 2"):
        save_weights(hypernet, {"g": torch.rand(2)}, path)
    with pytest.raises(ValueError, match="must lie in"):
        save_weights(hypernet, {"g": 2.0}, path)
    path.write_text("kept")
    broken = make("dense", conditions={"g": Unit()})
    broken.emit = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("half-way"))
    with pytest.raises(RuntimeError, match="half-way"):
        save_weights(broken, {"g": 0.5}, path)
    assert path.read_text() == "kept"
    assert [file.name for file in tmp_path.iterdir()] == ["w"]
    with pytest.raises(HyperNetworkFileError, match="is not generated weights"):
        read_provenance(save_hypernetwork(hypernet, path))


PROGRAM = """
import sys
from hypernets import load, save_weights
for path in sys.argv[1:]:
    save_weights(load(path), {"g": 0.25}, path + "-there")
"""


def test_another_process_writes_the_same_bytes(tmp_path):
    for name in GENERATORS:
        hypernet = make(name, conditions={"g": Unit()})
        save_hypernetwork(hypernet, tmp_path / name)
        save_weights(hypernet, {"g": 0.25}, tmp_path / f"{name}-here")
    paths = [str(tmp_path / name) for name in GENERATORS]
    done = run_code(PROGRAM, *paths, folder=tmp_path, scratch=tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    for name in GENERATORS:
        assert (tmp_path / f"{name}-here").read_bytes() == (tmp_path / f"{name}-there").read_bytes()
