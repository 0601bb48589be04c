"""Citation graphs in the format of Planetoid: one graph, whose nodes are split."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from nas.data.pickled_arrays import refuse_code
from nas.data.source import DATA_DIR_VARIABLE

__all__ = ["GraphSplits", "PlanetoidData"]

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
_VALIDATION = 500
_SHORT = (
    "data.path: the split of Planetoid has 500 validation nodes between those to train with and those to test on, and "
    "the graph {name!r} in {folder} has fewer; add nodes to its allx and ally"
)
_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


@dataclass(frozen=True, eq=False)
class GraphSplits:
    """One graph and the disjoint parts of its nodes.

    Attributes:
        features: ``(N, F)`` float32, sparse COO or dense.
        edge_index: ``(2, E)`` int64, both directions, no loops, no repeats.
        labels: ``(N,)`` int64.
        train: ``(N,)`` bool.
        validation: ``(N,)`` bool.
        test: ``(N,)`` bool.
    """

    features: Tensor
    edge_index: Tensor
    labels: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return int(self.labels.max()) + 1


@final
class _Whole:
    """A loader of one batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield self.batch


@final
class PlanetoidData(LightningDataModule):
    """Cora, CiteSeer, PubMed or any other graph in the format of Planetoid (Yang et al. 2016, arXiv 1603.08861).

    Nothing is downloaded or written. Each batch is the whole graph, ``(features, edge_index, labels, mask)`` with the
    mask of its split, and an epoch is one batch. The split is the one of the files: 20 nodes of each class to train
    with, the 500 after them to validate and those of ``test.index`` to test.

    Args:
        path: of the folder with ``ind.NAME.x``, ``.tx``, ``.allx``, ``.y``, ``.ty``, ``.ally``, ``.graph`` and
            ``.test.index``, or of the folder above its ``raw``; absolute, or relative to the environment variable
            ``NAS_DATA_DIR`` or, without it, to the working directory. The files are pickles: those that hold anything
            but arrays are refused before they are read.
        normalise: divide the features of a node by their sum.
        sparse: give features as sparse COO tensors; ``False`` for networks that take dense ones only.
        num_classes: the network is made for; checked against the labels. ``None``: not checked.
    """

    def __init__(
        self, path: str, *, normalise: bool = True, sparse: bool = True, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.path = path
        self.normalise = normalise
        self.sparse = sparse
        self.num_classes = num_classes
        self._splits: GraphSplits | None = None
        self.save_hyperparameters(logger=False)

    @property
    def splits(self) -> GraphSplits:
        """The graph, read on first use.

        Raises:
            FileNotFoundError: there is no such folder, or it holds no graph.
            ValueError: a split of the graph has no nodes, it has another number of classes, or a file holds more
                than arrays.
        """
        if self._splits is None:
            self._splits = self._load()
        return self._splits

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.splits.features.shape[0]

    @property
    def edges(self) -> int:
        """Number of edges, each direction counted."""
        return self.splits.edge_index.shape[1]

    @property
    def in_features(self) -> int:
        """Number of features of a node."""
        return self.splits.features.shape[1]

    def _load(self) -> GraphSplits:
        folder, name = _find(self.path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy and scipy on the pickles of their old versions
            for part in _PARTS[:-1]:
                refuse_code(folder / f"ind.{name}.{part}")
            from torch_geometric.io import read_planetoid_data

            try:
                graph: Any = read_planetoid_data(str(folder), name)
            except IndexError as error:  # its validation nodes have fixed places
                raise ValueError(_SHORT.format(name=name, folder=folder)) from error
        if int(graph.train_mask.sum() + graph.test_mask.sum()) + _VALIDATION > graph.y.shape[0]:
            raise ValueError(_SHORT.format(name=name, folder=folder))
        features = graph.x.to_dense() if graph.x.layout != torch.strided else graph.x
        if self.normalise:
            features = features / features.sum(1, keepdim=True).clamp_min(1.0)
        edges = torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1)
        splits = GraphSplits(
            features.to_sparse().coalesce() if self.sparse else features,
            torch.unique(edges[:, edges[0] != edges[1]], dim=1),
            graph.y,
            graph.train_mask,
            graph.val_mask,
            graph.test_mask,
        )
        if self.num_classes not in (None, splits.num_classes):
            raise ValueError(
                f"data.num_classes must be {splits.num_classes} for {self.path!r}, got {self.num_classes}; correct it "
                "here, in the task and in the search space"
            )
        return splits

    def prepare_data(self) -> None:
        """Read the graph, so that a wrong path is an error before anything is trained."""
        _ = self.splits

    def setup(self, stage: str) -> None:
        """Read the graph on this rank."""
        _ = self.splits

    def _batch(self, mask: Tensor) -> Batch:
        return self.splits.features, self.splits.edge_index, self.splits.labels, mask

    def train_dataloader(self) -> _Whole:
        """Return the graph with the mask of the training nodes."""
        return _Whole(self._batch(self.splits.train))

    def val_dataloader(self) -> _Whole:
        """Return the graph with the mask of the validation nodes."""
        return _Whole(self._batch(self.splits.validation))

    def test_dataloader(self) -> _Whole:
        """Return the graph with the mask of the test nodes."""
        return _Whole(self._batch(self.splits.test))

    def calibration_batches(self, count: int) -> list[Batch]:
        """Return the graph once: more would be the same."""
        del count
        return [self._batch(self.splits.train)]


def _find(path: str) -> tuple[Path, str]:
    """Return the folder of the raw files and the name of the graph."""
    root = os.environ.get(DATA_DIR_VARIABLE, "")
    folder = (Path(root) / Path(path).expanduser()).absolute()
    where = f"{DATA_DIR_VARIABLE} is {root!r}" if root else f"{DATA_DIR_VARIABLE} is not set"
    wanted = "data.path must be a folder with the Planetoid files ind.NAME.x, ind.NAME.allx and so on"
    if not folder.is_dir():
        raise FileNotFoundError(f"{wanted}, got {path!r}, and {folder} is no folder ({where}); give an absolute path")
    raw = folder / "raw" if (folder / "raw").is_dir() else folder
    names = sorted({file.name.split(".", 1)[1].rsplit(".", 1)[0] for file in raw.glob("ind.*.graph")})
    if not names:
        others = sorted(file.name for file in raw.glob("*.npz"))
        if others:
            raise ValueError(
                f"{wanted}: {raw} has {others[:3]}, a graph without splits, so that no two results on it could be "
                "compared; write it as Planetoid files, whose y says which nodes train and whose test.index which test"
            )
        raise FileNotFoundError(f"{wanted}, and {raw} has no ind.*.graph ({where}); name the folder that has")
    if len(names) > 1:
        raise ValueError(f"{wanted} of one graph, and {raw} has {names}; put each into a folder of its own")
    missing = [part for part in _PARTS if not (raw / f"ind.{names[0]}.{part}").is_file()]
    if "test.index" in missing:
        raise ValueError(
            f"{wanted}: {raw} has a graph {names[0]!r} without splits (no ind.{names[0]}.test.index, which says which "
            "nodes to test on); add that file"
        )
    if missing:
        raise FileNotFoundError(f"{wanted}: {raw} lacks {[f'ind.{names[0]}.{part}' for part in missing]}; add them")
    return raw, names[0]
