import os
import threading
import time

import pytest
import torch
from filelock import FileLock
from torch import nn

from nas.costs import measure
from nas.latency import Latency
from search_spaces import MLPSpace

pytestmark = pytest.mark.filterwarnings("ignore:latency is measured on a busy machine:RuntimeWarning")


@pytest.fixture
def space():
    return MLPSpace(16, 4, widths=(8, 1024), depths=(1, 2))


@pytest.fixture
def latency(space, tmp_path):
    return Latency(space, warmup=2, repeats=9, lock=str(tmp_path / "lock"))


def test_larger_networks_take_longer_and_the_spread_is_ordered(space, latency):
    small = latency.timing(space.smallest(), space.build(space.smallest()))
    large = latency.timing(space.largest(), space.build(space.largest()))
    assert small.minimum < large.minimum
    for timing in (small, large):
        assert 0.0 < timing.minimum <= timing.p25 <= timing.median <= timing.p75
        assert timing.repeats == 9


def test_model_on_meta_is_materialised(space, latency):
    assert measure([latency], space, space.smallest())["latency"] > 0.0
    assert (latency.metric.unit, latency.metric.direction) == ("ms", "minimize")


class Observing(nn.Module):
    """Reports the circumstances under which it is called."""

    def __init__(self):
        super().__init__()
        self.seen = set()
        self.batches = []

    def forward(self, x):
        self.seen.add((self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        self.batches.append(len(x))
        return x


def test_protocol_and_restored_state(space, tmp_path):
    model = Observing().train()
    latency = Latency(space, batch_size=3, threads=2, warmup=4, repeats=5, lock=str(tmp_path / "lock"))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    latency(space.smallest(), model)
    assert model.seen == {(False, False, 2)}
    assert model.batches == [3] * 9
    assert model.training
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_state_is_restored_when_the_model_raises(space, tmp_path):
    class Raises(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = Raises().train()
    threads = torch.get_num_threads()
    lock = str(tmp_path / "lock")
    with pytest.raises(RuntimeError, match="broken"):
        Latency(space, threads=2, lock=lock)(space.smallest(), model)
    assert model.training
    assert torch.get_num_threads() == threads
    with FileLock(lock, timeout=0):
        pass


def test_measurement_waits_for_the_lock(space, latency):
    done = threading.Event()

    def work():
        latency(space.smallest(), Observing())
        done.set()

    with FileLock(latency.lock):
        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(200)
    thread.join()


def test_busy_machine_is_reported(space, latency, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.0 + 0.6 * (os.cpu_count() or 1), 0.0, 0.0))
    with pytest.warns(RuntimeWarning, match="busy machine .load average"):
        latency(space.smallest(), Observing())


def test_single_repeat_has_no_spread(space, tmp_path):
    timing = Latency(space, repeats=1, lock=str(tmp_path / "lock")).timing(space.smallest(), Observing())
    assert timing.minimum == timing.p25 == timing.median == timing.p75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda space: Latency(space, batch_size=0), "batch_size of the latency must be 1 or more, got 0"),
        (lambda space: Latency(space, threads=0), "threads of the latency must be 1 or more, got 0"),
        (lambda space: Latency(space, repeats=0), "repeats of the latency must be 1 or more, got 0"),
        (lambda space: Latency(space, warmup=-1), "warmup of the latency must be 0 or more, got -1"),
    ],
)
def test_bad_numbers_are_refused(space, make, message):
    with pytest.raises(ValueError, match=message):
        make(space)


def test_time_is_in_milliseconds(space, tmp_path):
    class Sleeps(nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x

    timing = Latency(space, warmup=0, repeats=3, lock=str(tmp_path / "lock")).timing(space.smallest(), Sleeps())
    assert 20.0 <= timing.minimum < 200.0
