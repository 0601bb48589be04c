import pickle

import nni
import pytest
import torch
from nni.mutable import frozen_context
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, ModelSpace, MutableLinear, Repeat
from nni.nas.strategy import DARTS, TPE, GridSearch, Proxyless, RandomOneShot, RegularizedEvolution
from nni.nas.strategy import Random as RandomStrategy
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from nas.nni_space import NNISpace
from nas.nni_strategies import nni_model_space, search_with_nni
from search_spaces import CellSpace, Choice, InvalidArchitectureError, MLPSpace, construct, describe
from search_spaces.cells import CellNetwork
from supernets import Classification as ClassificationTask
from supernets import SharedWeights, Supernet


def generator():
    return torch.Generator().manual_seed(0)


class Mixed(ModelSpace):
    """Every kind of choice: a width used four times, operations with weights of their own, depth, an input."""

    def __init__(self, widths=(8, 16, 4)):
        super().__init__()
        width = nni.choice("width", list(widths))
        self.stem = MutableLinear(6, width)
        self.act = LayerChoice([nn.ReLU(), nn.PReLU(), nn.Tanh()], label="act")
        self.blocks = Repeat(lambda index: self.block(width, index), (1, 3), label="depth")
        self.skip = InputChoice(2, n_chosen=1, label="skip")
        self.bias = nni.choice("bias", [True, False])
        self.head = MutableLinear(width, 3, bias=self.bias)

    @staticmethod
    def block(width, index):
        wide = nn.Sequential(MutableLinear(width, width * 2), nn.ReLU(), MutableLinear(width * 2, width))
        return LayerChoice({"plain": MutableLinear(width, width), "wide": wide}, label=f"block{index}")

    def forward(self, x):
        hidden = self.act(self.stem(x))
        return self.head(self.skip([self.blocks(hidden), hidden]))


def mixed():
    return NNISpace(Mixed, input_shape=(6,))


def test_choices_of_a_model_space_with_the_conditions_of_its_depth():
    assert mixed().choices == (
        Choice("width", (4, 8, 16)),
        Choice("act", (0, 1, 2), "categorical"),
        Choice("depth", (1, 2, 3)),
        Choice("block0", ("plain", "wide"), "categorical"),
        Choice("skip", ("0", "1"), "categorical"),
        Choice("bias", (False, True), "categorical"),
        Choice("block1", ("plain", "wide"), "categorical", ("depth", 2)),
        Choice("block2", ("plain", "wide"), "categorical", ("depth", 3)),
    )
    assert mixed().size() == 3 * 3 * 2 * 2 * (2 + 4 + 8)


def test_builds_are_what_nni_builds_and_take_every_tensor_from_the_candidate_it_belongs_to():
    space = mixed()
    source = SharedWeights(space, seed=3)
    stored = source.stored()
    given = torch.randn(5, 6, generator=generator())
    for architecture in [*space.probes(), *(space.sample(generator()) for _ in range(3))]:
        module, tensors = space.build(architecture), source(architecture)
        frozen = Mixed().freeze(space.sample_of(architecture))
        assert {name: tensor.shape for name, tensor in frozen.state_dict().items()} == {
            name: tensor.shape for name, tensor in tensors.items()
        }
        frozen.load_state_dict(tensors)
        assert torch.equal(frozen(given), functional_call(module, tensors, (given,)))
        for index in range(architecture["depth"]):
            prefix = f"blocks.blocks.{index}.{architecture[f'block{index}']}"
            suffix = "weight" if architecture[f"block{index}"] == "plain" else "2.weight"
            mine = tensors[f"blocks.{index}.{suffix}"]
            rows, columns = mine.shape
            assert torch.equal(mine, stored[f"{prefix}.{suffix}"][:rows, :columns])
        if architecture["act"] == 1:
            assert torch.equal(tensors["act.weight"], stored["act.1.weight"])


def test_a_supernet_trains_hands_out_and_comes_back_from_a_process():
    space = pickle.loads(pickle.dumps(NNISpace(Mixed, input_shape=(6,), arguments={"widths": [4, 8]})))
    assert space.choice("width").candidates == (4, 8)
    supernet = Supernet(space, ClassificationTask(3))
    given = torch.randn(2, 6, generator=generator())
    for architecture in (space.largest(), space.smallest()):
        supernet.source.zero_grad()
        functional_call(space.build(architecture), supernet.source(architecture), (given,)).square().sum().backward()
        assert supernet.source.stored()["stem.weight"].grad is not None or any(
            parameter.grad is not None for parameter in supernet.source.parameters()
        )
        extracted = supernet.eval().extract(architecture)
        assert type(extracted) is Mixed
        assert torch.equal(extracted(given), supernet.bind(architecture)(given))
        assert not any(isinstance(module, LayerChoice | MutableLinear) for module in extracted.modules())


def test_samples_of_nni_and_architectures_are_each_others_inverse():
    space = mixed()
    architecture = space.architecture({**space.largest(), "skip": "1", "depth": 1})
    sample = space.sample_of(architecture)
    assert (sample["skip"], sample["act"], sample["block2"]) == ([1], 2, "plain")
    assert space.architecture_of(sample) == architecture
    with pytest.raises(InvalidArchitectureError, match=r"architecture\['colour'\] is not a choice"):
        space.architecture_of({**sample, "colour": 3})
    with pytest.raises(InvalidArchitectureError, match=r"architecture\['width'\] must be one of \(4, 8, 16\), got '5'"):
        space.architecture_of({**sample, "width": 5})


def test_a_space_is_described_and_constructed_by_import_path():
    path = "examples.my_nni_model.DigitsModelSpace"
    space = construct({"class_path": "nas.NNISpace", "init_args": {"model_space": path, "input_shape": [1, 8, 8]}})
    assert isinstance(space, NNISpace)
    assert construct(describe(space)).digest == space.digest


class Continuous(ModelSpace):
    def __init__(self):
        super().__init__()
        self.add_mutable(nni.uniform("rate", 0.0, 1.0))


class Nested(ModelSpace):
    def __init__(self):
        super().__init__()
        inner = LayerChoice([nn.ReLU(), nn.Tanh()], label="inner")
        self.outer = LayerChoice([inner, nn.Identity()], label="outer")


class Cells(ModelSpace):
    def __init__(self):
        super().__init__()
        self.cell = Cell([nn.Linear(4, 4), nn.Identity()], 2, 1, 1, label="cell")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Continuous, r"choice 'rate' must have finitely many values, got .*limits of the search"),
        (Nested, "choice 'inner' lies within a candidate of a LayerChoice"),
        (Cells, "a Cell of NNI cannot be read.*search_spaces.CellSpace"),
        (nn.Identity, "must make a ModelSpace of nni.nas.nn.pytorch, got Identity"),
    ],
)
def test_what_cannot_be_read_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        NNISpace(make, input_shape=(4,))
    with pytest.raises(ValueError, match="input_dtype must name a torch dtype"):
        NNISpace(Mixed, input_shape=(4,), input_dtype="real")


def network():
    return MLPSpace(6, 3, widths=(4, 8, 16), depths=(1, 2))


def size(architecture):
    return -float(sum(parameter.numel() for parameter in network().build(architecture).parameters()))


@pytest.mark.parametrize(
    "strategy",
    [RandomStrategy(), RegularizedEvolution(population_size=3, sample_size=2, seed=1)],
    ids=lambda s: type(s).__name__,
)
def test_multi_trial_strategies_search_any_space(strategy):
    space, scored = network(), []

    def evaluate(architecture):
        scored.append(architecture)
        return size(architecture)

    found = search_with_nni(space, strategy, evaluate, trials=8)
    assert {architecture for architecture, _ in found} == set(scored)
    assert len(scored) == len(found) > 3
    assert [score for _, score in found] == sorted((size(a) for a, _ in found), reverse=True)
    assert all(space.contains(architecture) for architecture, _ in found)


def cells():
    return CellSpace(
        3, in_channels=1, resolution=4, widths=(2, 4), cells=1, operations=("skip_connect", "none", "nor_conv_1x1")
    )


def test_cells_become_layer_choices_that_compute_what_our_network_computes():
    space = cells()
    sample = {choice.name: "nor_conv_1x1" for choice in space.choices} | {"edge0_3": "none", "edge1_2": "skip_connect"}
    with frozen_context(sample):
        theirs = nni_model_space(space)
    assert theirs.simplify().keys() == sample.keys()
    assert sum(isinstance(module, LayerChoice) for module in theirs.modules()) == 2 * 6
    ours = theirs.freeze(sample)
    assert isinstance(ours, CellNetwork)
    assert ours.architecture == space.architecture(sample)
    named = {name.removeprefix("network."): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict({name: named[name] for name in ours.state_dict()})
    given = torch.randn(2, 1, 4, 4, generator=generator())
    torch.testing.assert_close(theirs.eval()(given), ours.eval()(given))


@pytest.mark.filterwarnings("ignore")  # of Lightning, about loaders without workers
def test_one_shot_strategies_return_a_cell():
    space = cells()
    labels = torch.arange(6) % 3
    data = TensorDataset(torch.randn(6, 1, 4, 4, generator=generator()), labels)
    loaders = {name: DataLoader(data, batch_size=3) for name in ("train_dataloaders", "val_dataloaders")}
    evaluator = Classification(
        num_classes=3,
        **loaders,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    [(architecture, score)] = search_with_nni(space, DARTS(), evaluator)
    assert space.contains(architecture)
    assert score is None


@pytest.mark.parametrize(
    ("strategy", "trials", "message"),
    [
        (GridSearch(), 3, "got GridSearch: NNI 3.0 empties each sample"),
        (DARTS(), 3, "DARTS needs a space of operations, a CellSpace, got MLPSpace"),
        (TPE("minimize"), 3, r"NNI's TPE\(\) minimises; give TPE\('maximize'\)"),
        (RandomStrategy(), 0, "trials must be 1 or more, got 0"),
        (Proxyless, 3, r"strategy must be one of \['Random', .* got type"),
    ],
)
def test_strategies_that_do_not_work_are_refused(strategy, trials, message):
    with pytest.raises(ValueError, match=message):
        search_with_nni(network(), strategy, size, trials=trials)
    with pytest.raises(TypeError, match="RandomOneShot needs LayerChoices, and only a CellSpace becomes them"):
        RandomOneShot().mutate_model(nni_model_space(network()))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="the evaluator must return a number, got nan for"):
        search_with_nni(network(), RandomStrategy(), lambda architecture: float("nan"), trials=2)
