"""Graphs in the format of Planetoid: what is read, and what is refused."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from nas.data import PlanetoidData

LABELLED, REST, TESTED, FEATURES, CLASSES = 6, 506, 4, 5, 3
NODES = LABELLED + REST + TESTED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ring of nodes; test nodes are the last ones, in another order."""
    root: Path = tmp_path_factory.mktemp("ring")
    generator = np.random.default_rng(0)
    x = scipy.sparse.csr_matrix(generator.integers(0, 3, (NODES, FEATURES)).astype(np.float32))
    y = np.eye(CLASSES, dtype=np.int32)[np.arange(NODES) % CLASSES]
    known, tested = LABELLED + REST, [NODES - 1, NODES - 3, NODES - 4, NODES - 2]
    order = [*range(known), *tested]
    graph = {node: [(node + 1) % NODES, node] for node in range(NODES)}  # one direction, and loops
    parts = {
        "x": x[order[:LABELLED]],
        "allx": x[order[:known]],
        "tx": x[tested],
        "y": y[order[:LABELLED]],
        "ally": y[order[:known]],
        "ty": y[tested],
        "graph": graph,
    }
    (root / "raw").mkdir()
    for name, part in parts.items():
        (root / "raw" / f"ind.ring.{name}").write_bytes(pickle.dumps(part))
    (root / "raw" / "ind.ring.test.index").write_text("".join(f"{node}\n" for node in tested))
    np.save(root / "x.npy", x.todense())
    return root


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_the_graph_and_its_splits_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_DATA_DIR", str(folder.parent))
    data = PlanetoidData(folder.name, num_classes=CLASSES)
    splits = data.splits
    raw = torch.from_numpy(np.load(folder / "x.npy"))
    torch.testing.assert_close(splits.features.to_dense(), raw / raw.sum(1, keepdim=True).clamp_min(1))
    assert torch.equal(splits.labels, torch.arange(NODES) % CLASSES)
    edges = set(map(tuple, splits.edge_index.t().tolist()))
    assert edges == {pair for a in range(NODES) for b in [(a + 1) % NODES] for pair in ((a, b), (b, a))}
    assert (data.nodes, data.edges, data.in_features) == (NODES, 2 * NODES, FEATURES)
    assert splits.train.nonzero().flatten().tolist() == list(range(LABELLED))
    assert splits.validation.nonzero().flatten().tolist() == list(range(LABELLED, LABELLED + 500))
    assert splits.test.nonzero().flatten().tolist() == list(range(NODES - TESTED, NODES))
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    masks = [mask for loader in loaders for *_, mask in loader]
    assert [len(loader) for loader in loaders] == [1, 1, 1]
    assert all(a is b for a, b in zip(masks, (splits.train, splits.validation, splits.test), strict=True))
    assert data.calibration_batches(8)[0][3] is splits.train
    assert sorted(file.name for file in folder.iterdir()) == ["raw", "x.npy"], "nothing is written"
    plain = PlanetoidData(folder.name, normalise=False, sparse=False).splits
    torch.testing.assert_close(plain.features, raw)
    with pytest.raises(ValueError, match=r"data.num_classes must be 3 .* got 7"):
        _ = PlanetoidData(folder.name, num_classes=7).splits


def test_a_graph_without_splits_is_refused(copied: Path) -> None:
    (copied / "raw" / "ind.ring.test.index").unlink()
    with pytest.raises(ValueError, match=r"graph 'ring' without splits \(no ind.ring.test.index.*add that file"):
        PlanetoidData(str(copied)).prepare_data()
    shutil.rmtree(copied / "raw")
    (copied / "amazon.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\['amazon.npz'\], a graph without splits"):
        PlanetoidData(str(copied)).prepare_data()


class Command:
    """What nobody expects in a graph."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("part", ["x", "ally", "graph"])
def test_files_that_run_something_are_refused_before_they_do(copied: Path, part: str) -> None:
    file = copied / "raw" / f"ind.ring.{part}"
    file.write_bytes(pickle.dumps({0: Command(copied / "made")}))
    with pytest.raises(ValueError, match=r"nothing that runs, but it calls \w+.mkdir"):
        PlanetoidData(str(copied)).prepare_data()
    assert not (copied / "made").exists()
    file.write_bytes(b"\x80no pickle")
    with pytest.raises(ValueError, match=rf"ind.ring.{part} must hold arrays"):
        PlanetoidData(str(copied)).prepare_data()


def test_a_graph_without_validation_nodes_is_refused(copied: Path) -> None:
    raw = copied / "raw"
    for name in ("allx", "ally"):
        part = pickle.loads((raw / f"ind.ring.{name}").read_bytes())
        (raw / f"ind.ring.{name}").write_bytes(pickle.dumps(part[:LABELLED]))
    (raw / "ind.ring.graph").write_bytes(pickle.dumps({0: [1]}))
    (raw / "ind.ring.test.index").write_text("".join(f"{node}\n" for node in range(LABELLED, LABELLED + TESTED)))
    with pytest.raises(ValueError, match=r"500 validation nodes .*the graph 'ring' in .* has fewer; add nodes"):
        PlanetoidData(str(copied)).prepare_data()


def test_a_folder_that_holds_no_graph_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NAS_DATA_DIR", raising=False)
    with pytest.raises(FileNotFoundError, match=r"got 'nowhere'.*NAS_DATA_DIR is not set"):
        PlanetoidData("nowhere").prepare_data()
    (copied / "raw" / "ind.ring.tx").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks \['ind.ring.tx'\]"):
        PlanetoidData(str(copied)).prepare_data()
    (copied / "raw" / "ind.other.graph").write_bytes(b"")
    with pytest.raises(ValueError, match=r"of one graph, and .* has \['other', 'ring'\]"):
        PlanetoidData(str(copied)).prepare_data()
