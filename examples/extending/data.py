"""The rows of a CSV file as data; any LightningDataModule serves like this one."""

import csv
from typing import final

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

Rows = DataLoader[tuple[Tensor, ...]]


@final
class TableData(L.LightningDataModule):
    """Batches ``(features (B, F), targets (B,))`` of a file of numbers with a header.

    Features are standardised by the training split: 60 % of the rows, drawn by ``split_seed``. The others are divided
    between validation and test.

    Args:
        path: of the file.
        target: name of the column to predict.
        batch_size: rows per batch.
        split_seed: of the splits.
    """

    def __init__(self, path: str, target: str, *, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.path, self.target, self.batch_size, self.split_seed = path, target, batch_size, split_seed

    def setup(self, stage: str) -> None:
        """Read and divide the rows; called for every stage, in every process."""
        del stage
        with open(self.path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        features = torch.tensor([[float(row[name]) for name in row if name != self.target] for row in rows])
        targets = torch.tensor([float(row[self.target]) for row in rows])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.split_seed))
        train, validation, test = order.tensor_split([int(0.6 * len(rows)), int(0.8 * len(rows))])
        features = (features - features[train].mean(0)) / features[train].std(0)
        self._train = TensorDataset(features[train], targets[train])
        self._validation = TensorDataset(features[validation], targets[validation])
        self._test = TensorDataset(features[test], targets[test])

    def train_dataloader(self) -> Rows:
        """Return shuffled batches, without a last one that batch norm may find too small."""
        return self._loader(self._train, shuffle=True, drop_last=True)

    def val_dataloader(self) -> Rows:
        """Return the rows that a search scores."""
        return self._loader(self._validation)

    def test_dataloader(self) -> Rows:
        """Return the rows that only an export is scored on."""
        return self._loader(self._test)

    def _loader(self, rows: Dataset[tuple[Tensor, ...]], *, shuffle: bool = False, drop_last: bool = False) -> Rows:
        return DataLoader(rows, self.batch_size, shuffle=shuffle, drop_last=drop_last)
