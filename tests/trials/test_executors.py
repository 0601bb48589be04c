import os
import signal
import subprocess
import sys

import psutil
import pytest
from evaluations import Keep, LoadsTheSecondTime, evaluate, leave_a_child
from processes import has_ended, until

from trials import ProcessExecutor, SerialExecutor, executors
from trials.executors import Completion, PoolExecutor


def drain(executor, count):
    completions = []
    while len(completions) < count:
        completions += executor.wait(30)
    return {completion.key: completion for completion in completions}


@pytest.mark.parametrize(
    "executor", [SerialExecutor(evaluate), ProcessExecutor(evaluate, workers=1)], ids=["serial", "process"]
)
def test_results_and_exceptions_come_back_under_their_key(executor):
    with executor:
        for key, argument in enumerate([3, "raise", 5]):
            executor.submit(key, argument)
        ended = drain(executor, 3)
        assert executor.wait(0) == []
    assert (ended[0].result, ended[0].error) == (9, None)
    assert (ended[2].result, ended[2].error) == (25, None)
    assert ended[1].result is None
    assert "ValueError: no such width" in ended[1].error
    assert "evaluations.py" in ended[1].error


def test_a_dead_worker_costs_its_job_only_and_is_replaced():
    with ProcessExecutor(evaluate, workers=1) as executor:
        for key, argument in enumerate(["pid", "die", "pid"]):
            executor.submit(key, argument)
        ended = drain(executor, 3)
    assert ended[1].error == "worker died (exit code -9)"
    assert ended[0].result != ended[2].result


def test_a_job_that_takes_too_long_is_killed():
    with ProcessExecutor(evaluate, workers=2, timeout=2) as executor:
        executor.submit(0, "hang")
        executor.submit(1, 4)
        ended = drain(executor, 2)
    assert ended[0].error == "timed out after 2 s"
    assert ended[1].result == 16


def test_wait_returns_when_its_time_is_over():
    with ProcessExecutor(evaluate, workers=1) as executor:
        executor.submit(0, "hang")
        assert executor.wait(0.2) == []


def test_a_worker_that_dies_is_missed_even_while_a_process_that_it_forked_lives_on(tmp_path):
    """It holds the worker's end of the connection, so that no end of file comes."""
    gate = tmp_path / "gate"
    try:
        with ProcessExecutor(leave_a_child, workers=1) as executor:
            executor.submit(0, str(gate))
            [ended] = executor.wait(200)
    finally:
        gate.touch()
    assert ended.error == "worker died (exit code -9)"


def test_an_executor_whose_worker_could_not_start_begins_another(tmp_path):
    with ProcessExecutor(LoadsTheSecondTime(str(tmp_path / "tried")), workers=1) as executor:
        executor.submit(0, 2)
        with pytest.raises(RuntimeError, match="must be able to start, it ended with exit code 3"):
            drain(executor, 1)
        executor.submit(1, 3)
        assert drain(executor, 1)[1].result == 9


class Slow:
    """A worker that has a job, of which it says nothing."""

    usable = True
    occupied = True

    def __init__(self, deadline):
        self.deadline = deadline


class Stopped(PoolExecutor):
    """An executor on a clock of its own, which is stopped once for some seconds: Ctrl-Z, and ``fg`` later."""

    submit = close = _take = None

    def __init__(self, deadlines, *, at, stopped):
        self._pool = [Slow(deadline) for deadline in deadlines]
        self.now, self.at, self.stopped = 0.0, at, stopped

    def monotonic(self):
        return self.now

    def _dispatch(self):
        pass

    def _listen(self, busy, patience):
        before, self.now = self.now, self.now + patience
        if before <= self.at < self.now:
            self.now = max(self.now, self.at + self.stopped)
        return []

    def _expire(self, worker):
        worker.usable = False
        return Completion(0, None, "late")


@pytest.mark.parametrize(("stopped", "end"), [(0.0, 10.0), (0.9, 10.0), (600.0, 610.0)])
def test_while_a_search_is_stopped_the_time_of_its_evaluations_stands_still(monkeypatch, stopped, end):
    executor = Stopped([10.0, 30.0], at=4.2, stopped=stopped)
    monkeypatch.setattr(executors, "time", executor)
    assert [done.error for done in executor.wait()] == ["late"]
    assert executor.now == pytest.approx(end, abs=0.5)


def test_close_ends_busy_and_idle_workers():
    executor = ProcessExecutor(evaluate, workers=2)
    executor.submit(0, "pid")
    executor.submit(1, "pid")
    pids = {done.result for done in drain(executor, 2).values()}
    executor.submit(2, "hang")
    assert len(pids) == 2
    assert all(map(psutil.pid_exists, pids))
    executor.close()
    executor.close()
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.parametrize("kind", [SerialExecutor, ProcessExecutor])
def test_a_result_is_recorded_where_it_was_computed(kind, tmp_path):
    with kind(evaluate, record=Keep(tmp_path)) as executor:
        executor.submit(7, 6)
        drain(executor, 1)
    assert (tmp_path / "7.txt").read_text() == "36"


def test_workers_share_the_cores_unless_told_otherwise():
    with ProcessExecutor(evaluate, workers=1, threads=3) as executor:
        executor.submit(0, "threads")
        executor.submit(1, "unpicklable")
        executor.submit(2, 2)
        ended = drain(executor, 3)
    assert ended[0].result == "3"
    assert "the result must be picklable to leave its worker" in ended[1].error
    assert ended[2].result == 4


def test_a_function_that_cannot_travel_is_refused_at_once():
    with ProcessExecutor(lambda value: value) as executor:
        with pytest.raises(TypeError, match="must be picklable to reach a worker process, got <function"):
            executor.submit(0, 1)
        assert executor.wait(0) == []


@pytest.mark.parametrize(("name", "value"), [("workers", 0), ("timeout", -1), ("threads", 0)])
def test_sizes_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
        ProcessExecutor(evaluate, **{name: value})


PARENT = """
import signal, sys
sys.path[:0] = [{root!r}, {here!r}]
from evaluations import evaluate
from trials import ProcessExecutor
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it
    with ProcessExecutor(evaluate, workers=2) as executor:
        for key in range(2):
            executor.submit(key, "pid")
        pids = []
        while len(pids) < 2:
            pids += [done.result for done in executor.wait()]
        for key in range(2):
            executor.submit(key, "hang")
        print(*pids, flush=True)
        executor.wait()
"""


def start_parent(tmp_path, here, root):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(root=str(root), here=str(here)))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    return parent, workers


def test_workers_end_when_their_parent_is_killed(tmp_path, here, root):
    parent, workers = start_parent(tmp_path, here, root)
    parent.kill()
    parent.communicate()
    until(lambda: all(map(has_ended, workers)))


def test_ctrl_c_reaches_the_parent_only_and_leaves_no_worker(tmp_path, here, root):
    parent, workers = start_parent(tmp_path, here, root)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate()
    until(lambda: all(map(has_ended, workers)))
    assert errors.count("KeyboardInterrupt") == 1


def test_a_script_without_a_main_guard_is_told_so(tmp_path, here, root):
    script = tmp_path / "bare.py"
    script.write_text(
        f"import sys\nsys.path[:0] = [{str(root)!r}, {str(here)!r}]\n"
        "from evaluations import evaluate\nfrom trials import ProcessExecutor\n"
        "with ProcessExecutor(evaluate, workers=1) as executor:\n    executor.submit(0, 1)\n    executor.wait()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs `if __name__ == '__main__':` around its main part" in done.stderr
