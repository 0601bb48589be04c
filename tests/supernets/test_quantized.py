"""Quantised weights: the contract of every source, scales, data, and what a subnetwork takes along."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from search_spaces import (
    Architecture,
    ConvNetSpace,
    DARTSSpace,
    FactorySpace,
    MLPSpace,
    QuantizedSpace,
    SearchSpace,
    Stage,
)
from search_spaces.quantizer import input_range
from supernets import (
    LSQ,
    SBS,
    Binary,
    Classification,
    FixedPoint,
    MixtureWeights,
    QuantizedWeights,
    SandwichRule,
    SharedWeights,
    SingleRule,
    StatsQ,
    Supernet,
    Ternary,
    UncalibratedError,
    UniformRule,
    WeightSource,
    load,
    save,
)
from supernets.decay import parameter_groups
from supernets.export import export
from supernets.scales import ScaleBank
from tests.supernets.conftest import Attention, random_inputs
from tests.supernets.test_precision import Given
from tests.supernets.test_weight_sources import (  # the same promises, with the fixtures below
    test_an_exception_in_between_changes_nothing,
    test_bind_extract_and_functional_call_give_the_same_outputs_to_the_bit,
    test_summed_gradients_do_not_depend_on_the_order_of_architectures,
    test_tensors_have_exactly_the_keys_shapes_and_types_of_the_module,
    test_the_tensors_load_into_a_plain_module,
    test_two_calls_give_the_same_tensors,
)

CONTRACT = (
    test_an_exception_in_between_changes_nothing,
    test_bind_extract_and_functional_call_give_the_same_outputs_to_the_bit,
    test_summed_gradients_do_not_depend_on_the_order_of_architectures,
    test_tensors_have_exactly_the_keys_shapes_and_types_of_the_module,
    test_the_tensors_load_into_a_plain_module,
    test_two_calls_give_the_same_tensors,
)
PERCEPTRON = MLPSpace(12, 4, widths=(6, 10), depths=(1, 2, 3))
RESIDUAL = ConvNetSpace([Stage((4, 8), (1, 2), (3, 5), block="residual")], 4, resolutions=(6,))
PACKED = FactorySpace(
    Attention, {"width": [4, 8]}, input_shape=(6, 5), fixed={"depth": 1}, slicing={"qkv.*": {"blocks": {0: 3}}}
)
SOURCES: dict[str, Callable[[], QuantizedWeights]] = {
    "lsq": lambda: QuantizedWeights(QuantizedSpace(RESIDUAL)),
    "lsq_tensor_kernels": lambda: QuantizedWeights(
        QuantizedSpace(RESIDUAL, weight_bits=(2, 32), input_bits=None),
        source=functools.partial(SharedWeights, kernel_transform=True),
        quantizer=LSQ("tensor"),
    ),
    "sbs_mixture": lambda: QuantizedWeights(
        QuantizedSpace(PERCEPTRON, input_bits=(3, 32)),
        source=functools.partial(MixtureWeights, hidden=8),
        quantizer=SBS(),
    ),
    "lsq_packed": lambda: QuantizedWeights(QuantizedSpace(PACKED, ends=None)),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> QuantizedWeights:
    made = SOURCES[request.param]()
    made.observe([(random_inputs(made.space, 16),)])
    return made


@pytest.fixture
def space(source: QuantizedWeights) -> SearchSpace:
    return source.space


def supernet_of(source: WeightSource) -> Supernet:
    return Supernet(source.space, Classification(4), source=lambda space: source).eval()


def test_only_weights_with_bits_differ_from_those_of_the_wrapped_source(
    source: QuantizedWeights, architectures: list[Architecture]
) -> None:
    for architecture in architectures:
        given, plain = source(architecture), source.wrapped(source.quantized_space.base(architecture))
        codes = source.codes(architecture)
        bits = source.quantized_space.bitwidths(architecture)
        assert codes.keys() == {f"{layer}.weight" for layer, (weight, _) in bits.items() if weight < 32}
        assert all(torch.equal(given[name], codes[name].value()) for name in codes)
        assert all(
            len(given[name].unique()) <= 2**code.bits * len(code.scale.flatten()) for name, code in codes.items()
        )
        assert all(torch.equal(given[name], tensor) for name, tensor in plain.items() if name not in codes)


def test_scales_of_channels_are_cut_with_the_channels() -> None:
    """Each channel of a narrow network has the scale that it has in the largest one, packed matrices included."""
    source = SOURCES["lsq_packed"]()
    source.observe([(random_inputs(source.space, 4),)])
    for parameter in source.weight_scales.parameters():
        with torch.no_grad():
            parameter.copy_(torch.arange(len(parameter)).view_as(parameter) * 0.01)
    space = source.quantized_space
    largest, small = space.quantized(PACKED.largest(), 4), space.quantized(PACKED.smallest(), 4)
    whole, part = (source.codes(architecture)["qkv.0.weight"].scale for architecture in (largest, small))
    assert whole.shape == (24, 1)
    assert torch.equal(part, whole.view(3, 8, 1)[:, :4].reshape(12, 1))


def test_bits_change_from_pass_to_pass_and_gradients_reach_the_scales_that_were_used() -> None:
    source = SOURCES["lsq"]()
    source.observe([(random_inputs(source.space, 8),)])
    space = source.quantized_space
    outputs = {}
    for bits in (2, 4, 8):
        source.zero_grad(set_to_none=True)
        architecture = space.quantized(RESIDUAL.middle(), bits)
        outputs[bits] = supernet_of(source)(architecture, random_inputs(space))
        outputs[bits].square().sum().backward()
        outputs[bits] = outputs[bits].detach()
        reached = {n for n, p in source.named_parameters() if "scales" in n and p.grad is not None and p.grad.any()}
        layers = [layer.replace(".", "/") for layer in space.bitwidths(architecture)]
        free = [layer for layer in layers if layer not in ("stem", "classifier")]
        fixed = {f"{kind}_scales.{end}@8" for kind in ("weight", "input") for end in ("stem", "classifier")}
        assert reached == {f"{kind}_scales.{layer}@{bits}" for kind in ("weight", "input") for layer in free} | fixed
    assert not torch.allclose(outputs[2], outputs[8], atol=1e-3)
    exact = source.wrapped(RESIDUAL.middle())["stage1.block1.conv1.weight"]
    rounded = [source(space.quantized(RESIDUAL.middle(), bits))["stage1.block1.conv1.weight"] for bits in (2, 4, 8)]
    errors = [float((weight - exact).detach().square().mean()) for weight in rounded]
    assert errors == sorted(errors, reverse=True)


def test_before_any_data_quantised_inputs_are_refused_and_the_first_batch_sets_their_scales(
    labelled: Any, fit: Any
) -> None:
    supernet = Supernet(QuantizedSpace(PERCEPTRON), Classification(4), source=QuantizedWeights)
    source = supernet.source
    with pytest.raises(UncalibratedError, match=r"train the supernet, or call source.observe\(\[inputs\]\)"):
        source(supernet.space.smallest())
    assert all(bool(parameter.isnan()) for parameter in source.input_scales.parameters())
    fit(supernet, labelled(supernet.space), 1)
    assert all(bool(parameter.isfinite().all()) for parameter in source.parameters())
    assert source.observed
    assert SOURCES["lsq_tensor_kernels"]().observed, "weights alone need no data"


def test_validation_before_training_takes_the_first_calibration_batch(labelled: Any, fit: Any) -> None:
    supernet = Supernet(QuantizedSpace(PERCEPTRON), Classification(4), source=QuantizedWeights)
    batches = labelled(supernet.space)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(supernet, datamodule=Given(batches), verbose=False)
    twin = QuantizedWeights(supernet.space)
    twin.observe([(batches.batches[0][0],)])
    for name, parameter in twin.named_parameters():
        assert torch.equal(parameter, supernet.source.get_parameter(name)), name


def test_scales_of_inputs_start_at_twice_the_mean_magnitude_over_the_root_of_the_grid() -> None:
    space = QuantizedSpace(MLPSpace(5, 3, widths=(4,), depths=(2,), batch_norm=False), input_bits=(2, 4))
    source = QuantizedWeights(space)
    x = random_inputs(space, 9)
    source.observe([(x[:4],), (x[4:],)])
    tensors = source.wrapped(space.base(space.largest()))
    hidden = (x @ tensors["linear1.weight"].T + tensors["linear1.bias"]).relu()
    for layer, given, signed, widths in (("linear1", x, True, (8,)), ("linear2", hidden, False, (2, 4))):
        assert space.signed_input(layer) is signed
        for bits in widths:
            high = input_range(bits, signed=signed)[1]
            expected = 2 * float(given.abs().mean().detach()) / math.sqrt(high)
            assert float(source.input_scales(layer, bits).detach()) == pytest.approx(expected, rel=1e-5)


def test_an_input_that_turns_out_to_be_negative_is_refused_with_the_way_out() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a = torch.nn.Linear(3, width)
            self.b = torch.nn.Linear(width, 2)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.b(self.a(x).relu() - (x > 100).any().float())
            return outputs

    space = QuantizedSpace(FactorySpace(Shifted, {"width": [2, 4]}, input_shape=(3,)), ends=None)
    with pytest.raises(ValueError, match=r"inputs of layer 'b' must not be negative.*QuantizedSpace.signed: \['b'\]"):
        QuantizedWeights(space).observe([(torch.full((4, 3), 1000.0),)])


def test_weight_scales_start_anew_from_loaded_weights_when_data_is_seen() -> None:
    source = SOURCES["lsq"]()
    before = {name: value.clone() for name, value in source.weight_scales.state_dict().items()}
    with torch.no_grad():
        for parameter in source.wrapped.parameters():
            parameter.mul_(3)
    source.observe([(random_inputs(source.space, 4),)])
    for name, value in source.weight_scales.state_dict().items():
        torch.testing.assert_close(value - before[name], torch.full_like(value, math.log(3)), rtol=1e-4, atol=1e-4)


def test_a_step_of_sgd_changes_a_scale_as_if_it_were_stored_itself() -> None:
    bank = ScaleBank()
    bank.add("a.b", 4, torch.tensor([0.02, 0.5]))
    assert float(bank("a.b", 4)[0].detach()) == pytest.approx(0.02)
    (bank("a.b", 4) * torch.tensor([3.0, -1.0])).sum().backward()
    torch.optim.SGD(bank.parameters(), lr=1e-5).step()
    moved = bank("a.b", 4).detach() - torch.tensor([0.02, 0.5])
    assert moved[0] == pytest.approx(-1e-5 * 3, rel=0.02)
    assert bank.undecayed == {"a/b@4"}


def test_parameters_come_in_the_order_of_the_layers_in_every_process() -> None:
    """Ranks of data-parallel training must agree on it, and so must an optimiser that is resumed."""
    source = SOURCES["lsq"]()
    layers = [site.name.replace(".", "/") for site in source.quantized_space.sites]
    for bank in (source.weight_scales, source.input_scales):
        assert list(dict.fromkeys(name.partition("@")[0] for name, _ in bank.named_parameters())) == layers


def test_operations_that_no_single_choice_brings_about_have_scales_too() -> None:
    cells = DARTSSpace(
        3, in_channels=1, resolution=4, width=2, cells=3, nodes=2, operations=("skip_connect", "sep_conv_3x3")
    )
    space = QuantizedSpace(cells, groups={"body": ["*"]}, ends=None)
    source = QuantizedWeights(space)
    source.observe([(random_inputs(space, 4),)])
    generator = torch.Generator().manual_seed(0)
    for architecture in (space.sample(generator) for _ in range(5)):
        quantised = {f"{layer}.weight" for layer in space.bitwidths(architecture)}
        convolutions = {name for name, tensor in source(architecture).items() if tensor.ndim == 4}
        assert convolutions <= quantised == source.codes(architecture).keys()


def test_scales_are_trained_without_weight_decay() -> None:
    source = SOURCES["lsq"]()
    decayed, spared = parameter_groups(source, decay_norms=False)
    scales = {id(p) for bank in (source.weight_scales, source.input_scales) for p in bank.parameters()}
    assert scales <= {id(p) for p in spared["params"]}
    assert not scales & {id(p) for p in decayed["params"]}
    assert spared["weight_decay"] == 0


@pytest.mark.parametrize(
    "rule", [UniformRule(), SandwichRule(1), SingleRule("middle")], ids=["uniform", "sandwich", "single"]
)
def test_training_lowers_the_loss_at_few_bits(rule: Any, labelled: Any, fit: Any) -> None:
    torch.manual_seed(0)
    space = QuantizedSpace(MLPSpace(12, 4, widths=(16,), depths=(2,)), weight_bits=(2, 4), input_bits=(2, 4))
    supernet = Supernet(
        space,
        Classification(4),
        source=QuantizedWeights,
        rule=rule,
        optimizer=functools.partial(torch.optim.AdamW, lr=0.02),
    )
    batches = labelled(space, count=1, size=24)
    supernet.source.observe([(batches.batches[0][0],)])
    architecture = rule.selected() or space.smallest()
    before = supernet.score(architecture, batches.batches[0])
    fit(supernet, batches, 20)
    assert supernet.score(architecture, batches.batches[0]) < 0.75 * before


def test_what_is_extracted_and_calibrated_is_what_was_searched(
    source: QuantizedWeights, architectures: list[Architecture]
) -> None:
    supernet, inputs = supernet_of(source), random_inputs(source.space, 40)
    architecture = architectures[-1]
    bound, taken = (supernet.calibrated(f(architecture), [(inputs, None)]) for f in (supernet.bind, supernet.extract))
    assert torch.equal(taken(inputs), bound(inputs))
    codes = source.codes(architecture)
    assert all(torch.equal(taken.get_parameter(name), code.value()) for name, code in codes.items())


def test_exported_files_carry_the_quantised_values_exactly(tmp_path: Path) -> None:
    source = SOURCES["lsq_packed"]()
    source.observe([(random_inputs(source.space, 16),)])
    architecture = source.quantized_space.quantized(PACKED.largest(), 2)
    taken, inputs = supernet_of(source).extract(architecture), source.space.inputs(architecture)
    made = export(taken, inputs, tmp_path / "out", formats=["safetensors", "pt2"], manifest={})
    assert made.parity == {"safetensors": 0.0, "pt2": 0.0}
    stored = load_file(made.files["safetensors"])
    assert all(torch.equal(stored[name], code.value()) for name, code in source.codes(architecture).items())
    assert all(len(row.unique()) <= 4 for row in stored["qkv.0.weight"])


def test_a_saved_supernet_comes_back_with_scales_and_quantiser(tmp_path: Path) -> None:
    space = QuantizedSpace(PERCEPTRON)
    make = functools.partial(
        QuantizedWeights, source=functools.partial(MixtureWeights, hidden=8), quantizer=SBS("tensor")
    )
    supernet = Supernet(space, Classification(4), source=make)
    supernet.source.observe([(random_inputs(space),)])
    again = load(save(supernet, tmp_path / "saved")).source
    assert isinstance(again, QuantizedWeights)
    assert isinstance(again.wrapped, MixtureWeights)
    assert (again.wrapped.hidden, again.quantizer.granularity, again.observed) == (8, "tensor", True)
    for name, tensor in supernet.source(space.middle()).items():
        assert torch.equal(again(space.middle())[name], tensor)
    unseen = load(save(Supernet(space, Classification(4), source=make), tmp_path / "unseen")).source
    assert not unseen.observed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizedWeights(PERCEPTRON), "needs a QuantizedSpace.* got MLPSpace; wrap it"),
        (
            lambda: SharedWeights(QuantizedSpace(PERCEPTRON)),
            "SharedWeights gives weights in full precision.*QuantizedW",
        ),
        (
            lambda: QuantizedWeights(QuantizedSpace(PERCEPTRON), quantizer=Ternary()),
            r"Ternary.*got weight bits \(2, 4, 8\)",
        ),
        (lambda: QuantizedWeights(QuantizedSpace(PERCEPTRON), quantizer=Binary()), "Binary quantises to 1 bit"),
        (lambda: QuantizedWeights(QuantizedSpace(PERCEPTRON, weight_bits=(3,)), quantizer=SBS()), "SBS quantises to"),
        (
            lambda: QuantizedWeights(QuantizedSpace(PERCEPTRON), source=QuantizedWeights),
            "needs a QuantizedSpace",
        ),
    ],
    ids=["space", "source", "ternary", "binary", "sbs", "twice"],
)
def test_what_does_not_go_together_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_quantisers_of_statistics_need_no_scales_and_learn_nothing() -> None:
    for quantizer in (StatsQ(), FixedPoint()):
        source = QuantizedWeights(QuantizedSpace(PERCEPTRON), quantizer=quantizer)
        assert not list(source.weight_scales.parameters())
    binary = QuantizedSpace(PERCEPTRON, weight_bits=(1,), ends=None, input_bits=None)
    assert set(
        QuantizedWeights(binary, quantizer=Binary())(binary.smallest())["head.weight"].abs().unique(dim=1).shape
    ) <= {1, 4}
