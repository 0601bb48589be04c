"""Weights that start as a sample of a diffusion hypernetwork: which sample, whose files, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hypernets import ChunkedHyperNetwork, DiffusionHyperNetwork, Target, digest, save_hypernetwork
from hypernets import load as load_hypernetwork
from search_spaces import MLPSpace
from supernets import Classification, DiffusionWeights, SharedWeights, Supernet, load, save
from tests.supernets.diffusion_file import DATA, write

SPACE = MLPSpace(12, 4, widths=(4, 8), depths=(1, 2))


def test_the_largest_network_is_the_sample_and_smaller_ones_are_cut_from_it(tmp_path: Path) -> None:
    hypernet, condition = write(SPACE, tmp_path)
    source = DiffusionWeights(SPACE, hypernet=hypernet, condition=condition, temperature=0.5, seed=3)
    generator = load_hypernetwork(hypernet)
    assert isinstance(generator, DiffusionHyperNetwork)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        expected = generator.sample(load_file(condition), 1, generator=draw, temperature=0.5)
    largest = source(SPACE.largest())
    assert all(torch.equal(largest[name], value[0]) for name, value in expected.items())
    plain = SharedWeights(SPACE)
    plain.assign(SPACE.largest(), {name: value[0] for name, value in expected.items()})
    small, cut = source(SPACE.smallest()), plain(SPACE.smallest())
    assert all(torch.equal(small[name], tensor) for name, tensor in cut.items())
    other = DiffusionWeights(SPACE, hypernet=hypernet, condition=condition, temperature=0.5, seed=4)
    assert not torch.equal(other(SPACE.largest())["head.weight"], largest["head.weight"])


def test_a_saved_supernet_needs_neither_file_and_knows_its_sample(tmp_path: Path) -> None:
    hypernet, condition = write(SPACE, tmp_path / "files")
    net = Supernet(
        SPACE,
        Classification(4),
        source=lambda space: DiffusionWeights(space, hypernet=hypernet, condition=condition, seed=1),
    )
    with torch.no_grad():
        net.source(SPACE.largest())["head.bias"].add_(1.0)
    known = digest(load_hypernetwork(hypernet))
    save(net, tmp_path / "saved")
    shutil.rmtree(tmp_path / "files")
    restored = load(tmp_path / "saved")
    expected = net.source(SPACE.middle())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in restored.source(SPACE.middle()).items())
    assert restored.source.provenance() == net.source.provenance()
    assert restored.source.provenance()["hypernetwork"] == known
    assert restored.source.provenance()["seed"] == "1"
    assert restored.source.generated


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    hypernet, condition = write(SPACE, tmp_path)
    with pytest.raises(ValueError, match="needs the files hypernet and condition, got None and None"):
        DiffusionWeights(SPACE)
    with pytest.raises(ValueError, match=r"cannot read .*absent"):
        DiffusionWeights(SPACE, hypernet=str(tmp_path / "absent"), condition=condition)
    with pytest.raises(ValueError, match=r"cannot read .*absent"):
        DiffusionWeights(SPACE, hypernet=hypernet, condition=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="train the zoo on the largest architecture of this space"):
        DiffusionWeights(MLPSpace(12, 4, widths=(4, 10), depths=(1, 2)), hypernet=hypernet, condition=condition)
    hypernet, several = write(SPACE, tmp_path / "several", sets=2)
    with pytest.raises(ValueError, match="must hold one data set"):
        DiffusionWeights(SPACE, hypernet=hypernet, condition=several)
    other = ChunkedHyperNetwork(Target.of(SPACE.superset()), {"data": DATA}, hidden=(4,), chunk=64)
    chunked = save_hypernetwork(other, tmp_path / "chunked.safetensors")
    with pytest.raises(ValueError, match=r"must hold a DiffusionHyperNetwork, .* holds a ChunkedHyperNetwork"):
        DiffusionWeights(SPACE, hypernet=str(chunked), condition=condition)
