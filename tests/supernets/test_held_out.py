import pytest
import torch

from supernets.held_out import HeldOut


def test_no_part_has_a_single_row() -> None:
    batches = [
        (torch.arange(7), torch.arange(7)),
        (torch.arange(1), torch.arange(1)),
        (torch.arange(3), torch.arange(3)),
    ]
    held_out = HeldOut(lambda: batches, 2)
    sizes = [len(held_out(step)[0]) for step in range(8)]
    assert min(sizes) >= 2
    assert sizes[:4] == sizes[4:]
    assert sum(sizes[:4]) == 10


def test_a_split_of_single_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batches of two or more rows .* evaluate in larger batches"):
        HeldOut(lambda: [(torch.zeros(1, 3),)], 4)(0)
