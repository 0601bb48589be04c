import json
import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nas.costs import CostMeter, MACs, ModelSize, Parameters, materialise, measure
from nas.counting import layer_macs, operator_macs
from search_spaces import (
    Architecture,
    Choice,
    ConvNetSpace,
    MLPSpace,
    SearchSpace,
    Stack,
    Stage,
    TransformerSpace,
    TranslationSpace,
    VisionTransformerSpace,
    derive_seed,
)


class ModuleSpace(SearchSpace):
    """One choice, ``width``, and any recipe of a module and its inputs."""

    def __init__(self, make, shapes, widths=(8, 16), kind="ordinal", bits=None):
        self.make, self.shapes, self.bits = make, shapes, bits or {}
        self.choices = (Choice("width", widths, kind),)

    def build(self, architecture):
        return self.make(architecture["width"])

    def inputs(self, architecture, batch_size=1):
        return tuple(torch.zeros(*shape) for shape in self.shapes(architecture["width"]))

    def bitwidths(self, architecture):
        return self.bits


class Attends(nn.Module):
    """Multiplies outside layers: only an operator counter sees its attention."""

    def __init__(self, width):
        super().__init__()
        self.packed = nn.Linear(width, 3 * width)

    def forward(self, x):
        q, k, v = self.packed(x).chunk(3, -1)
        return torch.softmax(q @ k.transpose(1, 2), -1) @ v


class Fused(nn.Module):
    """Functional attention, to a shorter sequence of other features, which has a formula."""

    def __init__(self, width):
        super().__init__()
        self.attends = nn.Identity()
        self.query, self.key, self.value = nn.Linear(width, 6), nn.Linear(width, 6), nn.Linear(width, 10)

    def forward(self, x):
        given = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.query(x), self.key(x[:, :3]))]
        value = self.value(x[:, :3]).unflatten(-1, (2, -1)).transpose(1, 2)
        return self.attends(F.scaled_dot_product_attention(*given, value=value))


class SelfAttention(nn.Module):
    def __init__(self, width, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, **options)

    def forward(self, *given):
        query, key, value = given if len(given) == 3 else given * 3
        return self.attention(query, key, value)[0]


class ReadsValues(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return self.linear(x) if float(x.sum()) == 0.0 else x


def reference(space, architecture):
    """FlopCounterMode on a real build, independent of the code under test."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model = space.build(architecture).eval()
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), FlopCounterMode(display=False) as counter:
            model(*space.inputs(architecture))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2


def cost_of(cost, space, architecture):
    return measure([cost], space, architecture)[cost.name]


HAND_COUNTS: dict[str, tuple[Callable[[int], nn.Module], list[tuple[int, ...]], int]] = {
    "linear": (lambda w: nn.Linear(w, 5), [(1, 3, 8)], 3 * 8 * 5),
    "conv": (lambda w: nn.Conv2d(w, 6, 3, stride=2, padding=1), [(1, 8, 9, 9)], 5 * 5 * 6 * 8 * 9),
    "depthwise": (lambda w: nn.Conv2d(w, w, 5, groups=w), [(1, 8, 9, 9)], 5 * 5 * 8 * 25),
    "dilated": (lambda w: nn.Conv1d(w, 4, 3, dilation=2), [(1, 8, 9)], 5 * 4 * 8 * 3),
    "transposed": (lambda w: nn.ConvTranspose2d(w, 6, 3, stride=2, groups=2), [(1, 8, 4, 4)], 4 * 4 * 8 * 3 * 9),
    "bilinear": (lambda w: nn.Bilinear(w, 3, 5), [(2, 8), (2, 3)], 2 * 5 * 8 * 3),
    "attention": (lambda w: SelfAttention(w, batch_first=True), [(2, 5, 8)], 2 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)),
    "cross": (
        lambda w: SelfAttention(w, kdim=6, vdim=7, add_bias_kv=True, add_zero_attn=True),
        [(5, 2, 8), (3, 2, 6), (3, 2, 7)],
        2 * (2 * 5 * 8 * 8 + 3 * 6 * 8 + 3 * 7 * 8 + 2 * 5 * (3 + 2) * 8),
    ),
    "unbatched": (lambda w: SelfAttention(w), [(5, 8)], 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8),
    "lstm": (
        lambda w: nn.LSTM(w, 6, 2, bidirectional=True, batch_first=True),
        [(1, 5, 8)],
        5 * 2 * 4 * 6 * ((8 + 6) + (12 + 6)),
    ),
    "projected_lstm": (lambda w: nn.LSTM(w, 6, proj_size=3), [(5, 1, 8)], 5 * (4 * 6 * (8 + 3) + 6 * 3)),
    "gru": (lambda w: nn.GRU(w, 6, batch_first=True), [(1, 5, 8)], 5 * 3 * 6 * (8 + 6)),
    "rnn": (lambda w: nn.RNN(w, 6), [(5, 1, 8)], 5 * 6 * (8 + 6)),
    "cell": (lambda w: nn.LSTMCell(w, 6), [(1, 8)], 4 * 6 * (8 + 6)),
    "nothing": (
        lambda w: nn.Sequential(nn.BatchNorm1d(w), nn.LayerNorm(w), nn.GELU(), nn.Dropout(), nn.Softmax(-1)),
        [(3, 8)],
        0,
    ),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", HAND_COUNTS)
def test_layer_formulas_equal_hand_counts_and_operators(name):
    make, shapes, expected = HAND_COUNTS[name]
    for device in ("meta", "cpu"):
        with torch.device(device):
            model, inputs = make(8), [torch.zeros(*shape) for shape in shapes]
        assert sum(layer_macs(model, inputs).values()) == expected
        assert operator_macs(model, inputs) == expected


def test_layer_called_twice_is_counted_twice():
    layer = nn.Linear(4, 4)
    assert layer_macs(nn.Sequential(layer, nn.ReLU(), layer), [torch.zeros(1, 4)]) == {"0": 32}


def test_macs_equal_flop_counter_on_random_perceptrons():
    space = MLPSpace(12, 5, widths=(3, 8, 17), depths=(1, 2, 3))
    macs = MACs(space)
    generator = torch.Generator().manual_seed(derive_seed("macs"))
    assert (macs.method, macs.device) == ("layers", "meta")
    for _ in range(8):
        architecture = space.sample(generator)
        assert cost_of(macs, space, architecture) == reference(space, architecture)


def test_macs_equal_flop_counter_on_random_convolutional_networks():
    inverted = Stage((8, 16), (1, 2), (3, 5), (2, 4), stride=2, squeeze_excite=True, activation="silu")
    residual = Stage((8, 12), (1, 2), stride=2, block="residual")
    space = ConvNetSpace((inverted, residual), 5, resolutions=(12, 16))
    macs = MACs(space)
    generator = torch.Generator().manual_seed(derive_seed("macs"))
    assert (macs.method, macs.device) == ("layers", "meta")
    for _ in range(4):
        architecture = space.sample(generator)
        assert cost_of(macs, space, architecture) == reference(space, architecture)


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (lambda w: nn.TransformerEncoderLayer(w, 4, 2 * w, batch_first=True), "layers"),
        (lambda w: nn.TransformerEncoder(nn.TransformerEncoderLayer(w, 4, batch_first=True), 2), "layers"),
        (Fused, "layers"),
        (Attends, "operators"),
    ],
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_macs_equal_flop_counter_on_attention(make, method):
    space = ModuleSpace(make, lambda w: [(1, 5, w)], widths=(8, 12, 16))
    macs = MACs(space)
    assert macs.method == method
    for architecture in space.architectures():
        assert cost_of(macs, space, architecture) == reference(space, architecture)


def test_every_categorical_candidate_is_checked():
    kinds = {"a_linear": nn.Linear(8, 8), "b_functional": Attends(8), "c_linear": nn.Linear(8, 8)}
    space = ModuleSpace(kinds.__getitem__, lambda w: [(1, 5, 8)], widths=tuple(kinds), kind="categorical")
    macs = MACs(space)
    assert macs.method == "operators"
    assert cost_of(macs, space, Architecture({"width": "b_functional"})) == 5 * 8 * 24 + 2 * 5 * 5 * 8


def test_breakdown_sums_to_the_cost_and_names_layers():
    space = ModuleSpace(Attends, lambda w: [(1, 5, w)])
    architecture = space.largest()
    macs = MACs(space)
    table = macs.layers(architecture, materialise(space, architecture))
    assert table == {"packed": 5 * 16 * 48, "(outside known layers)": 2 * 5 * 5 * 16}
    assert sum(table.values()) == cost_of(macs, space, architecture)


def test_functional_attention_is_counted_for_the_module_that_calls_it():
    space = ModuleSpace(lambda w: nn.Sequential(nn.Linear(w, w), Fused(w)), lambda w: [(1, 5, w)])
    architecture = space.largest()
    macs = MACs(space)
    assert (macs.method, macs.attends) == ("layers", True)
    projections = {"0": 5 * 16 * 16, "1.query": 5 * 16 * 6, "1.key": 3 * 16 * 6, "1.value": 3 * 16 * 10}
    table = macs.layers(architecture, space.build(architecture))
    assert table == projections | {"1": 2 * 5 * 3 * 3 + 2 * 5 * 3 * 5}
    assert not MACs(MLPSpace(6, 3, widths=(4,), depths=(1,))).attends


def test_model_that_reads_values_is_counted_on_the_cpu():
    space = ModuleSpace(ReadsValues, lambda w: [(1, w)])
    macs = MACs(space)
    assert macs.device == "cpu"
    assert cost_of(macs, space, space.smallest()) == 64


def test_space_whose_inputs_do_not_fit_is_refused():
    space = ModuleSpace(lambda w: nn.Linear(w, w), lambda w: [(1, w + 1)])
    with pytest.raises(ValueError, match=r"macs needs a network that runs on space.inputs\(\).*mend build\(\)"):
        MACs(space)


def test_counting_leaves_the_model_and_global_state_alone():
    space = MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))
    model = cast(nn.Sequential, space.build(space.largest()).train())
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    inputs = space.inputs(space.largest())
    layer_macs(model, inputs)
    operator_macs(model, inputs)
    MACs(space)(space.largest(), model)
    materialise(space, space.largest())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [m.training for m in model] == [True, False] + [True] * (len(model) - 2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_costs_are_equal_on_meta_and_real_models_and_grow_with_width():
    space = MLPSpace(6, 3, widths=(4, 8, 16), depths=(1, 2))
    costs = [Parameters(space), MACs(space), ModelSize(space)]
    previous = dict.fromkeys(("params", "macs", "model_size"), 0.0)
    for width in (4, 8, 16):
        architecture = space.architecture({"depth": 1, "layer1.width": width})
        values = measure(costs, space, architecture)
        assert values == {cost.name: cost(architecture, space.build(architecture)) for cost in costs}
        assert all(values[name] > previous[name] for name in values)
        previous = values
    assert previous["params"] == 6 * 16 + 2 * 16 + 16 * 3 + 3
    assert [(c.metric.unit, c.metric.direction) for c in costs] == [
        ("1", "minimize"),
        ("MAC", "minimize"),
        ("byte", "minimize"),
    ]


class Tied(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x.long()))


def test_tied_parameters_are_counted_once():
    space = ModuleSpace(Tied, lambda w: [(1, 3)])
    values = measure([Parameters(space), ModelSize(space), MACs(space)], space, space.smallest())
    assert values == {"params": 80, "model_size": 320, "macs": 3 * 8 * 10}


def test_model_size_equals_the_payload_of_a_safetensors_file():
    space = MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))
    architecture = space.largest()
    blob = save({name: t.contiguous() for name, t in space.build(architecture).state_dict().items()})
    header = int.from_bytes(blob[:8], "little")
    assert max(v["data_offsets"][1] for v in json.loads(blob[8 : 8 + header]).values()) == len(blob) - 8 - header
    assert cost_of(ModelSize(space), space, architecture) == len(blob) - 8 - header


def test_model_size_respects_bitwidths():
    space = ModuleSpace(
        lambda w: nn.Sequential(nn.Linear(w, 3), nn.Linear(3, 2)), lambda w: [(1, w)], bits={"0": (3, 8)}
    )
    architecture = space.smallest()
    expected = math.ceil(8 * 3 * 3 / 8) + 4 * 3 + 4 * 3 + 4 * (3 * 2 + 2)
    assert cost_of(ModelSize(space), space, architecture) == expected
    halved = math.ceil(8 * 3 * 3 / 8) + 4 * 3 + 2 * 3 + 2 * (3 * 2 + 2)
    assert cost_of(ModelSize(space, bits=16), space, architecture) == halved
    with pytest.raises(ValueError, match="bits must be between 1 and 64, got 0"):
        ModelSize(space, bits=0)
    wrong = ModuleSpace(lambda w: nn.Linear(w, 3), lambda w: [(1, w)], bits={"absent": (3, 8)})
    with pytest.raises(ValueError, match=r"bitwidths must name modules of the model, got \['absent'\]"):
        cost_of(ModelSize(wrong), wrong, wrong.smallest())


def test_meter_remembers_and_refuses_duplicate_names():
    space = MLPSpace(6, 3, widths=(4, 8), depths=(1, 2))
    built = []

    class Counting(SearchSpace):
        choices = space.choices

        def build(self, architecture):
            built.append(architecture)
            return space.build(architecture)

        def inputs(self, architecture, batch_size=1):
            return space.inputs(architecture, batch_size)

    counting = Counting()
    meter = CostMeter(counting, [Parameters(counting)])
    dict(meter(space.largest())).clear()
    assert meter(space.largest()) == measure([Parameters(space)], space, space.largest())
    assert len(built) == 1
    with pytest.raises(ValueError, match="costs must have distinct names"):
        CostMeter(space, [Parameters(space), Parameters(space)])


def attention_by_hand(rows, source_rows, width, source_width, inner):
    projections = rows * width * inner * 2 + source_rows * source_width * inner * 2  # query, out; key, value
    return projections + 2 * rows * source_rows * inner  # scores, mixture


def test_macs_of_transformers_are_counted_by_hand():
    sizes = {"widths": (8, 12), "depths": (1, 2), "heads": (1, 3), "ffn_ratios": (2, 4)}
    space = TransformerSpace(11, 6, **sizes, head_dim=4)
    block = attention_by_hand(6, 6, 12, 12, 12) + 2 * 6 * 12 * 48
    assert measure([MACs(space)], space, space.largest()) == {"macs": 2 * block + 6 * 12 * 11}
    images = VisionTransformerSpace(3, 6, 3, **sizes, head_dim=4, in_channels=2)
    block = attention_by_hand(4, 4, 8, 8, 4) + 2 * 4 * 8 * 16
    assert measure([MACs(images)], images, images.smallest()) == {"macs": 4 * 8 * 2 * 9 + block + 8 * 3}
    pairs = TranslationSpace(11, 6, encoder=Stack(**sizes), decoder=Stack(**sizes, cross_heads=(2,)), head_dim=4)
    architecture = pairs.architecture({**pairs.smallest(), "encoder.width": 12})
    encoder = attention_by_hand(6, 6, 12, 12, 4) + 2 * 6 * 12 * 24
    decoder = attention_by_hand(6, 6, 8, 8, 4) + attention_by_hand(6, 6, 8, 12, 8) + 2 * 6 * 8 * 16
    assert measure([MACs(pairs)], pairs, architecture) == {"macs": encoder + decoder + 6 * 8 * 11}
