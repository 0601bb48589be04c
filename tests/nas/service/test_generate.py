"""Weights of hypernetworks, and of supernets whose weights are generated, over HTTP."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hypernets import ChunkedHyperNetwork, read_provenance
from nas import ConditionedNetwork, InputNoise, Request, ServiceError
from nas.data import DigitsData
from nas.generation import ConditionMaker, SizeMaker
from nas.hypernetworks import save_conditioned
from search_spaces import MLPSpace
from supernets import Classification, GeneratedWeights, Supernet, save

pytestmark = pytest.mark.filterwarnings("default")
SMALL = functools.partial(ChunkedHyperNetwork, hidden=(4, 8), chunk=32)


def test_both_kinds_generate_what_the_library_does(launch: Callable[..., Any], trained: Any, tmp_path: Path) -> None:
    hypernetwork = ConditionedNetwork(
        functools.partial(nn.Linear, in_features=64, out_features=10),
        Classification(10),
        {"noise": InputNoise(2.0)},
        hypernet=SMALL,
    ).eval()
    save_conditioned(hypernetwork, tmp_path / "hyper")
    space = MLPSpace(64, 10, widths=(4, 8), depths=(1,))
    supernet = Supernet(
        space, Classification(10), source=functools.partial(GeneratedWeights, hypernet=SMALL), calibration=2
    ).eval()
    save(supernet, tmp_path / "super", data=DigitsData())
    running = launch(models=(f"hyper={tmp_path / 'hyper'}", f"super={tmp_path / 'super'}", f"tiny={trained.folder}"))
    with running.client() as client:
        kinds = {model.name: (model.kind, sorted(model.fields)) for model in client.models()}
        assert kinds == {
            "hyper": ("hypernetwork", ["noise"]),
            "super": ("supernet", ["depth", "layer1.width"]),
            "tiny": ("supernet", []),
        }
        made = client.generate("hyper", tmp_path / "a", condition={"noise": 0.5}, seed=3)
        expected = ConditionMaker(hypernetwork, None).write(Request({"noise": 0.5}, seed=3), tmp_path / "b")
        assert made.read_bytes() == expected.path.read_bytes()
        assert read_provenance(made)["condition"] == {"noise": 0.5}
        sized = client.generate("super", tmp_path / "c", size={"width": 4})
        expected = SizeMaker(supernet, DigitsData()).write(Request(size={"width": 4}), tmp_path / "d", evaluate=False)
        stored, wanted = load_file(sized), load_file(expected.path)
        assert stored.keys() == wanted.keys()
        assert all(torch.equal(stored[name], wanted[name]) for name in wanted)
        for model, given, words in (
            ("hyper", {"condition": {"noise": 9.0}}, r"must lie in \[0, 2\]"),
            ("hyper", {"condition": {"nois": 1.0}}, "unknown=.'nois'"),
            ("super", {"size": {"width": 5}}, "must be one of"),
            ("hyper", {}, "either condition or size"),
            ("tiny", {"size": {"depth": 1}}, "stores its weights"),
            ("none", {"size": {"depth": 1}}, "it has hyper, super, tiny"),
        ):
            with pytest.raises(ServiceError, match=words):
                client.generate(model, tmp_path / "e", **given)
        with pytest.raises(ServiceError, match="is a hypernetwork and has no subnetworks"):
            client.model("hyper")
        with pytest.raises(ServiceError, match="scores must prove themselves"):
            client.subnetworks("super", limits={"max_params": 500})
    assert not (tmp_path / "e").exists()
