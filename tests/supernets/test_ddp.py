"""Training in two processes equals training in one on the union of their batches."""

import os
import socket
from pathlib import Path

import torch

from tests.programs import Running, start_script
from tests.supernets import ddp_worker


def start(folder: Path, rank: int, port: int) -> Running:
    place = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return start_script(
        Path(ddp_worker.__file__),
        *(str(folder), "2"),
        folder=folder,
        environment=os.environ | place,
        scratch=folder / f"rank{rank}",
    )


def test_two_processes_step_as_one_on_the_union_of_their_batches(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(tmp_path, rank, port) for rank in range(2)]
    try:
        alone = ddp_worker.train(tmp_path, 1)
        for process in processes:
            done = process.wait()
            assert done.returncode == 0, done.stderr[-3000:]
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(alone["gradients"]) == 2
    for mine, other, union in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert any(gradient.any() for gradient in union.values())
        for name, gradient in mine.items():
            assert torch.equal(gradient, other[name]), name
            torch.testing.assert_close(gradient, union[name], rtol=1e-4, atol=1e-6, msg=name)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
        torch.testing.assert_close(weight, alone["weights"][name], rtol=1e-4, atol=1e-6, msg=name)
