"""Objectives that are looked up instead of trained."""

import os
from pathlib import Path
from typing import Any, Literal, final

import lightning as L

from nas.data.source import DATA_DIR_VARIABLE
from nas.objectives import Evaluation, Objective
from search_spaces import Architecture, CellSpace
from supernets import Supernet
from trials import Metric

__all__ = ["TableData", "TableScore", "TabularObjective", "read_table"]


def read_table(path: str, columns: tuple[str, ...]) -> dict[str, tuple[Any, ...]]:
    """Return the cell's text -> values of ``columns`` of a NATS-Bench topology table, one row a cell.

    Args:
        path: of the parquet file, absolute or relative to the environment variable ``NAS_DATA_DIR`` or, without it, to
            the working directory.
        columns: to read beside ``arch_str``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no parquet file, or lacks a column.
    """
    import pyarrow
    from pyarrow import parquet

    root = os.environ.get(DATA_DIR_VARIABLE, "")
    file = (Path(root) / Path(path).expanduser()).absolute()
    if not file.is_file():
        where = f"{DATA_DIR_VARIABLE} is {root!r}" if root else f"{DATA_DIR_VARIABLE} is not set"
        raise FileNotFoundError(
            f"the table must be a parquet file, got {path!r}, and there is no {file} ({where}); give an absolute path "
            f"or set {DATA_DIR_VARIABLE} to the folder that holds it"
        )
    try:
        known = parquet.read_schema(file).names
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} cannot be read as parquet ({error}); download it again") from error
    missing = [name for name in ("arch_str", *columns) if name not in known]
    if missing:
        raise ValueError(f"the table must have the columns {missing}, {file} has {known}")
    read = parquet.read_table(file, columns=["arch_str", *columns]).to_pydict()
    values = zip(*(read[name] for name in columns), strict=True)
    return dict(zip(read["arch_str"], values, strict=True))


@final
class TabularObjective(Objective):
    """The published accuracy of a cell, so that a whole search takes seconds and any controller can be judged.

    NATS-Bench (Dong et al. 2021, arXiv 2009.00437) trained every cell of :class:`search_spaces.CellSpace` for 12 and
    for 200 epochs. ``split="val"`` is what a search may see, the validation accuracy after 12 epochs (one run);
    ``split="test"`` is what it is judged by, the test accuracy after 200 (mean of runs). Both are as fractions.

    Where several cells are one architecture, the row of the one that stands for them counts.

    Args:
        space: with the operations of the table or some of them.
        path: of the parquet file with the columns ``arch_str`` and ``{dataset}_val_acc_12ep`` or
            ``{dataset}_test_acc_200ep``, in percent; see :func:`read_table`.
        dataset: ``"cifar10"`` or ``"cifar100"``.
        split: ``"val"`` or ``"test"``.

    Raises:
        ValueError: unknown data set or split.
    """

    metrics = (Metric("accuracy", "fraction", "maximize"),)

    def __init__(
        self,
        space: CellSpace,
        path: str = "nats_bench/topology.parquet",
        *,
        dataset: Literal["cifar10", "cifar100"] = "cifar10",
        split: Literal["val", "test"] = "val",
    ) -> None:
        if dataset not in ("cifar10", "cifar100") or split not in ("val", "test"):
            raise ValueError(
                "TabularObjective needs dataset 'cifar10' or 'cifar100' and split 'val' or 'test', got "
                f"{dataset=}, {split=}"
            )
        self.space, self.path, self.dataset, self.split = space, path, dataset, split
        self._rows: dict[str, tuple[Any, ...]] | None = None

    def identity(self) -> str:
        """Return the column that is read."""
        return f"table:{self.column}"

    @property
    def column(self) -> str:
        """Name of the column of the table."""
        return f"{self.dataset}_{'val_acc_12ep' if self.split == 'val' else 'test_acc_200ep'}"

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Look ``architecture`` up; ``seed`` is not used."""
        del seed
        if self._rows is None:
            self._rows = read_table(self.path, (self.column,))
        (percent,) = self._rows[self.space.to_text(architecture)]
        return Evaluation({"accuracy": percent / 100}, {"table": self.column})


@final
class TableData(L.LightningDataModule):
    """What stands in a configuration for data where accuracies are looked up; it holds no examples.

    Args:
        path: of the table; see :func:`read_table`.
        dataset: whose accuracies, ``"cifar10"`` or ``"cifar100"``.
    """

    def __init__(
        self, path: str = "nats_bench/topology.parquet", dataset: Literal["cifar10", "cifar100"] = "cifar10"
    ) -> None:
        super().__init__()
        self.path = path
        self.dataset: Literal["cifar10", "cifar100"] = dataset


@final
class TableScore(Objective):
    """:class:`TabularObjective` for configurations: the space is the supernet's, the table that of the data.

    ``nas search`` needs no checkpoint for it: no weights are used, and the supernet says only what the space is.

    Args:
        supernet: of a :class:`search_spaces.CellSpace`.
        data: a :class:`TableData`.
        split: ``"val"`` or ``"test"``; search on ``"val"``.

    Raises:
        ValueError: it is another space or other data.
    """

    metrics = TabularObjective.metrics

    def __init__(
        self, supernet: Supernet, data: L.LightningDataModule, *, split: Literal["val", "test"] = "val"
    ) -> None:
        space = supernet.space
        if not isinstance(space, CellSpace) or not isinstance(data, TableData):
            raise ValueError(
                "search.objective: TableScore needs model.space to be a search_spaces.CellSpace and data a "
                f"nas.TableData, got {type(space).__name__} and {type(data).__name__}"
            )
        self.split = split
        self.table = TabularObjective(space, data.path, dataset=data.dataset, split=split)

    def identity(self) -> str:
        """Return the column that is read."""
        return self.table.identity()

    def __call__(self, architecture: Architecture, *, seed: int) -> Evaluation:
        """Look ``architecture`` up; ``seed`` is not used."""
        return self.table(architecture, seed=seed)
