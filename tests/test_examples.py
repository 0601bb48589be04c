"""Every example does what it says, keeps the promises of what it extends, and can be named in a YAML file."""

import functools
import json
import re
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning import LightningDataModule
from safetensors.torch import load_file
from torch import nn
from torch.func import functional_call

from examples.bring_your_own_model import main
from examples.extending.controller import LocalSearchController
from examples.extending.cost import PeakActivations
from examples.extending.data import TableData
from examples.extending.rule import FixedSizes
from examples.extending.source import LowRankDelta
from examples.extending.space import SignalSpace
from examples.extending.task import Regression
from examples.my_model import MyNet
from examples.nni_model_space import main as search_model_space
from nas import Cost, Problem, RandomController, SearchSettings
from nas.costs import measure
from nas.objectives import WeightSharing
from search_spaces import Choice, ConvNetSpace, MLPSpace, SearchSpace, Slicer, Stage, construct, describe
from supernets import Classification, SamplingRule, SharedWeights, Supernet, Task, UniformRule, WeightSource
from trials import Limit, Measurement, Metric, Trial, TrialState

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
LOSS = Metric("loss", "1", "minimize")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def signal_space() -> SignalSpace:
    return SignalSpace(2, 3, length=32, widths=(4, 8), depths=(1, 2, 3), kernels=(3, 5))


def snippet(class_path: str) -> dict:
    """The piece of YAML in the document that names a class."""
    for language, _, text in BLOCKS:
        if language == "yaml" and class_path in text:
            return yaml.safe_load(text)
    raise AssertionError(f"{class_path} is in no YAML block of docs/extending.md")


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "extending").glob("*.py")), ids=lambda path: path.stem)
def test_document_shows_each_file_as_it_is(path):
    shown = {name: text for language, name, text in BLOCKS if language == "python"}
    assert shown[path.relative_to(ROOT).as_posix()] == path.read_text()
    assert len(path.read_text().splitlines()) <= 60


def test_signal_space_shares_every_build_and_runs():
    space = signal_space()
    slicer = Slicer(space.build(space.largest()), space.rules())
    for architecture in [*space.probes(), *(space.sample(generator()) for _ in range(5))]:
        module = space.build(architecture)
        plan = slicer.plan(module, architecture)
        assert {part.name for part in plan} == {name for name, _ in module.named_parameters()}
        assert module.eval()(*space.inputs(architecture, 2)).shape == (2, 3)
    assert space.size() == sum(4**depth for depth in (1, 2, 3)) == sum(1 for _ in space.architectures())


def test_signal_space_in_yaml():
    tree = snippet("SignalSpace")["model"]["init_args"]["space"]
    space = construct(tree, SearchSpace)
    assert isinstance(space, SignalSpace)
    assert describe(construct(describe(space))) == describe(space)


@pytest.mark.parametrize(
    "space",
    [
        signal_space(),
        ConvNetSpace([Stage((4, 8), (1, 2), kernels=(3, 5))], 3, in_channels=1, resolutions=(8,)),
        MLPSpace(12, 3, widths=(4, 8), depths=(1, 2)),
    ],
    ids=["signals", "images", "vectors"],
)
def test_low_rank_delta_starts_as_plain_sharing_then_tells_architectures_apart(space):
    source, plain = LowRankDelta(space, rank=2, seed=3), SharedWeights(space, seed=3)
    for architecture in space.probes():
        mine, theirs = source(architecture), plain(architecture)
        assert mine.keys() == theirs.keys() == space.build(architecture).state_dict().keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    small, large = space.smallest(), space.largest()
    with torch.no_grad():
        source.scale.copy_(torch.randn(source.scale.shape, generator=generator()))
    name = source.names[-1]
    shape = source(small)[name].shape
    corner = tuple(slice(size) for size in shape)
    change_small = (source(small)[name] - plain(small)[name]).flatten(1)
    change_large = (source(large)[name] - plain(large)[name])[corner].flatten(1)
    assert not torch.allclose(change_small, change_large)
    assert torch.linalg.matrix_rank(change_small.detach(), rtol=1e-4) <= 2


def test_low_rank_delta_learns_through_the_functional_call():
    space = signal_space()
    source = LowRankDelta(space)
    architecture = space.middle()
    inputs = torch.randn(4, 2, 32, generator=generator())
    module = space.build(architecture)
    functional_call(module, source(architecture), (inputs,)).square().sum().backward()
    assert source.scale.grad is not None
    assert source.scale.grad.abs().sum() > 0
    supernet = Supernet(space, Classification(3), source=LowRankDelta).eval()
    assert torch.equal(supernet.bind(architecture)(inputs), supernet.extract(architecture)(inputs))


def test_low_rank_delta_and_fixed_sizes_in_yaml():
    given = snippet("LowRankDelta")["model"]["init_args"]
    source = construct(given["source"], WeightSource, space=signal_space())
    assert isinstance(source, LowRankDelta)
    assert describe(source, exclude=("space",)) == given["source"] | {"init_args": {"rank": 4, "seed": 0}}
    rule = construct(snippet("FixedSizes")["model"]["init_args"]["rule"], SamplingRule)
    assert isinstance(rule, FixedSizes)
    assert construct(describe(rule)).fractions == rule.fractions


def test_fixed_sizes_are_the_same_in_every_step():
    space, rule = signal_space(), FixedSizes()
    slots = rule.slots(space, seed=1, step=2, score=lambda _: 0.0)
    assert slots == rule.slots(space, seed=3, step=4, score=lambda _: 0.0)
    assert [slot.architecture for slot in slots] == [space.largest(), rule.sizes(space)[1], space.smallest()]
    assert [slot.role for slot in slots] == ["teacher", "student", "student"]
    assert len(FixedSizes((1.0, 1.0)).sizes(space)) == 1
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\], got \[2\.0\]"):
        FixedSizes([2.0])


def test_a_model_of_several_inputs_is_a_space():
    (text,) = (text for language, name, text in BLOCKS if language == "python" and not name)
    names: dict = {}
    exec(text, names)
    space = names["space"]
    for architecture in space.architectures():
        assert space.build(architecture)(*space.inputs(architecture, 5)).shape == (5, 3)


@pytest.fixture
def table(tmp_path):
    """A file of 60 rows in which one column follows from the others."""
    inputs = torch.randn(60, 6, generator=generator())
    rows = torch.cat([inputs, inputs.sum(1, keepdim=True)], 1).tolist()
    lines = ["a,b,c,d,e,f,price", *(",".join(f"{value:.4f}" for value in row) for row in rows)]
    path = tmp_path / "measurements.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging interval")
def test_table_and_regression_in_yaml_train_a_supernet_and_score_it(table):
    data = construct(snippet("TableData")["data"], LightningDataModule)
    assert describe(construct(describe(data))) == describe(data)
    given = snippet("task.Regression")["model"]["init_args"]
    space, task = construct(given["space"], SearchSpace), construct(given["task"], Task)
    assert isinstance(data, TableData)
    assert isinstance(task, Regression)
    data = TableData(str(table), data.target)
    supernet = Supernet(space, task, rule=UniformRule(2), calibration=1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(supernet, data)
    objective = WeightSharing(supernet.eval(), data)
    measured = objective(space.middle(), seed=0).measurements
    (features, targets), *_ = data.val_dataloader()
    assert len(targets) == 12
    with torch.no_grad():
        errors = (objective.module(space.middle())(features).flatten() - targets).numpy()
    assert measured["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert measured["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)
    seen = torch.cat([rows for loader in (data.train_dataloader(), data.val_dataloader()) for rows, _ in loader])
    assert not any((row == seen).all(1).any() for rows, _ in data.test_dataloader() for row in rows)


def test_the_loss_of_the_regression_is_that_of_huber():
    task, batch = Regression(delta=0.5), (None, torch.tensor([0.0, 1.0, 3.0]))
    outputs = torch.tensor([[0.2], [1.0], [1.0]])
    expected = (0.5 * 0.2**2 + 0.0 + 0.5 * (2.0 - 0.25)) / 3
    assert float(task.loss(outputs, batch)) == pytest.approx(expected)
    assert float(task.distil(outputs, batch[1][:, None])) == pytest.approx(expected)


class Flat(SearchSpace):
    """A bowl over six numbers; nothing is ever built."""

    def __init__(self) -> None:
        self.choices = tuple(Choice.integer(f"c{index}", 0, 5) for index in range(6))

    def build(self, architecture):
        return nn.Identity()

    def inputs(self, architecture, batch_size=1):
        return (torch.zeros(batch_size, 1),)


def told(number, architecture, value):
    return Trial(
        number=number,
        architecture=dict(architecture),
        arch_id=architecture.arch_id,
        state=TrialState.COMPLETE,
        measurements={
            "loss": Measurement(value, "1", "minimize"),
            "sum": Measurement(sum(architecture.values()), "1", "minimize"),
        },
        seed=0,
        started=float(number),
        finished=float(number),
        provenance={},
    )


def best_after(controller, evaluations):
    best = float("inf")
    for number in range(evaluations):
        [architecture] = controller.ask(1)
        value = float(sum((value - 3) ** 2 for value in architecture.values()))
        best = min(best, value)
        controller.tell([told(number, architecture, value)])
    return best


def test_local_search_finds_the_bottom_of_a_bowl_that_random_search_misses():
    for seed in range(3):
        problem = Problem(Flat(), (LOSS,), seed=seed)
        assert best_after(LocalSearchController(problem), 150) == 0
        assert best_after(RandomController(problem), 150) > 0


def test_local_search_continues_a_replayed_study_and_prefers_what_holds_the_limits():
    problem = Problem(Flat(), (LOSS,), (Limit("sum", 3, "max"),))
    space = problem.space
    low = space.architecture({f"c{index}": 0 for index in range(6)})
    high = space.architecture({f"c{index}": 3 for index in range(6)})
    trials = [told(0, high, 0.0), told(1, low, 54.0)]
    controllers = [LocalSearchController(problem, start=2) for _ in range(2)]
    controllers[0].tell(trials[:1])
    controllers[0].tell(trials[1:])
    controllers[1].tell(trials)
    asked = [list(controller.ask(4)) for controller in controllers]
    assert asked[0] == asked[1]
    assert set(asked[0]) <= set(space.neighbours(low))


def test_peak_activations_equal_a_count_by_hand():
    space = signal_space()
    architecture = space.architecture({"depth": 1, "block1.width": 4, "block1.kernel": 3})
    # the widest moment is a layer that reads and writes 4 channels of 32 samples: batch norm, or ReLU
    assert PeakActivations(space)(architecture, space.build(architecture)) == 4 * (4 * 32 + 4 * 32)
    assert PeakActivations(space, bytes_per_value=1)(architecture, nn.Identity()) == 4 * 32 * 2
    measured = [
        measure([PeakActivations(space)], space, a)["peak_activations"] for a in (space.smallest(), space.largest())
    ]
    assert measured == sorted(measured)


def test_controller_and_cost_in_yaml():
    search = snippet("LocalSearchController")["search"]
    cost = snippet("PeakActivations")["search"]["costs"][-1]
    space = signal_space()
    made = construct(cost, Cost, space=space)
    assert isinstance(made, PeakActivations)
    assert made.bytes_per_value == 1
    controller = construct(search["controller"], LocalSearchController, problem=Problem(space, (LOSS,)))
    assert controller.start == 16
    assert all(space.contains(architecture) for architecture in controller.ask(3))
    settings = SearchSettings(costs=[functools.partial(PeakActivations, bytes_per_value=1)])
    assert settings.costs[0](space).bytes_per_value == 1


def test_own_model_is_trained_searched_and_exported(tmp_path):
    written = main(epochs=1, trials=3, out=tmp_path / "sub", max_params=8000)
    assert written.parameters <= 8000
    manifest = json.loads((written.folder / "manifest.json").read_text())
    model = MyNet(**manifest["arguments"])
    model.load_state_dict(load_file(written.files["safetensors"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == written.parameters
    assert model.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_model_space_of_nni_is_trained_and_searched(tmp_path):
    front = search_model_space(epochs=1, trials=3, out=tmp_path / "study")
    assert front
    assert all(0.0 <= accuracy <= 1.0 for _, accuracy in front)
