"""Looking architectures up in a published table."""

import itertools

import pyarrow
import pytest
import torch
from pyarrow import parquet

from nas import TableData, TableScore, TabularObjective
from nas.tabular import read_table
from search_spaces import CellSpace, MLPSpace
from supernets import Classification, Supernet

OPERATIONS = ("skip_connect", "none", "nor_conv_3x3")


@pytest.fixture
def table(tmp_path):
    """Every cell, its accuracies counting its convolutions and its skips."""
    texts = [
        f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|" for a, b, c, d, e, f in itertools.product(OPERATIONS, repeat=6)
    ]
    columns = {
        "arch_str": texts,
        "cifar10_val_acc_12ep": [10.0 + text.count("nor_conv_3x3") for text in texts],
        "cifar10_test_acc_200ep": [20.0 + text.count("skip_connect") for text in texts],
    }
    file = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table(columns), file)
    return file


def test_the_row_of_an_architecture_is_its_score(table, monkeypatch):
    monkeypatch.setenv("NAS_DATA_DIR", str(table.parent))
    space = CellSpace(10, operations=OPERATIONS)
    generator = torch.Generator().manual_seed(0)
    for split, start, counted in (("val", 0.10, "nor_conv_3x3"), ("test", 0.20, "skip_connect")):
        objective = TabularObjective(space, table.name, split=split)
        for architecture in (space.largest(), *(space.sample(generator) for _ in range(20))):
            found = objective(architecture, seed=0).measurements
            expected = start + list(architecture.values()).count(counted) / 100
            assert found == {"accuracy": pytest.approx(expected)}
    assert objective.identity() == "table:cifar10_test_acc_200ep"


def test_a_wrong_table_or_request_is_told(table):
    space = CellSpace(10, operations=OPERATIONS)
    with pytest.raises(FileNotFoundError, match="give an absolute path or set NAS_DATA_DIR"):
        TabularObjective(space, str(table) + "x")(space.largest(), seed=0)
    with pytest.raises(ValueError, match=r"must have the columns \['cifar100_val_acc_12ep'\]"):
        TabularObjective(space, str(table), dataset="cifar100")(space.largest(), seed=0)
    with pytest.raises(ValueError, match="got dataset='imagenet', split='val'"):
        TabularObjective(space, str(table), dataset="imagenet")
    broken = table.with_name("broken.parquet")
    broken.write_text("no table")
    with pytest.raises(ValueError, match=r"broken.parquet cannot be read as parquet.*download it again"):
        read_table(str(broken), ())


def test_a_configuration_names_the_space_by_the_model_and_the_table_by_the_data(table):
    space = CellSpace(4, in_channels=2, resolution=6, widths=(4, 6), cells=1, operations=OPERATIONS)
    objective = TableScore(Supernet(space, Classification(4)), TableData(str(table)), split="test")
    direct = TabularObjective(space, str(table), split="test")
    assert objective(space.largest(), seed=0).measurements == direct(space.largest(), seed=0).measurements
    assert objective.identity() == "table:cifar10_test_acc_200ep"
    with pytest.raises(ValueError, match=r"needs model.space to be a search_spaces.CellSpace .* MLPSpace and Table"):
        TableScore(Supernet(MLPSpace(4, 3, widths=(4,), depths=(1,)), Classification(3)), TableData(str(table)))
