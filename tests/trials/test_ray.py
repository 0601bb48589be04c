"""Evaluations on a Ray cluster of two nodes on this machine: ``make test-cluster``."""

import contextlib
import os
import time
from pathlib import Path

import psutil
import pytest
from evaluations import Keep, evaluate
from processes import has_ended, until

from trials import RayExecutor, TrialState, TrialStore
from trials.ray_executor import _Actor

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]
MEMORY = 80 * 2**20


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, which this process has joined."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{os.path.dirname(__file__)}{os.pathsep}{os.getcwd()}")
        patch.setenv("RAY_TMPDIR", "/tmp")  # the path of a socket has 107 characters at most
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_worker_niceness", "0")  # a busy machine would leave its workers nothing
        patch.setenv("RAY_gcs_server_port_wait_time_s", "200")
        patch.setattr(Cluster._wait_for_node, "__defaults__", (200.0,))
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY, "resources": {"first": 1}}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.second = made.add_node(num_cpus=1, object_store_memory=MEMORY)
        ray.init(address=made.address, log_to_driver=False, configure_logging=False)
        processes = [process for node in made.list_all_nodes() for process in node.live_processes()]
        yield made
        ray.shutdown()
        made.shutdown()
    assert processes
    until(lambda: not any(map(is_of_ray, psutil.Process().children(recursive=True))))


def is_of_ray(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return "ray" in process.name() and not has_ended(process)
    return False


def drain(executor, count):
    completions = []
    while len(completions) < count:
        completions += executor.wait(60)
    return {completion.key: completion for completion in completions}


def test_results_and_exceptions_come_back_under_their_key(cluster, tmp_path):
    with RayExecutor(evaluate, workers=1, record=Keep(tmp_path)) as executor:
        for key, argument in enumerate([3, "raise", 5]):
            executor.submit(key, argument)
        ended = drain(executor, 3)
        assert executor.wait(0) == []
    assert (ended[0].result, ended[0].error) == (9, None)
    assert (ended[2].result, ended[2].error) == (25, None)
    assert ended[1].result is None
    assert "ValueError: no such width" in ended[1].error
    assert (tmp_path / "2.txt").read_text() == "25"


def node_of(_):
    import ray

    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id()


class Supernet:
    """Counts how often it is built on a worker; its first two evaluations wait for each other."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        self.__dict__ = state
        with open(f"{self.folder}/loads", "a") as file:
            file.write(".")

    def __call__(self, argument):
        Path(self.folder, f"begun{argument}").touch()
        until(lambda: len(list(Path(self.folder).glob("begun*"))) > 1)
        return node_of(argument)


def test_evaluations_use_both_machines_and_each_worker_loads_the_supernet_once(cluster, tmp_path):
    with RayExecutor(Supernet(str(tmp_path)), workers=2) as executor:
        for key in range(4):
            executor.submit(key, key)
        nodes = {completion.result for completion in drain(executor, 4).values()}
    assert len(nodes) == 2
    assert (tmp_path / "loads").read_text() == ".."


def test_a_dead_worker_costs_its_job_only_and_is_replaced(cluster, caplog):
    with RayExecutor(evaluate, workers=1, retries=1) as executor:
        for key, argument in enumerate(["pid", "die", "pid"]):
            executor.submit(key, argument)
        ended = drain(executor, 3)
    assert ended[1].error.startswith("worker died 2 time(s)")
    assert "the worker of job 1 died and is replaced" in caplog.text
    assert ended[0].result != ended[2].result


def test_an_evaluation_that_ran_out_of_memory_or_lost_its_machine_is_begun_again(cluster, monkeypatch, caplog):
    """Stand-ins: Ray tells of both in place of an answer, and not as of an actor that died."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError

    errors, receive = [OutOfMemoryError("no memory is left"), NodeDiedError("its machine is gone")], _Actor.receive

    def told(actor):
        if actor.loaded and errors:
            raise errors.pop(0)
        return receive(actor)

    monkeypatch.setattr(_Actor, "receive", told)
    with RayExecutor(evaluate, workers=1, retries=2) as executor:
        executor.submit(0, 3)
        assert drain(executor, 1)[0].result == 9
    assert "job 0 died and is replaced: no memory is left" in caplog.text
    assert "job 0 died and is replaced: its machine is gone" in caplog.text


def test_answers_that_came_while_nobody_listened_are_not_late(cluster, tmp_path):
    import ray

    with RayExecutor(Supernet(str(tmp_path)), workers=2, timeout=200) as executor:
        for key in range(2):
            executor.submit(key, key)
        drain(executor, 2)
        for actor in executor._pool:
            actor.timeout = 0.01
        for key in range(2, 4):
            executor.submit(key, key)
        until(lambda: len(ray.wait([actor.future for actor in executor._pool], num_returns=2, timeout=0)[0]) == 2)
        assert {key: done.error for key, done in drain(executor, 2).items()} == {2: None, 3: None}


def test_actors_that_run_do_the_jobs_of_those_for_which_there_is_no_room(cluster):
    with RayExecutor(node_of, workers=3, timeout=60) as executor:
        for key in range(6):
            executor.submit(key, key)
        ended = drain(executor, 6)
        assert executor.wait(0) == []
        executor.submit(6, 6)
        ended |= drain(executor, 1)
    assert [ended[key].error for key in range(7)] == [None] * 7


def test_a_job_that_takes_too_long_is_killed(cluster):
    with RayExecutor(evaluate, workers=2, timeout=2) as executor:
        executor.submit(0, "hang")
        executor.submit(1, 4)
        ended = drain(executor, 2)
    assert ended[0].error == "timed out after 2 s"
    assert ended[1].result == 16


def test_closing_gives_the_resources_back(cluster):
    import ray

    executor = RayExecutor(evaluate, workers=2)
    executor.submit(0, "hang")
    executor.submit(1, "hang")
    assert executor.wait(1) == []
    executor.close()
    executor.close()
    until(lambda: ray.available_resources().get("CPU") == 2)


def test_what_cannot_run_is_refused_with_its_reason(cluster):
    import threading

    lock = threading.Lock()
    with (
        RayExecutor(lambda value: lock) as executor,
        pytest.raises(TypeError, match="must be picklable to reach a worker process"),
    ):
        executor.submit(0, 1)
    for name in ("workers", "timeout"):
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
            RayExecutor(evaluate, **{name: 0})
    for name in ("cpus", "gpus", "retries"):
        with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
            RayExecutor(evaluate, **{name: -1})


def test_more_than_any_machine_has_is_said(cluster, caplog):
    with RayExecutor(evaluate, cpus=3) as executor:
        executor.submit(0, 1)
        assert executor.wait(0.1) == []
    assert "got 3 CPUs and 0 GPUs for machines of 1 CPUs and 0 GPUs, 1 CPUs and 0 GPUs" in caplog.text
    caplog.clear()
    RayExecutor(evaluate, cpus=1).close()
    assert not caplog.text


@pytest.mark.parametrize(("address", "folder"), [(None, "/tmp"), ("ray://head:1", None)])
def test_a_long_path_for_temporary_files_is_none_for_sockets(monkeypatch, address, folder):
    import ray

    seen = []
    monkeypatch.setenv("RAY_TMPDIR", "restored afterwards")
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/scratch/" + 40 * "x")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ.get("RAY_TMPDIR")))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1}}])
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    RayExecutor(evaluate, address=address).close()
    assert seen == [folder]


SEARCH = """
seed_everything: 0
trainer: {accelerator: cpu}
model:
  class_path: supernets.Supernet
  init_args:
    space:
      class_path: search_spaces.MLPSpace
      init_args: {in_features: 64, num_classes: 10, widths: [8, 16], depths: [1, 2]}
    task: {class_path: supernets.Classification, init_args: {num_classes: 10}}
data: {class_path: nas.data.DigitsData}
search:
  study: cluster
  trials: 2
  objective: {class_path: nas.FromScratch, init_args: {recipe: {class_path: nas.Recipe, init_args: {steps: 2}}}}
  workers: 2
  executor: ray
  ray: {cpus: 0.5}
"""


def test_a_search_evaluates_on_the_cluster(cluster, tmp_path, monkeypatch):
    from nas.__main__ import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(SEARCH)
    assert main(["worker", "-c", "search.yaml"]) == 0
    trials = TrialStore.load("studies.journal", "cluster").trials()
    assert [(trial.state, trial.error) for trial in trials] == [(TrialState.COMPLETE, None)] * 2


def test_the_jobs_of_a_machine_that_dies_move_to_another(cluster, tmp_path):
    """The last test of the cluster: one of its machines is gone afterwards."""
    with RayExecutor(Supernet(str(tmp_path)), workers=2) as executor:
        for key in range(2):
            executor.submit(key, key)
        before = {completion.result for completion in drain(executor, 2).values()}
        for key in range(2, 6):
            executor.submit(key, key)
        cluster.remove_node(cluster.second, allow_graceful=False)
        after = drain(executor, 4)
    assert len(before) == 2
    assert [completion.error for completion in after.values()] == [None] * 4
