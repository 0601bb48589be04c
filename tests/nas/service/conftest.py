"""One small supernet, its study, and services on ports of their own, all in this process."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import uvicorn

from hypernets import DiffusionHyperNetwork, LabelledExamples, Target
from hypernets.diffusion import FlowMatching, PCACodec
from nas import Client, DatasetSampler, RandomController, SearchSettings, open_search
from nas.data import DigitsData
from nas.service.app import create_app
from nas.service.core import Service
from nas.service.server import configure
from nas.service.settings import ServiceSettings
from search_spaces import MLPSpace
from supernets import Classification, Supernet, save


@dataclass(frozen=True)
class Running:
    url: str
    service: Service
    settings: ServiceSettings

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **given: object) -> Client:
        return Client(self.url, **given)  # type: ignore[arg-type]


def make_supernet(folder: Path, seed: int) -> Supernet:
    torch.manual_seed(seed)
    space = MLPSpace(64, 10, widths=[8, 16, 32], depths=[1, 2])
    supernet = Supernet(space, Classification(10), calibration=2)
    save(supernet, folder, data=DigitsData())
    return supernet


def make_sampler() -> DatasetSampler:
    """Not trained: random networks, which depend on the examples all the same."""
    space = MLPSpace(64, 10, widths=(4,), depths=(1,), batch_norm=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generator = DiffusionHyperNetwork(
            Target.of(space.build(space.smallest())),
            {"few": LabelledExamples(64, 10, embedding=4)},
            codec=PCACodec(6),
            prior=FlowMatching((8,), steps=2),
        )
    return DatasetSampler(space, space.smallest(), generator.eval(), (1, 8, 8), None)


@pytest.fixture(scope="session")
def sampler() -> DatasetSampler:
    """A hypernetwork that samples networks for digits."""
    return make_sampler()


@contextlib.contextmanager
def running(settings: ServiceSettings) -> Iterator[Running]:
    app = create_app(settings)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server = uvicorn.Server(configure(app, host="127.0.0.1", port=port))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            service: Service = app.state.service
            deadline = time.monotonic() + 200
            while not (service.catalogue.ready and server.started):
                assert time.monotonic() < deadline, service.catalogue.states()
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{port}", service, settings)
        finally:
            server.should_exit = True
            thread.join()


@dataclass(frozen=True)
class Trained:
    folder: Path
    supernet: Supernet
    storage: Path
    trials: int


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A supernet and a study of ten of its twelve subnetworks."""
    folder = tmp_path_factory.mktemp("trained")
    supernet = make_supernet(folder / "supernet", 0)
    settings = SearchSettings(
        study="small", trials=10, controller=RandomController, storage=str(folder / "studies.journal")
    )
    with open_search(supernet, DigitsData(), settings, runs=str(folder / "runs")) as search:
        found = search.run(10)
    return Trained(folder / "supernet", supernet, folder / "studies.journal", len(found.trials))


@pytest.fixture(scope="session")
def studied(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of a supernet that was searched."""
    settings = ServiceSettings(
        (f"tiny={trained.folder}",),
        storage=str(trained.storage),
        folder=str(tmp_path_factory.mktemp("studied")),
        reload=0.2,
        stall=5.0,
    )
    with running(settings) as found:
        yield found


@pytest.fixture(scope="session")
def serving() -> Callable[[ServiceSettings], "contextlib.AbstractContextManager[Running]"]:
    """Runs a service until the block ends, for fixtures of other modules."""
    return running


@pytest.fixture
def launch(trained: Trained, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start services of the supernet, without its study unless said, that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(**given: object) -> Running:
            chosen = {"models": (f"tiny={trained.folder}",), "storage": str(tmp_path / "none"), "reload": 0.1}
            settings = ServiceSettings(**{"folder": str(tmp_path / "service"), **chosen, **given})  # type: ignore[arg-type]
            return stack.enter_context(running(settings))

        yield start
